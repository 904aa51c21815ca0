"""The audit of a whole set gives the same report on Ray as in this process."""

from dataclasses import replace
from pathlib import Path

import pytest

from ray_recsys.config import ClusterRecipe
from ray_recsys.core.histories import Histories
from ray_recsys.core.inspecting.audit import audit
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.distributed.executor import RayExecutor
from tests.executors import EXECUTOR
from tests.factories import make_prepared_set, rewrite_partitions

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def leak(histories: Histories) -> Histories:
    """Holds out every user's first training item."""
    first = histories.training.item_idx[histories.training.offsets[:-1]]
    return replace(histories, validation=replace(histories.validation, item_idx=first))


def test_a_clean_and_a_leaking_set(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "prepared", num_partitions=10)
    executor = RayExecutor("audit", ClusterRecipe())
    clean = audit(prepared.path, executor)
    assert clean.passed
    assert clean == audit(prepared.path, EXECUTOR)
    rewrite_partitions(prepared, leak)
    leaking = audit(prepared.path, executor)
    assert [(finding.fault, finding.count) for finding in leaking.findings] == [
        ("training pairs in the validation", 60)
    ]
    assert leaking == audit(PreparedSet.open(prepared.path).path, EXECUTOR)
