"""Job of `ray-recsys serve`, with its options: `ray job submit --working-dir . -- python jobs/serve.py …`."""

import sys

from ray_recsys.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:], "--json"]))
