"""Locations, files in an object store, pointers with compare-and-swap: against an S3-compatible server on loopback."""

import pickle
from pathlib import Path

import pytest
from pydantic import BaseModel

from ray_recsys.errors import AccessError, ConflictError, IntegrityError, StorageError
from ray_recsys.storage import location
from ray_recsys.storage.files import (
    check_name,
    delete_file,
    delete_tree,
    exists,
    is_file,
    list_folder,
    list_tree,
    open_input,
    read_bytes,
    read_text,
    write_bytes,
    written_file,
)
from ray_recsys.storage.location import Location
from ray_recsys.storage.pointers import create_file, read_pointer, replace_pointer
from tests.object_store import Faults, faulty, first, forget_clients, use_store


class Holder(BaseModel):
    at: Location


def test_a_path_and_a_uri_print_as_they_were_given(tmp_path: Path) -> None:
    assert str(Location.of(tmp_path) / "a" / "b.txt") == f"{tmp_path}/a/b.txt"
    assert Location.of(f"file://{tmp_path}/x%20y") == Location.of(tmp_path / "x y")
    given = Location.of("s3://bucket/runs/?endpoint_override=127.0.0.1:9000&scheme=http")
    assert str(given / "1") == "s3://bucket/runs/1?endpoint_override=127.0.0.1:9000&scheme=http"
    assert (given.name, given.parent.path, (given / "x.csv").suffix) == ("runs", "bucket", ".csv")
    assert pickle.loads(pickle.dumps(given)) == given
    assert Holder.model_validate(Holder(at=given).model_dump()).at == given
    assert Holder.model_validate_json(Holder(at=given).model_dump_json()).at == given
    with pytest.raises(TypeError, match="s3://bucket"):
        Path(given)


@pytest.mark.parametrize("uri", ["s3://AKIA:hunter2@bucket/x", "ftp://me:hunter2@host/x"])
def test_a_uri_with_a_secret_is_refused_without_printing_it(uri: str) -> None:
    with pytest.raises(AccessError) as error:
        Location.of(uri)
    assert "hunter2" not in str(error.value)


def test_an_unknown_scheme_or_option_is_refused() -> None:
    with pytest.raises(AccessError, match="nonsense://x"):
        is_file(Location.of("nonsense://x/y"))
    with pytest.raises(AccessError, match="secret_key"):
        is_file(Location.of("s3://x/y?secret_key=1"))


@pytest.mark.parametrize("kind", ["local", "s3", "memory"])
def test_files_are_written_read_listed_and_deleted(kind: str, bucket: Location, tmp_path: Path) -> None:
    root = {"local": Location.of(tmp_path), "s3": bucket, "memory": Location.of(f"memory://{bucket.path}")}[kind] / "r"
    assert not exists(root)
    assert list_folder(root) == list_tree(root) == []
    write_bytes(root / "a.txt", b"1")
    write_bytes(root / "a.txt", "zwei ü".encode())
    with written_file(root / "in" / "ner" / "b.bin") as path:
        path.write_bytes(bytes(range(256)) * 30_000)
    with pytest.raises(FileNotFoundError), written_file(root / "never") as path:
        (path.parent / "nothing").read_bytes()
    assert read_text(root / "a.txt") == "zwei ü"
    assert list_folder(root) == ["a.txt", "in"]
    assert list_tree(root) == ["a.txt", "in/ner/b.bin"]
    assert (exists(root / "in"), is_file(root / "in"), is_file(root / "a.txt")) == (True, False, True)
    with open_input(root / "in" / "ner" / "b.bin") as file:
        file.seek(7_679_999)
        assert file.read() == b"\xff"
    with pytest.raises(FileNotFoundError):
        read_bytes(root / "never")
    delete_file(root / "a.txt")
    delete_file(root / "a.txt")
    delete_tree(root / "in")
    delete_tree(root / "in")
    assert list_tree(root) == []


