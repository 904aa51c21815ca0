"""Job of `ray-recsys tune`, with its options: `ray job submit --working-dir . -- python jobs/tune.py …`."""

import sys

from ray_recsys.cli import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:], "--json"]))
