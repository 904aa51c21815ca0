"""Job of `ray-recsys score`, with its options: `ray job submit --working-dir . -- python jobs/score.py …`."""

import sys

from ray_recsys.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:], "--json"]))
