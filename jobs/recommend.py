"""Job of `ray-recsys recommend`, with its options: `ray job submit --working-dir . -- python jobs/recommend.py …`."""

import sys

from ray_recsys.cli import main

if __name__ == "__main__":
    sys.exit(main(["recommend", *sys.argv[1:], "--json"]))
