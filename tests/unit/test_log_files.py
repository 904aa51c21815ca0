"""Byte ranges of a text file share its lines out, each to one range; files are found wherever they are given."""

import bz2
import gzip
import itertools
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_recsys.core.preparing import log_files
from ray_recsys.core.preparing.log_files import LogFile, iter_line_blocks, list_log_files
from ray_recsys.errors import DataError

CONTENT = st.text(st.sampled_from("ab\n"), max_size=60).map(str.encode)


def file_of(path: Path, content: bytes) -> LogFile:
    path.write_bytes(content)
    (file,) = list_log_files([str(path)], "csv")
    return file


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONTENT, st.lists(st.integers(0, 70), max_size=4), st.integers(1, 9))
def test_ranges_share_the_lines_out(tmp_path: Path, content: bytes, cuts: list[int], block_bytes: int) -> None:
    file = file_of(tmp_path / "log.csv", content)
    bounds = [0, *sorted(cuts), max(len(content), *cuts, 0)]
    ranges = [
        list(iter_line_blocks(file, start, stop, block_bytes=block_bytes)) for start, stop in itertools.pairwise(bounds)
    ]
    assert b"".join(block for blocks in ranges for block in blocks) == content
    start = 0
    for (low, high), blocks in zip(itertools.pairwise(bounds), ranges, strict=True):
        for block in blocks:
            assert block.endswith(b"\n") or start + len(block) == len(content), "complete lines"
            starts = [start, *(start + i + 1 for i, byte in enumerate(block[:-1]) if byte == ord("\n"))]
            assert all(low <= begin < high for begin in starts), "that begin in the range"
            start += len(block)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    assert list(iter_line_blocks(file_of(tmp_path / "a.csv", b"\xef\xbb\xbfa\nb"), 0, None)) == [b"a\n", b"b"]


@pytest.mark.parametrize(("ending", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_a_compressed_file_is_read_and_a_damaged_one_refused(tmp_path: Path, ending: str, compress: object) -> None:
    assert callable(compress)
    packed = compress(b"user_id\n" * 10_000)
    path = tmp_path / f"log.csv{ending}"
    assert b"".join(iter_line_blocks(file_of(path, packed), 0, None)) == b"user_id\n" * 10_000
    with pytest.raises(DataError, match=rf"cannot read .*log\.csv\{ending}"):
        list(iter_line_blocks(file_of(path, packed[: len(packed) // 2]), 0, None))


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "_MAX_LINE_BYTES", 1 << 20)
    file = file_of(tmp_path / "log.csv", b"x" * (3 << 20))
    with pytest.raises(DataError, match=r"log\.csv has a line longer than 1 MiB; check that it is a text file"):
        list(iter_line_blocks(file, 0, None, block_bytes=1 << 20))


class TestListing:
    def test_folders_files_and_uris_once_each_and_in_order(self, tmp_path: Path) -> None:
        (tmp_path / "log" / "inner").mkdir(parents=True)
        (tmp_path / "log" / "_temporary").mkdir()
        for name in ("b.csv", "a.parquet", ".hidden.csv", "notes.txt", "inner/c.jsonl.zst", "_temporary/d.csv"):
            (tmp_path / "log" / name).touch()
        found = list_log_files([str(tmp_path / "log"), str(tmp_path / "log" / "b.csv")], "auto")
        assert [(Path(file.uri).name, file.format, file.compression) for file in found] == [
            ("a.parquet", "parquet", None),
            ("b.csv", "csv", None),
            ("c.jsonl.zst", "jsonl", "zstd"),
        ]
        given = list_log_files([f"file://{tmp_path}/log"], "auto")
        assert [file.uri for file in given] == [f"file://{file.uri}" for file in found]
        assert len(list_log_files([str(tmp_path / "log")], "tsv")) == 4, "of any ending, if the format is given"

    def test_a_changed_file_has_another_version(self, tmp_path: Path) -> None:
        before = file_of(tmp_path / "a.csv", b"1")
        assert file_of(tmp_path / "a.csv", b"12") != before
        assert pa.fs.LocalFileSystem().get_file_info(str(tmp_path / "a.csv")).size == 2

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"none\.csv does not exist; give an existing file, folder or URI"):
            list_log_files([str(tmp_path / "none.csv")], "auto")
        with pytest.raises(DataError, match=r"has no log file \(\.parquet, .*\); set input\.format"):
            list_log_files([str(tmp_path)], "auto")
        with pytest.raises(DataError, match="no log file at --input; give at least one file"):
            list_log_files([], "auto")
