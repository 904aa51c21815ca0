"""Job of `ray-recsys prepare`, with its options: `ray job submit --working-dir . -- python jobs/prepare.py …`."""

import sys

from ray_recsys.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:], "--json"]))
