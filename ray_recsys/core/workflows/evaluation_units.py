"""Users to evaluate, in units that run as independent tasks; sums come back, and rows of the rankings file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ray_recsys.config import EvaluateRecipe
from ray_recsys.core.evaluation.bootstrap import user_weights
from ray_recsys.core.evaluation.candidate_lists import CandidateLists
from ray_recsys.core.evaluation.candidates import Split, held_out_of
from ray_recsys.core.evaluation.metric_sums import MetricSums
from ray_recsys.core.evaluation.protocols import rank_users
from ray_recsys.core.evaluation.rankings_file import rankings_batch
from ray_recsys.core.evaluation.sums import EvaluationSums, Frame
from ray_recsys.core.evaluation.two_stage import two_stage_sums
from ray_recsys.core.executor import Shared
from ray_recsys.core.histories import Histories
from ray_recsys.core.models.contract import Model, Scorer
from ray_recsys.core.prepared import ITEMS, PreparedSet
from ray_recsys.core.workflows.trained_model import TrainedModel
from ray_recsys.storage.cache import fetch
from ray_recsys.storage.location import Location

USERS_PER_UNIT = 1024
MEAN_RATING = "Mean rating"
_COLUMNS = (
    "user_idx", "user_id", "item_idx", "validation_item_idx", "test_item_idx", "validation_rating", "test_rating",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class UnitResult:
    """Of some users, by the label of the model; those of disjoint users add up."""

    sums: dict[str, EvaluationSums] = field(default_factory=dict)
    num_eligible: int = 0
    """Users with held-out items, whether or not they are in the sample."""
    two_stage: dict[str, MetricSums] = field(default_factory=dict)
    rankings: tuple[pa.RecordBatch, ...] = ()
    """Rows of the rankings file, which are not summed but written as they arrive."""

    def __add__(self, other: Self) -> Self:
        """Returns the result over the users of both, who must be different ones."""
        return type(self)(
            {label: self.sums[label] + part if label in self.sums else part for label, part in other.sums.items()},
            self.num_eligible + other.num_eligible,
            {label: self.two_stage.get(label, MetricSums()) + part for label, part in other.two_stage.items()},
        )


@dataclass(frozen=True)
class Scorers:
    """The models and baselines of an evaluation; a process loads them once."""

    models: dict[str, TrainedModel]
    baselines: Shared[dict[str, Scorer]]
    num_tasks: int
    """Tasks that run at once; each gets its share of a node's cores."""

    def load(self) -> dict[str, Scorer]:
        """Returns the scorers by label."""
        # Ray leaves a worker process with the threads that its last task set.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // self.num_tasks))
        models = {label: _load(model) for label, model in self.models.items()}
        return {**models, **self.baselines.get()}

    def load_stages(self, label: str) -> tuple[Model, Model]:
        """Returns the model that reranks and the one that recalls."""
        model = self.models[label]
        return _load(model), _load_recall(model) or _load(model)

    def predicts_ratings(self, label: str) -> bool:
        """Whether a model's scores are ratings."""
        return label == MEAN_RATING or (label in self.models and self.models[label].predicts_ratings)


@lru_cache(maxsize=8)
def _load(model: TrainedModel) -> Model:
    return model.load()


@lru_cache(maxsize=8)
def _load_recall(model: TrainedModel) -> Model | None:
    return model.load_recall()


class Work(Protocol):
    """Users to evaluate, in units that may run anywhere in any order."""

    @property
    def num_units(self) -> int:
        """Number of units."""
        ...

    def evaluate(self, unit: int) -> UnitResult:
        """Returns the result of a unit's users."""
        ...


