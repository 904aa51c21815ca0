"""Artefacts in an object store: the manifest comes last, and readers trust nothing that it does not list."""

import json
from pathlib import Path
from typing import Any

import pytest

from ray_recsys.core import artifact, artifact_writer
from ray_recsys.core.artifact import (
    MANIFEST,
    digest_file,
    local_copy,
    read_kind,
    read_manifest,
    refuse_unlisted,
    write_manifest,
)
from ray_recsys.core.artifact_writer import atomic_directory, draft
from ray_recsys.errors import ArtifactError, ConflictError, IntegrityError, StorageError
from ray_recsys.storage import pointers
from ray_recsys.storage.files import delete_tree, list_folder, list_tree, read_bytes, write_bytes, written_file
from ray_recsys.storage.location import Location
from tests.object_store import Faults, faulty, use_store


def write(root: Location, content: bytes) -> None:
    """Writes an artefact of two files, as tasks on other nodes would, and its manifest."""
    digests = {}
    for name in ("a.bin", "in/b.bin"):
        with written_file(root / name, durable=False) as path:
            path.write_bytes(content)
            digests[name] = digest_file(path)
    write_manifest(root, kind="thing", schema_version=1, body={}, digests=digests)


def content(location: Location) -> bytes:
    manifest = read_manifest(location, kind="thing", schema_version=1)
    copy = local_copy(location / manifest.get("parts", ""), manifest["files"])
    assert sorted(manifest["files"]) == ["a.bin", "in/b.bin"]
    assert (copy.path / "in" / "b.bin").read_bytes() == (copy.path / "a.bin").read_bytes()
    return (copy.path / "a.bin").read_bytes()


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_a_draft_appears_with_its_manifest_and_replaces_the_old_one_whole(
    kind: str, bucket: Location, tmp_path: Path
) -> None:
    final = (Location.of(tmp_path) if kind == "local" else bucket) / "set"
    with draft(final) as root:
        write(root, b"old")
        assert read_kind(final) is None
    assert content(final) == b"old"
    with pytest.raises(ArtifactError, match="exists already"), draft(final):
        pass
    with draft(final, overwrite=True) as root:
        write(root, b"new")
        assert content(final) == b"old"
    assert content(final) == b"new"
    assert len([name for name in list_tree(final) if name.endswith("a.bin")]) == 1  # the old parts are gone
    with pytest.raises(FileNotFoundError), draft(final, overwrite=True) as root:
        read_bytes(root / "nothing")
    assert content(final) == b"new"


