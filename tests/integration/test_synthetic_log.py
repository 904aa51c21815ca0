"""The synthetic log is the same folder whoever writes it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_recsys.datasets.synthetic import synthetic_block
from ray_recsys.distributed.synthetic import write_synthetic
from ray_recsys.errors import ArtifactError
from ray_recsys.progress import Event

pytestmark = pytest.mark.ray


@pytest.mark.usefixtures("ray_session")
def test_a_log_is_written_through_ray_data(tmp_path: Path) -> None:
    lines: list[Event] = []
    log = write_synthetic(
        tmp_path / "log", num_interactions=5_003, num_users=90, num_items=40, num_files=3, report=lines.append
    )
    files = sorted((tmp_path / "log").iterdir())
    assert [f.name for f in files] == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert pa.concat_tables(pq.read_table(f) for f in files).equals(
        pa.concat_tables(synthetic_block(log, block) for block in range(3))
    )
    assert "5,003" in lines[-1]
    with pytest.raises(ArtifactError, match="exists already"):
        write_synthetic(tmp_path / "log", num_interactions=10, num_users=9, num_items=4)
