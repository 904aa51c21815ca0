"""Job of `ray-recsys audit`, with its options: `ray job submit --working-dir . -- python jobs/audit.py …`."""

import sys

from ray_recsys.cli import main

if __name__ == "__main__":
    sys.exit(main(["audit", *sys.argv[1:], "--json"]))
