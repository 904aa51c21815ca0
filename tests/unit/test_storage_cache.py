"""The cache of remote files on a node: downloaded once, verified, bounded, and safe under concurrent readers."""

import fcntl
import gc
import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ray_recsys.errors import IntegrityError, StageError
from ray_recsys.storage.cache import LIMIT_GB, LocalCopy, cache_directory, fetch
from ray_recsys.storage.files import write_bytes
from ray_recsys.storage.location import Location
from ray_recsys.storage.locks import lock_file
from tests.contracts import ROOT
from tests.object_store import Faults, faulty, use_store


def put(root: Location, **contents: bytes) -> dict[str, dict[str, Any]]:
    """Writes files; returns their entries in a manifest."""
    for name, content in contents.items():
        write_bytes(root / name, content)
    return {name: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in contents.items()}


def downloads(faults: Faults) -> list[str]:
    return sorted(path.rpartition("/")[2] for method, path in faults.seen if method == "GET")


def entries() -> set[str]:
    """Returns the names of all files in the cache's entries."""
    return {path.name for path in cache_directory().glob("*/*")}


def test_local_files_are_used_in_place(tmp_path: Path) -> None:
    files = put(Location.of(tmp_path), a=b"1")
    assert fetch(Location.of(tmp_path), files).path == tmp_path


def test_each_file_is_downloaded_once_by_many_readers_and_processes(
    s3_server: str, bucket: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = put(bucket, a=b"1" * 100_000, b=b"2")
    faults = Faults()
    with faulty(s3_server, faults) as endpoint:
        use_store(monkeypatch, endpoint, tmp_path / "cache")
        program = f"""
from ray_recsys.storage.cache import fetch
from ray_recsys.storage.location import Location
from ray_recsys.storage.locks import lock_file
print(fetch(Location.of({str(bucket)!r}), {files!r}).path)
"""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        others = [
            subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        with ThreadPoolExecutor(4) as threads:
            copies = list(threads.map(lambda _: fetch(bucket, files), range(4)))
        paths = {str(copy.path) for copy in copies} | {
            str(other.communicate(timeout=60)[0]).strip() for other in others
        }
    assert len(paths) == 1
    assert downloads(faults) == ["a", "b"]
    assert (copies[0].path / "a").read_bytes() == b"1" * 100_000


def test_a_cut_answer_is_asked_for_again_and_a_changed_file_refused(
    s3_server: str, bucket: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = put(bucket, a=b"content of a")
    left = [1]

    def damage(method: str, _path: str, body: bytes) -> bytes:
        left[0] -= method == "GET"
        return b"x" * len(body) if method == "GET" and left[0] >= 0 else body

    with faulty(s3_server, Faults(change=damage)) as endpoint:
        use_store(monkeypatch, endpoint, tmp_path / "cache")
        assert (fetch(bucket, files).path / "a").read_bytes() == b"content of a"
    use_store(monkeypatch, s3_server, tmp_path / "other")
    for content in (b"content of b", b"cont", b"content of a, and more"):
        write_bytes(bucket / "a", content)
        with pytest.raises(IntegrityError, match=f"{bucket}/a was truncated or changed"):
            fetch(bucket, files)
    with pytest.raises(IntegrityError, match="missing"):
        fetch(bucket / "nowhere", files)
    with pytest.raises(IntegrityError, match="/etc/passwd"):
        fetch(bucket, {"/etc/passwd": files["a"]})
    assert entries() == set()


def test_the_least_recently_used_entry_goes_first_but_never_one_in_use(
    bucket: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_GB, "0.000003")  # 3,000 bytes
    files = put(bucket, **{name: name.encode() * 1000 for name in "abcd"})

    def get(name: str) -> LocalCopy:
        return fetch(bucket, {name: files[name]})

    held = get("a")
    for name in ("b", "c"):
        get(name)
    lock = get("b").path.with_suffix(".lock")
    os.utime(lock, (2**31, 2**31))  # used last, whatever the clock's resolution
    get("d")
    assert entries() == {"a", "b", "d"}
    assert (held.path / "a").read_bytes() == b"a" * 1000
    kept = [held, get("b"), get("d")]
    with pytest.raises(StageError, match=r"1,000 more bytes do not fit into its 3,000.*RAY_RECSYS_CACHE_GB"):
        get("c")
    del held, kept
    gc.collect()
    assert (get("c").path / "c").is_file()
    assert len(entries()) == 3


def test_what_a_killed_process_was_downloading_is_removed(bucket: Location) -> None:
    files = put(bucket, a=b"1", b=b"2")
    left = cache_directory() / f".tmp-{'0' * 64}-abc"
    left.mkdir(parents=True)
    (left / "part").write_bytes(b"1")
    fetch(bucket, files)
    assert not left.exists()
    assert entries() == {"a", "b"}


def test_a_cache_of_somebody_else_is_not_used(
    bucket: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = put(bucket, a=b"1")
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: (tmp_path / "cache").stat().st_uid + 1)
    with pytest.raises(StageError, match="belongs to another user"):
        fetch(bucket, files)


def test_a_lock_on_a_file_that_its_last_holder_removed_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    removed: list[int] = []
    flock = fcntl.flock

    def remove_first(descriptor: int, kind: int) -> None:
        if not removed:
            path.unlink()
            removed.append(descriptor)
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    descriptor = lock_file(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert removed
    assert os.path.samestat(os.fstat(descriptor), path.stat())
    with pytest.raises(BlockingIOError):
        lock_file(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
