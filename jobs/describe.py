"""Job of `ray-recsys describe`, with its options: `ray job submit --working-dir . -- python jobs/describe.py …`."""

import sys

from ray_recsys.cli import main

if __name__ == "__main__":
    sys.exit(main(["describe", *sys.argv[1:], "--json"]))
