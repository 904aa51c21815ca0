"""Fixtures that every tier shares."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from ray_recsys.distributed.cluster import connect
from ray_recsys.storage import cache
from ray_recsys.storage.location import Location
from tests.object_store import CREDENTIALS, forget_clients, new_bucket, object_store, use_store

settings.register_profile("project", deadline=None)  # a busy machine is slow, not wrong
settings.load_profile("project")


@pytest.fixture(scope="session", autouse=True)
def no_credentials(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Gives this process, and those of Ray that it starts, credentials that are good for the test's server alone."""
    os.environ.update(CREDENTIALS, **{cache.DIRECTORY: str(tmp_path_factory.mktemp("cache"))})


@pytest.fixture(scope="session")
def ray_session(no_credentials: None) -> Iterator[None]:  # noqa: ARG001 - before Ray's processes start
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
