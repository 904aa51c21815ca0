"""An artefact is there whole or not at all, and a damaged one is refused by the name of the file."""

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_recsys.core.artifact import MANIFEST, FileDigest, digest_file, read_manifest, verify_file, write_manifest
from ray_recsys.core.artifact_writer import atomic_directory
from ray_recsys.errors import ArtifactError, IntegrityError, SchemaVersionError


def write(directory: Path, content: bytes = b"0123456789") -> None:
    (directory / "sub").mkdir()
    (directory / "sub" / "data.bin").write_bytes(content)
    write_manifest(directory, kind="bundle", schema_version=3, body={"answer": 42})


def make(path: Path) -> Path:
    with atomic_directory(path) as staging:
        write(staging)
    return path


def read(path: Path) -> None:
    manifest = read_manifest(path, kind="bundle", schema_version=3)
    for name, entry in manifest["files"].items():
        verify_file(path, name, entry)


def test_round_trip(tmp_path: Path) -> None:
    path = make(tmp_path / "deep" / "artefact")
    read(path)
    manifest = read_manifest(path, kind="bundle", schema_version=3)
    digest = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"  # sha256sum of 0123456789
    assert manifest["answer"] == 42
    assert manifest["files"] == {"sub/data.bin": {"bytes": 10, "sha256": digest}}
    assert [entry.name for entry in path.parent.iterdir()] == ["artefact"]


def test_error_inside_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_directory(tmp_path / "artefact") as staging:
            write(staging)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def _killed(path: Path) -> None:
    with atomic_directory(path) as staging:
        write(staging)
        os.kill(os.getpid(), signal.SIGKILL)


def test_process_killed_inside_leaves_nothing_readable(tmp_path: Path) -> None:
    path = tmp_path / "artefact"
    process = multiprocessing.get_context("spawn").Process(target=_killed, args=(path,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(ArtifactError, match="artefact"):
        read(path)
    read(make(path))  # what was left is in nobody's way


def test_existing_artefact_is_kept_unless_overwritten(tmp_path: Path) -> None:
    path = make(tmp_path / "artefact")
    with pytest.raises(ArtifactError, match=r"artefact exists already; give another directory"), atomic_directory(path):
        pass
    with atomic_directory(path, overwrite=True) as staging:
        write(staging, b"new")
        read(path)  # the old one stays readable until the new one is complete
    read(path)
    assert (path / "sub" / "data.bin").read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["artefact"]


def test_failed_overwrite_keeps_the_old_one(tmp_path: Path) -> None:
    path = make(tmp_path / "artefact")

    def fail() -> None:
        with atomic_directory(path, overwrite=True):
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    read(path)


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    path = tmp_path / "artefact"

    def race() -> None:
        with atomic_directory(path) as late:
            write(late, b"late")
            make(path)

    with pytest.raises(ArtifactError, match="exists already"):
        race()
    read(path)
    assert (path / "sub" / "data.bin").read_bytes() == b"0123456789"


def _edit_manifest(**changes: object) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        file = path / MANIFEST
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


def _write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "truncated": (
        _write("sub/data.bin", b"01234"),
        IntegrityError,
        r"data\.bin was truncated or changed: it has 5 bytes, not 10",
    ),
    "one byte": (
        _write("sub/data.bin", b"0123456788"),
        IntegrityError,
        r"data\.bin was changed: its content does not match",
    ),
    "missing": (lambda path: (path / "sub/data.bin").unlink(), IntegrityError, r"data\.bin is missing"),
    "no manifest": (
        lambda path: (path / MANIFEST).unlink(),
        ArtifactError,
        r"artefact is not a bundle: it has no manifest\.json",
    ),
    "cut manifest": (_write(MANIFEST, b'{"kind": "bun'), IntegrityError, r"cannot read .*manifest\.json"),
    "binary manifest": (_write(MANIFEST, b"\xff\xfe\x00"), IntegrityError, r"cannot read .*manifest\.json"),
    "manifest short of a byte": (
        lambda path: (path / MANIFEST).write_bytes((path / MANIFEST).read_bytes()[:-1]),
        IntegrityError,
        r"manifest\.json was changed",
    ),
    "list manifest": (_write(MANIFEST, b"[]"), ArtifactError, "artefact is of kind None"),
    "other kind": (_edit_manifest(kind="run"), ArtifactError, "artefact is of kind 'run', not 'bundle'"),
    "other version": (
        _edit_manifest(schema_version=2),
        SchemaVersionError,
        r"manifest\.json has schema version 2, but .* reads 3; create the bundle again with this version",
    ),
    "edited body": (_edit_manifest(answer=43), IntegrityError, r"manifest\.json was changed"),
    "file struck out": (_edit_manifest(files={}), IntegrityError, r"manifest\.json was changed"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_with_the_name_of_the_file(tmp_path: Path, damage: str) -> None:
    inflict, error, message = DAMAGE[damage]
    path = make(tmp_path / "artefact")
    inflict(path)
    with pytest.raises(error, match=message):
        read(path)


def test_any_changed_byte_of_the_manifest_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "artefact")
    content = (path / MANIFEST).read_bytes()
    whole = json.loads(content)
    for position in range(0, len(content), 7):
        changed = content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        (path / MANIFEST).write_bytes(changed)
        try:
            is_same = json.loads(changed) == whole  # white space may change
        except ValueError:
            is_same = False
        if not is_same:
            with pytest.raises(ArtifactError):
                read(path)


def test_known_digests_are_taken_over_and_outsiders_left_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "left").write_bytes(b"b")
    known = FileDigest(1, "known")
    write_manifest(tmp_path, kind="run", schema_version=1, body={}, digests={"a": known}, exclude=["logs"])
    files = read_manifest(tmp_path, kind="run", schema_version=1)["files"]
    assert files == {"a": {"bytes": 1, "sha256": "known"}}
    assert digest_file(tmp_path / "a") != known


def test_what_a_killed_writer_left_is_removed_but_a_living_ones_directory_is_not(tmp_path: Path) -> None:
    abandoned, other = tmp_path / ".final.tmp-0123456789ab", tmp_path / ".other.tmp-0123456789ab"
    for path in (abandoned, other):
        path.mkdir()
        (path / "half").write_text("x", encoding="utf8")
    with atomic_directory(tmp_path / "final") as living:
        assert not abandoned.exists()
        assert other.exists(), "of another artefact"
        with atomic_directory(tmp_path / "final") as second:
            assert living.exists()
            assert second != living
            (living / "file").write_text("x", encoding="utf8")
        shutil.rmtree(tmp_path / "final")
    assert (tmp_path / "final" / "file").exists()
