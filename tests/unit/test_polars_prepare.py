"""The yardstick of `prepare_scale` does the same job: the same items and histories as prepare, value for value."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.polars_prepare import polars_prepare
from ray_recsys.config import PrepareRecipe, Recipe
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.preparing.pipeline import prepare
from ray_recsys.datasets.synthetic import SyntheticLog, write_block
from tests.executors import EXECUTOR

LOG = SyntheticLog(num_interactions=20_000, num_users=700, num_items=200, num_files=2, dirty_share=0.1, seed=5)


def test_items_and_histories_are_those_of_prepare(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    for block in range(LOG.num_files):
        write_block(LOG, log, block)
    rules = PrepareRecipe(min_interactions_per_user=5, min_interactions_per_item=5, deduplicate="last")
    manifest = prepare([str(log)], tmp_path / "prepared", Recipe(prepare=rules), EXECUTOR)
    counts = polars_prepare(log, tmp_path, min_interactions=5)
    assert counts == {name: getattr(manifest, name) for name in counts}
    prepared = PreparedSet.open(tmp_path / "prepared")
    items = prepared.read_items()
    assert pq.read_table(tmp_path / "items.parquet").cast(items.schema).equals(items)
    tables = [pq.read_table(prepared.path / partition.file) for partition in prepared.manifest.partitions]
    ours = pa.concat_tables(tables).drop_columns("user_idx").sort_by("user_id")
    theirs = pq.read_table(tmp_path / "users.parquet").drop_columns("user_idx").sort_by("user_id")
    assert ours.num_rows > 300
    assert theirs.to_pydict() == ours.to_pydict()
