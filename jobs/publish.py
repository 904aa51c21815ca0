"""Job of `ray-recsys publish`, with its options: `ray job submit --working-dir . -- python jobs/publish.py …`."""

import sys

from ray_recsys.cli import main

if __name__ == "__main__":
    sys.exit(main(["publish", *sys.argv[1:], "--json"]))
