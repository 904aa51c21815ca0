"""Job of `ray-recsys train`, with its options: `ray job submit --working-dir . -- python jobs/train.py …`."""

import sys

from ray_recsys.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:], "--json"]))
