"""Job of `ray-recsys registry`, with its options: `ray job submit --working-dir . -- python jobs/registry.py …`."""

import sys

from ray_recsys.cli import main

if __name__ == "__main__":
    sys.exit(main(["registry", *sys.argv[1:], "--json"]))