@dataclass(frozen=True)
class SplitUsers:
    """Users of a prepared set; a unit is a range of a partition's users."""

    prepared: PreparedSet
    recipe: EvaluateRecipe
    split: Split
    seed: int
    scorers: Scorers
    frame: Shared[Frame]
    rankings: pa.Schema | None = None
    """Schema of the rankings file; None: there is none."""
    two_stage: bool = False
    num_resamples: int = 0

    @property
    def num_units(self) -> int:
        """Number of ranges."""
        return len(self._ranges)

    @cached_property
    def _ranges(self) -> list[tuple[int, int]]:
        """(partition, first row) of each unit."""
        partitions = enumerate(self.prepared.manifest.partitions)
        return [(number, row) for number, info in partitions for row in range(0, info.num_users, USERS_PER_UNIT)]

    @property
    def _share(self) -> float:
        return (
            1.0 if self.recipe.max_users is None else self.recipe.max_users / max(1, self.prepared.manifest.num_users)
        )

    def evaluate(self, unit: int) -> UnitResult:
        """Returns the result of a unit's users."""
        partition, row = self._ranges[unit]
        file = self.prepared.manifest.partitions[partition].file
        table = _read_partition(_Listed.of(self.prepared, file))
        table = table.slice(row, USERS_PER_UNIT)
        histories = Histories.from_table(table)
        result = UnitResult(num_eligible=int((held_out_of(histories, self.split).lengths > 0).sum()))
        for label, scorer in self.scorers.load().items():
            result = self._add(result, label, scorer, histories, table["user_id"].combine_chunks())
        if self.two_stage:
            for label in self.scorers.models:
                model, recall_model = self.scorers.load_stages(label)
                result.two_stage[label] = two_stage_sums(
                    model,
                    recall_model,
                    histories,
                    recipe=self.recipe,
                    split=self.split,
                    seed=self.seed,
                    share=self._share,
                )
        return result

    def _add(
        self, result: UnitResult, label: str, scorer: Scorer, histories: Histories, user_ids: pa.Array
    ) -> UnitResult:
        """Returns a unit's result with one more model."""
        frame, sums, rows = self.frame.get(), EvaluationSums(MetricSums()), list(result.rankings)
        ranked = rank_users(
            scorer,
            histories,
            num_items=self.prepared.manifest.num_items,
            recipe=self.recipe,
            split=self.split,
            seed=self.seed,
            has_ratings=self.scorers.predicts_ratings(label),
            num_top=max(self.recipe.ks),
            share=self._share,
        )
        for part in ranked:
            weights = user_weights(part.user_idx, self.num_resamples, self.seed) if self.num_resamples else None
            sums += EvaluationSums.of(part, histories, frame, self.recipe.ks, weights)
            if self.rankings is not None:
                item_ids = _read_item_ids(_Listed.of(self.prepared, ITEMS))
                rows.append(
                    rankings_batch(label, part, histories, user_ids=user_ids, item_ids=item_ids, schema=self.rankings)
                )
        return UnitResult({**result.sums, label: sums}, result.num_eligible, result.two_stage, tuple(rows))


@dataclass(frozen=True, slots=True)
class _Listed:
    """A file of a prepared set, distinguished from others at the same location by its digest."""

    root: Location
    name: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, prepared: PreparedSet, name: str) -> Self:
        return cls(prepared.location / prepared.parts, name, **prepared.files[name])

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Returns the given columns, without those that the file lacks."""
        copy = fetch(self.root, {self.name: {"bytes": self.bytes, "sha256": self.sha256}})
        with pq.ParquetFile(copy.path / self.name) as file:
            present = set(file.schema_arrow.names)
            return file.read(columns=[name for name in columns if name in present])


@lru_cache(maxsize=1)
def _read_partition(file: _Listed) -> pa.Table:
    return file.read(_COLUMNS)


@lru_cache(maxsize=1)
def _read_item_ids(file: _Listed) -> pa.Array:
    return file.read(["item_id"])["item_id"].combine_chunks()


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
        return -(-self.num_lists // USERS_PER_UNIT)

    def evaluate(self, unit: int) -> UnitResult:
        """Returns the sums of a unit's lists."""
        given = self.lists.get()
        start = unit * USERS_PER_UNIT
        numbers = np.arange(start, min(start + USERS_PER_UNIT, self.num_lists))
        sums = {
            label: EvaluationSums(given.evaluate(scorer, numbers, recipe=self.recipe, seed=self.seed))
            for label, scorer in self.scorers.load().items()
        }
        return UnitResult(sums, len(numbers))
