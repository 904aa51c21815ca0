"""Fixtures that every tier shares."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from ray_recsys.distributed.cluster import connect
from ray_recsys.storage.location import Location
from tests.object_store import forget_clients, new_bucket, object_store, use_store

settings.register_profile("project", deadline=None)  # a busy machine is slow, not wrong
settings.load_profile("project")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for the whole test session; 4 logical CPUs so that trainers and Ray Data fit beside each other."""
    with connect("local", num_cpus=4):
        yield


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of one S3-compatible server for the whole test session."""
    with object_store() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Location]:
    """A new, empty bucket, to which this process has credentials; with a cache of its own."""
    use_store(monkeypatch, s3_server, tmp_path / "cache")
    yield Location.of(f"s3://{new_bucket(s3_server)}")
    forget_clients()
