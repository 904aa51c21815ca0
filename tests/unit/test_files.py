"""A file appears complete or not at all, whatever happens to its writer."""

from pathlib import Path

import pytest

from ray_recsys.storage.files import atomic_file


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_appears_when_it_is_complete(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old", encoding="utf8")
    with atomic_file(path, durable=durable) as unfinished:
        unfinished.write_text("new", encoding="utf8")
        assert path.read_text(encoding="utf8") == "old"
        assert unfinished.parent == tmp_path
        assert unfinished.name.startswith(".")
    assert path.read_text(encoding="utf8") == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_alone_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old", encoding="utf8")

    def fail() -> None:
        with atomic_file(path) as unfinished:
            unfinished.write_text("half", encoding="utf8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text(encoding="utf8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_wrote_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "file"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_file(path) as first, atomic_file(path) as second:
        first.write_text("first", encoding="utf8")
        second.write_text("second", encoding="utf8")
    assert path.read_text(encoding="utf8") == "first", "the last to finish"
    assert list(tmp_path.iterdir()) == [path]
