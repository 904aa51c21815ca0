"""Fixtures that every tier shares."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from ray_recsys.distributed.cluster import connect

settings.register_profile("project", deadline=None)  # a busy machine is slow, not wrong
settings.load_profile("project")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for the whole test session; 4 logical CPUs so that trainers and Ray Data fit beside each other."""
    with connect("local", num_cpus=4):
        yield
