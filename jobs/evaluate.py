"""Job of `ray-recsys evaluate`, with its options: `ray job submit --working-dir . -- python jobs/evaluate.py …`."""

import sys

from ray_recsys.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:], "--json"]))
