"""One measured run of `prepare_scale`, in a separate process.

Takes ENGINE LOG OUTPUT and prints one JSON object; times are those of the job alone, without imports and the start of
Ray.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_recsys.config import ClusterRecipe, PrepareRecipe, Recipe

MIN_INTERACTIONS = 5


def run_prepare(log: Path, output: Path) -> dict[str, Any]:
    """Runs `prepare` on a local Ray that starts before the clock does."""
    from ray_recsys.core.preparing.pipeline import prepare
    from ray_recsys.distributed.cluster import connect
    from ray_recsys.distributed.executor import RayExecutor

    rules = PrepareRecipe(
        min_interactions_per_user=MIN_INTERACTIONS, min_interactions_per_item=MIN_INTERACTIONS, deduplicate="last"
    )
    with connect("local"):
        start_s = time.perf_counter()
        executor = RayExecutor("prepare", ClusterRecipe())
        manifest = prepare([str(log)], output / "prepared", Recipe(prepare=rules), executor)
        seconds = time.perf_counter() - start_s
        spilled = _spilled_bytes()
    names = ("num_users", "num_items", "num_training", "num_validation")
    return {"seconds": seconds, "spilled_bytes": spilled, "counts": {name: getattr(manifest, name) for name in names}}


def run_polars(log: Path, output: Path) -> dict[str, Any]:
    """Runs the same job in Polars."""
    from benchmarks.polars_prepare import polars_prepare

    start_s = time.perf_counter()
    counts = polars_prepare(log, output, min_interactions=MIN_INTERACTIONS)
    return {"seconds": time.perf_counter() - start_s, "spilled_bytes": 0, "counts": counts}


def run_synthetic(log: Path, output: Path) -> dict[str, Any]:
    """Writes the log that the other engines read; its folder is named after its size."""
    from ray_recsys.datasets.synthetic import write_synthetic
    from ray_recsys.distributed.cluster import connect
    from ray_recsys.distributed.executor import RayExecutor

    num_interactions = int(log.name)
    with connect("local"):
        start_s = time.perf_counter()
        write_synthetic(
            log,
            RayExecutor("synthetic", ClusterRecipe()),
            num_interactions=num_interactions,
            num_users=max(100, num_interactions // 50),
            num_items=100_000,
            dirty_share=0.01,
        )
    output.mkdir(exist_ok=True)
    return {"seconds": time.perf_counter() - start_s, "spilled_bytes": 0, "counts": {}}


def _spilled_bytes() -> int:
    from ray._private.internal_api import get_memory_info_reply
    from ray._private.state import state

    return int(get_memory_info_reply(state).store_stats.spilled_bytes_total)


ENGINES: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "prepare": run_prepare,
    "polars": run_polars,
    "synthetic": run_synthetic,
}

if __name__ == "__main__":
    engine, log_path, output_path = sys.argv[1:]
    print(json.dumps(ENGINES[engine](Path(log_path), Path(output_path))))
