"""Writes a synthetic log of any size through Ray Data: one task a file, nothing but row counts comes back.

Does not know what is in a block: see `ray_recsys.datasets.synthetic`.
"""

from pathlib import Path

from ray_recsys.core.artifact import atomic_directory
from ray_recsys.datasets.synthetic import ROWS_PER_FILE, SyntheticLog, write_block
from ray_recsys.distributed.executor import run_tasks
from ray_recsys.distributed.resources import DEFAULT_CLUSTER, require_cpu
from ray_recsys.errors import StageError
from ray_recsys.progress import Reporter, silent


def write_synthetic(
    output: Path,
    *,
    num_interactions: int,
    num_users: int,
    num_items: int,
    num_files: int | None = None,
    dirty_share: float = 0.0,
    seed: int = 0,
    overwrite: bool = False,
    report: Reporter = silent,
) -> SyntheticLog:
    """Writes a log as a folder of Parquet files; the same bytes on every cluster.

    Args:
        output: Folder that appears when the log is complete.
        num_interactions: Rows in all, dirty ones included.
        num_users: Users that can occur.
        num_items: Items that can occur.
        num_files: None: one file per million rows.
        dirty_share: Share of rows with a null id, no or a bad time, or that repeat another row.
        seed: Another seed is another log.
        overwrite: Whether an existing folder is replaced.
        report: Gets a line at start and end.

    Raises:
        ArtifactError: `output` exists and `overwrite` is false.
        ClusterError: No CPU is free.
        StageError: A task wrote another number of rows than asked for.
    """
    files = num_files or -(-num_interactions // ROWS_PER_FILE)
    log = SyntheticLog(num_interactions, num_users, num_items, files, dirty_share, seed)
    require_cpu("synthetic", DEFAULT_CLUSTER, report=report)
    report(f"writing {num_interactions:,} interactions to {files:,} files")
    with atomic_directory(output, overwrite=overwrite) as staging:
        tasks = run_tasks(lambda block: write_block(log, block, staging), files, stage=f"writing {output}")
        written = sum(tasks)
        if written != num_interactions:
            raise StageError(f"{output}: {written:,} rows were written instead of {num_interactions:,}")
    report(f"wrote {written:,} interactions")
    return log
