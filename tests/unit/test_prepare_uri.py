"""`prepare` reads a log by URI, through pyarrow's file systems and fsspec's."""

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ray_recsys.config import Recipe
from ray_recsys.core.prepared import PreparedManifest
from ray_recsys.core.preparing.pipeline import prepare
from ray_recsys.errors import DataError
from tests.executors import EXECUTOR


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keeps stderr clean."""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    folder = tmp_path / "log"
    folder.mkdir()
    rows = [(u, 100 + (u + j) % 6, 1_000_000_000 + 10 * u + j) for u in range(1, 9) for j in range(4)]
    table = pa.table(dict(zip(("user_id", "item_id", "timestamp"), zip(*rows, strict=True), strict=True)))
    pq.write_table(table, folder / "log.parquet")
    pyarrow.csv.write_csv(table, folder / "log.csv")
    return folder


@pytest.fixture
def server(log: Path) -> Iterator[str]:
    """Serves the log's folder over HTTP; the standard library's server knows no ranges."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(log))) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def counts(manifest: PreparedManifest) -> tuple[int, int, int]:
    return manifest.rows_kept, manifest.num_users, manifest.num_items


@pytest.mark.parametrize("name", ["log.csv", "log.parquet", ""])
def test_a_file_uri(log: Path, tmp_path: Path, name: str) -> None:
    if not name:
        (log / "log.csv").unlink()
    assert counts(prepare([f"file://{log}/{name}"], tmp_path / "out", Recipe(), EXECUTOR)) == (32, 8, 6)


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
def test_a_file_over_http(server: str, tmp_path: Path, name: str) -> None:
    assert counts(prepare([f"{server}/{name}"], tmp_path / "out", Recipe(), EXECUTOR)) == (32, 8, 6)


def test_what_is_not_there_over_http(server: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{server}/other\.csv does not exist"):
        prepare([f"{server}/other.csv"], tmp_path / "out", Recipe(), EXECUTOR)
