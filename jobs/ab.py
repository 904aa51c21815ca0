"""Job of `ray-recsys ab`, with its options: `ray job submit --working-dir . -- python jobs/ab.py …`."""

import sys

from ray_recsys.cli import main

if __name__ == "__main__":
    sys.exit(main(["ab", *sys.argv[1:], "--json"]))
