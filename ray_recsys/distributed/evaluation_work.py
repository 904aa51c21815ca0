"""Work of an evaluation in units, a Ray Data task each; a process loads the model once.

Does not know what becomes of the sums.
"""

import os
import uuid
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from ray_recsys.config import Recipe
from ray_recsys.core.evaluation.baselines import Popularity, Random
from ray_recsys.core.evaluation.candidate_lists import CandidateLists
from ray_recsys.core.evaluation.metrics import MetricSums
from ray_recsys.core.evaluation.protocols import Split, evaluate_users
from ray_recsys.core.evaluation.scorer import Scorer
from ray_recsys.core.histories import Histories
from ray_recsys.core.models.neumf_scorer import NeuMFScorer
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.training.trained_model import TrainedModel
from ray_recsys.distributed.executor import run_tasks
from ray_recsys.progress import Reporter

_USERS_PER_UNIT = 1024
_COLUMNS = ["user_idx", "item_idx", "validation_item_idx", "test_item_idx"]

Sums = dict[str, MetricSums]
"""By name of the model."""


class Work(Protocol):
    """Users to evaluate, in units that may be done anywhere in any order."""

    @property
    def num_units(self) -> int:
        """How many there are."""
        ...

    def evaluate(self, unit: int, scorers: dict[str, Scorer]) -> Sums:
        """Returns the sums of a unit's users."""
        ...


@dataclass(frozen=True)
class SplitUsers:
    """All users of a prepared set; a unit is a range of a partition's users."""

    prepared: PreparedSet
    recipe: Recipe
    split: Split

    @property
    def num_units(self) -> int:
        """How many ranges there are."""
        return len(self._ranges)

    @cached_property
    def _ranges(self) -> list[tuple[int, int]]:
        """(partition, first row) of each unit."""
        partitions = enumerate(self.prepared.manifest.partitions)
        return [(number, row) for number, info in partitions for row in range(0, info.num_users, _USERS_PER_UNIT)]

    def evaluate(self, unit: int, scorers: dict[str, Scorer]) -> Sums:
        """Returns the sums of a unit's users."""
        partition, row = self._ranges[unit]
        file = self.prepared.manifest.partitions[partition].file
        table = _read_partition(self.prepared.path / file, self.prepared.files[file]["sha256"])
        histories = Histories.from_table(table.slice(row, _USERS_PER_UNIT))
        return {
            name: evaluate_users(
                scorer,
                histories,
                num_items=self.prepared.manifest.num_items,
                recipe=self.recipe.evaluate,
                split=self.split,
                seed=self.recipe.seed,
            )
            for name, scorer in scorers.items()
        }


@dataclass(frozen=True)
class GivenLists:
    """Candidate lists, in the object store; a unit is a range of them."""

    lists: "ray.ObjectRef[CandidateLists]"
    num_lists: int
    recipe: Recipe

    @property
    def num_units(self) -> int:
        """How many ranges there are."""
        return -(-self.num_lists // _USERS_PER_UNIT)

    def evaluate(self, unit: int, scorers: dict[str, Scorer]) -> Sums:
        """Returns the sums of a unit's lists."""
        given: CandidateLists = ray.get(self.lists)
        start = unit * _USERS_PER_UNIT
        numbers = np.arange(start, min(start + _USERS_PER_UNIT, self.num_lists))
        recipe, seed = self.recipe.evaluate, self.recipe.seed
        return {name: given.evaluate(s, numbers, recipe=recipe, seed=seed) for name, s in scorers.items()}


def run_work(work: Work, trained: TrainedModel, prepared: PreparedSet, seed: int, report: Reporter) -> Sums:
    """Returns the sums over all units, for the trained model, Popularity and Random."""
    num_at_once = max(1, min(work.num_units, int(ray.cluster_resources().get("CPU", 1))))
    task = _UnitTask(work, trained, prepared.path, seed, num_at_once, uuid.uuid4().hex)
    total: Sums = {}
    for sums in run_tasks(task, work.num_units, stage="evaluating"):
        total = _add(total, sums)
        report(f"{next(iter(total.values())).num_users:,} users ranked")
    return total


@dataclass(frozen=True, slots=True)
class _UnitTask:
    """Evaluates one unit."""

    work: Work
    trained: TrainedModel
    data: Path
    seed: int
    num_at_once: int
    evaluation: str
    """Tells evaluations apart: what is at the paths may be another model by the next one."""

    def __call__(self, unit: int) -> Sums:
        # Ray leaves a worker process with the threads that its last task set.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // self.num_at_once))
        return self.work.evaluate(unit, _load_scorers(self.trained, self.data, self.seed, self.evaluation))


@lru_cache(maxsize=1)
def _load_scorers(trained: TrainedModel, data: Path, seed: int, evaluation: str) -> dict[str, Scorer]:  # noqa: ARG001
    """A worker process keeps the scorers of one evaluation between its units."""
    return {
        "NeuMF": NeuMFScorer(trained.load()),
        "Popularity": Popularity(PreparedSet.open(data).item_counts()),
        "Random": Random(trained.num_items, seed),
    }


@lru_cache(maxsize=1)
def _read_partition(path: Path, sha256: str) -> pa.Table:  # noqa: ARG001 - tells partitions at one path apart
    """A worker process keeps one partition between its units, with the columns that an evaluation needs."""
    return pq.read_table(path, columns=_COLUMNS)


def _add(left: Sums, right: Sums) -> Sums:
    return {name: left.get(name, MetricSums()) + sums for name, sums in right.items()}
