"""Job of `ray-recsys doctor`, with its options: `ray job submit --working-dir . -- python jobs/doctor.py …`."""

import sys

from ray_recsys.cli import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:], "--json"]))