def test_a_directory_is_uploaded_with_its_manifest_last(
    s3_server: str, bucket: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults()
    with faulty(s3_server, faults) as endpoint:
        use_store(monkeypatch, endpoint, tmp_path / "cache")
        with atomic_directory(bucket / "run") as directory:
            write(Location.of(directory), b"1")
        puts = [path.partition("?")[0].partition("/run/")[2] for method, path in faults.seen if method == "PUT"]
        assert sorted(puts[:-1]) == ["a.bin", "in/b.bin"]
        assert puts[-1] == MANIFEST
        assert content(bucket / "run") == b"1"
        with pytest.raises(ArtifactError, match="exists already"), atomic_directory(bucket / "run"):
            pass


def test_an_upload_that_ends_before_its_manifest_leaves_nothing_readable(
    s3_server: str, bucket: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(answer=lambda method, path: 400 if method == "PUT" and MANIFEST in path else None)
    with faulty(s3_server, faults) as endpoint:
        use_store(monkeypatch, endpoint, tmp_path / "cache")
        with pytest.raises(StorageError, match=MANIFEST), atomic_directory(bucket / "run") as directory:
            write(Location.of(directory), b"1")
    use_store(monkeypatch, s3_server, tmp_path / "cache")
    assert list_tree(bucket / "run") == ["a.bin", "in/b.bin"]
    with pytest.raises(ArtifactError, match="has no manifest"):
        content(bucket / "run")
    with atomic_directory(bucket / "run") as directory:  # and does not stand in the way
        write(Location.of(directory), b"2")
    assert content(bucket / "run") == b"2"


def test_of_two_writers_the_second_is_told(bucket: Location) -> None:
    second = draft(bucket / "set")
    mine = second.__enter__()
    with draft(bucket / "set") as theirs:
        write(theirs, b"theirs")
    write(mine, b"mine")
    with pytest.raises(ConflictError, match=f"{bucket}/set/manifest.json"):
        second.__exit__(None, None, None)
    assert content(bucket / "set") == b"theirs"


def test_readers_and_writers_do_not_need_a_listing_that_is_up_to_date(
    s3_server: str, bucket: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = b'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>'
    faults = Faults(change=lambda method, path, body: empty if method == "GET" and "list-type" in path else body)
    with faulty(s3_server, faults) as endpoint:
        use_store(monkeypatch, endpoint, tmp_path / "cache")
        for step, overwrite in ((b"1", False), (b"2", True)):
            with draft(bucket / "set", overwrite=overwrite) as root:
                write(root, step)
            assert list_folder(bucket / "set") == []
            assert content(bucket / "set") == step


def test_parts_of_a_killed_writer_are_removed_after_a_day(bucket: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(bucket / "set" / "parts-killed" / "a.bin", b"1")
    with draft(bucket / "set") as root:
        write(root, b"1")
    assert "parts-killed" in list_folder(bucket / "set")  # its writer may still be at work
    monkeypatch.setattr(artifact_writer, "_ABANDONED_S", -60.0)  # as if a day had passed
    with draft(bucket / "set", overwrite=True) as root:
        write(root, b"2")
    assert "parts-killed" not in list_folder(bucket / "set")
    assert content(bucket / "set") == b"2"


@pytest.mark.parametrize("kind", ["local", "s3"])
@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "in/../../outside"])
def test_a_manifest_that_names_files_outside_is_refused(name: str, kind: str, bucket: Location, tmp_path: Path) -> None:
    root = (Location.of(tmp_path) if kind == "local" else bucket) / "set"
    (tmp_path / "outside").write_bytes(b"1")
    digests = {name: digest_file(tmp_path / "outside")}
    with draft(root) as unfinished:
        write_manifest(unfinished, kind="thing", schema_version=1, body={}, digests=digests)
        if kind == "local":
            sign(Path(unfinished) / MANIFEST, {name: {"bytes": 1, "sha256": digests[name].sha256}})
    with pytest.raises(IntegrityError, match="is no name of a file"):
        read_manifest(root, kind="thing", schema_version=1)


def sign(path: Path, files: dict[str, object]) -> None:
    """Gives a manifest other files and the digest that belongs to them, as an attacker could."""
    manifest = json.loads(path.read_text())
    del manifest["manifest_sha256"]
    manifest["files"] = files
    manifest["manifest_sha256"] = artifact._digest_json(manifest)
    path.write_text(json.dumps(manifest) + "\n")


def test_links_and_unlisted_files_are_refused(tmp_path: Path) -> None:
    with draft(tmp_path / "set") as root:
        write(root, b"1")
    directory = tmp_path / "set"
    files = read_manifest(directory, kind="thing", schema_version=1)["files"]
    refuse_unlisted(directory, files)
    (directory / "index.faiss").write_bytes(b"1")
    with pytest.raises(IntegrityError, match=r"index\.faiss is not listed"):
        refuse_unlisted(directory, files)
    for name in ("a.bin", "in"):
        moved = tmp_path / f"moved-{name}"
        (directory / name).rename(moved)
        (directory / name).symlink_to(moved)
        with pytest.raises(IntegrityError, match="is a link, or in a folder that is one"):
            read_manifest(directory, kind="thing", schema_version=1)
        (directory / name).unlink()
        moved.rename(directory / name)
    (tmp_path / "link").symlink_to(directory)  # the artefact itself may be reached through one
    assert content(Location.of(tmp_path / "link")) == b"1"
    delete_tree(Location.of(directory))


def test_a_manifest_that_arrived_although_its_upload_seemed_to_fail_keeps_its_files(
    bucket: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrives = pointers.replace_pointer

    def loses_the_answer(*args: Any) -> None:
        arrives(*args)
        raise StorageError("no answer")

    monkeypatch.setattr(artifact_writer, "replace_pointer", loses_the_answer)
    with pytest.raises(StorageError, match="no answer"), draft(bucket / "set") as root:
        write(root, b"1")
    assert content(bucket / "set") == b"1"
