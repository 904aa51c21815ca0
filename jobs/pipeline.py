"""Job of `ray-recsys pipeline`, with its options: `ray job submit --working-dir . -- python jobs/pipeline.py …`."""

import sys

from ray_recsys.cli import main

if __name__ == "__main__":
    sys.exit(main(["pipeline", *sys.argv[1:], "--json"]))
