"""Evaluates a run or bundle beside Popularity and Random, over Ray Data; only metric sums come back.

Does not know how a rank is counted (see `core.evaluating`) or how the work is divided (see
`evaluation_work`).
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import ray
from pydantic import BaseModel, ConfigDict

from ray_recsys.config import Recipe
from ray_recsys.core.evaluation.candidate_lists import CandidateLists
from ray_recsys.core.evaluation.metrics import MetricSums
from ray_recsys.core.evaluation.protocols import Split, protocol_label
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.training.trained_model import TrainedModel
from ray_recsys.distributed.evaluation_work import GivenLists, SplitUsers, Work, run_work
from ray_recsys.distributed.resources import require_cpu
from ray_recsys.errors import EmptyDataError
from ray_recsys.progress import Reporter, silent


class ModelMetrics(BaseModel):
    """One model's metrics, each with its standard error over users."""

    model_config = ConfigDict(frozen=True)

    metrics: dict[str, float]
    standard_errors: dict[str, float]


class UnknownCounts(BaseModel):
    """What of a candidate file has no score or no place in the metrics."""

    model_config = ConfigDict(frozen=True)

    users: int
    """Users that the prepared set does not have; their held-out items rank last."""
    candidates: int
    """Rows of items that the prepared set does not have; they rank last."""
    lists_without_held_out: int
    """Users without a label 1, left out."""

    @classmethod
    def of(cls, lists: CandidateLists) -> Self:
        """Returns the counts of a file's lists."""
        return cls(
            users=lists.users.num_unknown,
            candidates=lists.num_unknown_candidates,
            lists_without_held_out=lists.num_skipped,
        )


class EvaluationResult(BaseModel):
    """Metrics of the model and of the baselines, on the same users and candidates."""

    model_config = ConfigDict(frozen=True)

    split: Split
    protocol: str
    """full, sampled-<N>, or given (a file of candidates)."""
    num_users: int
    """Users with held-out items."""
    num_held_out: int
    candidates_per_list: float
    """In the mean."""
    models: dict[str, ModelMetrics]
    """NeuMF, Popularity, Random."""
    seconds: float
    unknown: UnknownCounts | None = None
    """With a candidate file: what in it could not be scored."""

    def table(self) -> list[list[str]]:
        """Returns a header and a row per model: metrics with their standard errors."""
        labels = list(next(iter(self.models.values())).metrics)
        return [["model", *labels], *([name, *self._cells(name, labels)] for name in self.models)]

    def _cells(self, name: str, labels: Sequence[str]) -> list[str]:
        model = self.models[name]
        return [f"{model.metrics[label]:.4f} ±{model.standard_errors[label]:.4f}" for label in labels]

    def format_table(self) -> str:
        """Returns the table as aligned text under a line that names protocol, split and users."""
        title = (
            f"{self.protocol} ranking of {self.split}, {self.num_users:,} users, {self.num_held_out:,} held-out items"
        )
        table = self.table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        return "\n".join([title, *(line.rstrip() for line in lines)])


def evaluate(
    model: Path,
    data: Path,
    recipe: Recipe,
    *,
    split: Split = "test",
    candidates: Path | None = None,
    report: Reporter = silent,
) -> EvaluationResult:
    """Returns the metrics of a run or bundle, of Popularity and of Random.

    Args:
        model: Run or bundle.
        data: Prepared set that it was trained on.
        recipe: `evaluate` and `seed` count.
        split: Held-out items that are ranked.
        candidates: File of candidate lists (user_id, item_id, label), in place of the split and the protocol.
        report: Progress.

    Raises:
        ArtifactError: Model or data cannot be used, or do not belong together.
        ClusterError: No CPU is free.
        DataError: The candidate file cannot be used.
        EmptyDataError: No user has a held-out item.
        StageError: A score is NaN or infinite.
    """
    start_s = time.monotonic()
    trained, prepared = TrainedModel.open(model), PreparedSet.open(data)
    trained.check_fits(prepared)
    prepared.verify()
    require_cpu("evaluate", recipe.cluster, report=report)
    if candidates is None:
        work: Work = SplitUsers(prepared, recipe, split)
    else:
        lists = CandidateLists.read(candidates, prepared)
        work = GivenLists(ray.put(lists), lists.num_lists, recipe)
        report(f"{lists.num_lists:,} candidate lists, {lists.users.num_unknown:,} of them of unknown users")
    sums = run_work(work, trained, prepared, recipe.seed, report)
    first = next(iter(sums.values()), MetricSums())
    if not first.num_users:
        raise EmptyDataError(f"{data}: no user has held-out {split} items; give another split or prepare with one")
    return EvaluationResult(
        split=split,
        protocol=protocol_label(recipe.evaluate) if candidates is None else "given",
        num_users=first.num_users,
        num_held_out=first.num_held_out,
        candidates_per_list=first.num_candidates / first.num_lists,
        models={name: ModelMetrics(metrics=s.means(), standard_errors=s.standard_errors()) for name, s in sums.items()},
        seconds=round(time.monotonic() - start_s, 3),
        unknown=None if candidates is None else UnknownCounts.of(lists),
    )
