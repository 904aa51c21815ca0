"""Evaluation of runs and bundles beside the baselines: every model on the same users and candidates.

The users are divided into units that run as independent tasks; only metric sums come back.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict

from ray_recsys.config import EvaluateRecipe
from ray_recsys.core.evaluation.baselines import Random
from ray_recsys.core.evaluation.candidate_lists import CandidateLists
from ray_recsys.core.evaluation.metrics import MetricSums
from ray_recsys.core.evaluation.protocols import Split, evaluate_users, protocol_label
from ray_recsys.core.executor import Executor, Shared
from ray_recsys.core.histories import Histories
from ray_recsys.core.models.contract import Scorer
from ray_recsys.core.models.popularity import popularity_of
from ray_recsys.core.models.registry import MODELS, load_model
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.workflows.trained_model import TrainedModel
from ray_recsys.errors import ArtifactError, EmptyDataError
from ray_recsys.progress import Reporter, silent

_USERS_PER_UNIT = 1024
_COLUMNS = ["user_idx", "item_idx", "validation_item_idx", "test_item_idx", "validation_rating", "test_rating"]


class ModelMetrics(BaseModel):
    """One model's metrics, each with its standard error over users."""

    model_config = ConfigDict(frozen=True)

    metrics: dict[str, float]
    standard_errors: dict[str, float]


class UnknownCounts(BaseModel):
    """Rows of a candidate file without a score, and lists without metrics."""

    model_config = ConfigDict(frozen=True)

    users: int
    """Users that the prepared set does not have; their held-out items rank last."""
    candidates: int
    """Rows of items that the prepared set does not have; they rank last."""
    lists_without_held_out: int
    """Users without a label 1; skipped."""

    @classmethod
    def of(cls, lists: CandidateLists) -> Self:
        """Returns the counts of a file's lists."""
        return cls(
            users=lists.users.num_unknown,
            candidates=lists.num_unknown_candidates,
            lists_without_held_out=lists.num_skipped,
        )


class EvaluationResult(BaseModel):
    """Metrics of the models and of the baselines, on the same users and candidates."""

    model_config = ConfigDict(frozen=True)

    split: Split
    protocol: str
    """full, sampled-<N>, or given (a file of candidates)."""
    num_users: int
    """Users with held-out items."""
    num_held_out: int
    candidates_per_list: float
    """Mean over the lists."""
    models: dict[str, ModelMetrics]
    """By label, in the order given; then the baselines Popularity and Random."""
    seconds: float
    unknown: UnknownCounts | None = None
    """With a candidate file: the rows that could not be scored."""


def evaluate(
    models: Sequence[Path],
    prepared: PreparedSet,
    recipe: EvaluateRecipe,
    executor: Executor,
    *,
    seed: int,
    split: Split = "test",
    candidates: Path | None = None,
    report: Reporter = silent,
) -> EvaluationResult:
    """Returns the metrics of runs or bundles, of Popularity and of Random.

    Args:
        models: Runs or bundles.
        prepared: The prepared set that they were trained on.
        recipe: Protocol and Ks.
        executor: Runs the units of users.
        seed: Of sampled candidates and of the order of ties.
        split: Held-out items that are ranked.
        candidates: File of candidate lists (user_id, item_id, label), in place of the split and the protocol.
        report: Progress.

    Raises:
        ArtifactError: A model or the data cannot be used, or they do not belong together.
        DataError: The candidate file cannot be used.
        EmptyDataError: No user has a held-out item.
        StageError: A score is NaN or infinite.
    """
    start_s = time.monotonic()
    opened = [TrainedModel.open(path) for path in models]
    for model in opened:
        model.check_fits(prepared)
        if model.refit and candidates is None:
            raise ArtifactError(
                f"{model.path} was refit on everything: it has seen the held-out items of {prepared.path}",
                remedy="evaluate a run without train.refit, or give --candidates that it has not seen",
            )
    prepared.verify()
    scorers = Scorers(_labelled(opened), prepared, seed, executor.num_cpus)
    if candidates is None:
        work: Work = SplitUsers(prepared, recipe, split, seed, scorers)
    else:
        lists = CandidateLists.read(candidates, prepared)
        work = GivenLists(executor.share(lists), lists.num_lists, recipe, seed, scorers)
        report(f"{lists.num_lists:,} candidate lists, {lists.users.num_unknown:,} of them of unknown users")
    sums = _run(work, executor, f"evaluating {', '.join(map(str, models))} on {prepared.path}", report)
    first = next(iter(sums.values()), MetricSums())
    if not first.num_users:
        raise EmptyDataError(
            f"{prepared.path}: no user has held-out {split} items", remedy="choose another split, or prepare with one"
        )
    return EvaluationResult(
        split=split,
        protocol=protocol_label(recipe) if candidates is None else "given",
        num_users=first.num_users,
        num_held_out=first.num_held_out,
        candidates_per_list=first.num_candidates / first.num_lists,
        models={name: ModelMetrics(metrics=s.means(), standard_errors=s.standard_errors()) for name, s in sums.items()},
        seconds=round(time.monotonic() - start_s, 3),
        unknown=None if candidates is None else UnknownCounts.of(lists),
    )