def test_a_server_that_fails_a_few_times_is_asked_again(
    s3_server: str, bucket: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults()
    with faulty(s3_server, faults) as endpoint:
        use_store(monkeypatch, endpoint, tmp_path / "cache")
        faults.answer = first(1, 500)
        write_bytes(bucket / "x", b"content")
        faults.answer = first(1, 503)
        assert read_bytes(bucket / "x") == b"content"
        faults.answer = first(1, 503, delay_s=1.0)
        assert read_pointer(bucket / "x").text == "content"


def test_a_server_that_keeps_failing_is_named(
    s3_server: str, bucket: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location, "_S3_ATTEMPTS", 2)  # backoff grows
    with faulty(s3_server, Faults(answer=first(10**6, 503))) as endpoint:
        use_store(monkeypatch, endpoint, tmp_path / "cache")
        with pytest.raises(StorageError, match=f"cannot read {bucket}/x"):
            read_bytes(bucket / "x")
    with pytest.raises(StorageError, match=f"cannot write {bucket}/x"):  # nobody listens there any more
        write_bytes(bucket / "x", b"1")


@pytest.mark.parametrize("status", [401, 403])
def test_wrong_credentials_are_named_and_never_shown(
    status: int, s3_server: str, bucket: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty(s3_server, Faults(answer=first(10**6, status))) as endpoint:
        use_store(monkeypatch, endpoint, tmp_path / "cache")
        for act in (
            lambda: read_bytes(bucket / "x"),
            lambda: write_bytes(bucket / "x", b"1"),
            lambda: read_pointer(bucket / "x"),
            lambda: create_file(bucket / "x", b"1"),
            lambda: list_tree(bucket / "x"),
        ):
            with pytest.raises(AccessError, match=f"{bucket}/x.*credentials") as error:
                act()
            assert "never-to-be-printed" not in str(error.value)


def test_missing_credentials_are_named(
    s3_server: str, bucket: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty(s3_server, Faults(answer=first(10**6, 403))) as endpoint:
        use_store(monkeypatch, endpoint, tmp_path / "cache")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        forget_clients()
        with pytest.raises(AccessError, match=f"{bucket}/x"):
            read_bytes(bucket / "x")
        with pytest.raises(AccessError, match=f"{bucket}/x"):
            create_file(bucket / "x", b"1")


@pytest.mark.usefixtures("bucket")
def test_a_missing_bucket_is_named() -> None:
    nowhere = Location.of("s3://no-such-bucket-at-all/x")
    with pytest.raises(AccessError, match="no-such-bucket-at-all"):
        write_bytes(nowhere, b"1")
    with pytest.raises(AccessError, match="no-such-bucket-at-all"):
        create_file(nowhere, b"1")


@pytest.mark.parametrize("kind", ["local", "s3", "memory"])
def test_only_one_of_two_writers_replaces_a_pointer(kind: str, bucket: Location, tmp_path: Path) -> None:
    root = {"local": Location.of(tmp_path), "s3": bucket, "memory": Location.of(f"memory://{bucket.path}")}[kind]
    pointer = root / "CURRENT"
    seen_by_both = read_pointer(pointer)
    assert seen_by_both.text is None
    now = replace_pointer(pointer, "first", seen_by_both)
    with pytest.raises(ConflictError, match="CURRENT"):
        replace_pointer(pointer, "second", seen_by_both)
    assert read_pointer(pointer) == now
    again = read_pointer(pointer)
    replace_pointer(pointer, "third", now)
    with pytest.raises(ConflictError):
        replace_pointer(pointer, "fourth", again)
    with pytest.raises(ConflictError):
        create_file(pointer, b"fifth")
    assert read_text(pointer) == "third"


def test_a_put_whose_answer_was_lost_is_no_conflict(bucket: Location) -> None:
    before = read_pointer(bucket / "CURRENT")
    write_bytes(bucket / "CURRENT", b"mine")  # the first try arrived
    assert replace_pointer(bucket / "CURRENT", "mine", before).text == "mine"


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "a\\b", "a\0b"])
def test_names_outside_an_artefact_are_refused(name: str) -> None:
    with pytest.raises(IntegrityError):
        check_name(name)
    assert check_name("users/part-00000.parquet") == "users/part-00000.parquet"
