"""Fixtures that every tier shares."""

from collections.abc import Iterator

import pytest

from ray_recsys.distributed.cluster import connect


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for the whole test session; 4 logical CPUs so that trainers and Ray Data fit beside each other."""
    with connect("local", num_cpus=4):
        yield