def _labelled(models: Sequence[TrainedModel]) -> dict[str, TrainedModel]:
    """Returns the models by label; a label that two models share is told apart by the directory's name."""
    labels = [MODELS[model.name].label for model in models]
    pairs = list(zip(labels, models, strict=True))
    return {label if labels.count(label) == 1 else f"{label} ({model.path.name})": model for label, model in pairs}


Sums = dict[str, MetricSums]
"""By label of the model."""


@dataclass(frozen=True)
class Scorers:
    """The models and baselines of an evaluation; a process loads them once."""

    models: dict[str, TrainedModel]
    prepared: PreparedSet
    seed: int
    num_tasks: int
    """Tasks that run at once; each gets its share of a node's cores."""

    def load(self) -> dict[str, Scorer]:
        """Returns the scorers by label."""
        # Ray leaves a worker process with the threads that its last task set.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // self.num_tasks))
        counts, num_users = self.prepared.item_counts(), self.prepared.manifest.num_users
        return {
            **{label: _load(str(model.directory), model.version) for label, model in self.models.items()},
            "Popularity": popularity_of(counts, num_users),
            "Random": Random(len(counts), self.seed),
        }

    def predicts_ratings(self, label: str) -> bool:
        """Whether a model's scores are ratings."""
        return label in self.models and self.models[label].predicts_ratings


@lru_cache(maxsize=4)
def _load(directory: str, version: str) -> Scorer:  # noqa: ARG001 - tells models at one path apart
    return load_model(Path(directory))


class Work(Protocol):
    """Users to evaluate, in units that may run anywhere in any order."""

    @property
    def num_units(self) -> int:
        """Number of units."""
        ...

    def evaluate(self, unit: int) -> Sums:
        """Returns the sums of a unit's users."""
        ...


@dataclass(frozen=True)
class SplitUsers:
    """All users of a prepared set; a unit is a range of a partition's users."""

    prepared: PreparedSet
    recipe: EvaluateRecipe
    split: Split
    seed: int
    scorers: Scorers

    @property
    def num_units(self) -> int:
        """Number of ranges."""
        return len(self._ranges)

    @cached_property
    def _ranges(self) -> list[tuple[int, int]]:
        """(partition, first row) of each unit."""
        partitions = enumerate(self.prepared.manifest.partitions)
        return [(number, row) for number, info in partitions for row in range(0, info.num_users, _USERS_PER_UNIT)]

    def evaluate(self, unit: int) -> Sums:
        """Returns the sums of a unit's users."""
        partition, row = self._ranges[unit]
        file = self.prepared.manifest.partitions[partition].file
        table = _read_partition(self.prepared.path / file, self.prepared.files[file]["sha256"])
        histories = Histories.from_table(table.slice(row, _USERS_PER_UNIT))
        return {
            label: evaluate_users(
                scorer,
                histories,
                num_items=self.prepared.manifest.num_items,
                recipe=self.recipe,
                split=self.split,
                seed=self.seed,
                has_ratings=self.scorers.predicts_ratings(label),
            )
            for label, scorer in self.scorers.load().items()
        }


@lru_cache(maxsize=1)
def _read_partition(path: Path, digest: str) -> pa.Table:  # noqa: ARG001 - tells files at one path apart
    file = pq.ParquetFile(path)
    present = set(file.schema_arrow.names)
    return file.read(columns=[name for name in _COLUMNS if name in present])


@dataclass(frozen=True)
class GivenLists:
    """Candidate lists of a file; a unit is a range of them."""

    lists: Shared[CandidateLists]
    num_lists: int
    recipe: EvaluateRecipe
    seed: int
    scorers: Scorers

    @property
    def num_units(self) -> int:
        """Number of ranges."""
        return -(-self.num_lists // _USERS_PER_UNIT)

    def evaluate(self, unit: int) -> Sums:
        """Returns the sums of a unit's lists."""
        given = self.lists.get()
        start = unit * _USERS_PER_UNIT
        numbers = np.arange(start, min(start + _USERS_PER_UNIT, self.num_lists))
        scorers = self.scorers.load()
        return {
            label: given.evaluate(scorer, numbers, recipe=self.recipe, seed=self.seed)
            for label, scorer in scorers.items()
        }


def _run(work: Work, executor: Executor, stage: str, report: Reporter) -> Sums:
    total: Sums = {}
    for sums in executor.map(work.evaluate, work.num_units, stage=stage):
        total = {label: total.get(label, MetricSums()) + part for label, part in sums.items()}
        report(f"{next(iter(total.values())).num_users:,} users ranked")
    return total
