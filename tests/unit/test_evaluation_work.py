"""Units of an evaluation: a process loads the model once, and each partition once, with the columns that count."""

from pathlib import Path

import pytest
from pyarrow import parquet

from ray_recsys.config import Recipe
from ray_recsys.core.evaluation.metrics import MetricSums
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.training.trained_model import TrainedModel
from ray_recsys.distributed import evaluation_work
from ray_recsys.distributed.evaluation_work import SplitUsers, _UnitTask
from tests.bundles import random_model
from tests.factories import make_prepared_set


def test_a_unit_is_bounded_and_what_units_share_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = make_prepared_set(tmp_path / "set", num_users=60, num_partitions=3)
    monkeypatch.setattr(evaluation_work, "_USERS_PER_UNIT", 8)
    loads: list[Path] = []
    reads: list[tuple[str, list[str]]] = []
    read_table = parquet.read_table

    def load(self: TrainedModel) -> NeuMF:
        loads.append(self.path)
        return random_model(60, 40)

    def read(path: Path, columns: list[str]) -> object:
        reads.append((path.name, columns))
        return read_table(path, columns=columns)

    monkeypatch.setattr(TrainedModel, "load", load)
    monkeypatch.setattr("pyarrow.parquet.read_table", read)
    work = SplitUsers(prepared, Recipe(), "test")
    trained = TrainedModel(tmp_path, tmp_path, 60, 40, "factory")
    task = _UnitTask(work, trained, prepared.path, seed=1, num_at_once=1, evaluation="first")
    sums = [task(unit)["NeuMF"] for unit in range(work.num_units)]
    assert [part.num_users for part in sums] == [8, 8, 4] * 3
    assert MetricSums.total(sums).num_held_out == 60
    assert len(loads) == 1
    partitions = [read for read in reads if read[0].startswith("part-")]
    assert [name for name, _ in partitions] == [f"part-0000{p}.parquet" for p in range(3)]
    assert all("user_id" not in columns and "timestamp_s" not in columns for _, columns in partitions)
    _UnitTask(work, trained, prepared.path, seed=1, num_at_once=1, evaluation="second")(0)
    assert len(loads) == 2
