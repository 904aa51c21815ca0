"""Job of `ray-recsys compare`, with its options: `ray job submit --working-dir . -- python jobs/compare.py …`."""

import sys

from ray_recsys.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:], "--json"]))
