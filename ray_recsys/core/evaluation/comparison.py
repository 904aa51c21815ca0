"""A comparison of recipes: cells, each a recipe trained with one seed, and their summary.

A recipe's value for a user is the mean over its seeds, and its metric the mean over users. Intervals are those of the
paired bootstrap over users (see `bootstrap`): they measure the variation over users, not over seeds, whose
spread is reported separately.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from ray_recsys.config import EvaluateRecipe
from ray_recsys.core.arrays import Float64s
from ray_recsys.core.evaluation.bootstrap import Interval
from ray_recsys.core.evaluation.candidates import Split
from ray_recsys.core.evaluation.result import BucketMetrics, EvaluationResult, ModelMetrics
from ray_recsys.core.evaluation.two_stage import TwoStageResult


class Terms(BaseModel):
    """Settings that all cells of a comparison share; a cell measured under other settings is measured again."""

    model_config = ConfigDict(frozen=True)

    input_fingerprint: str
    """Of the prepared set."""
    split: Split
    evaluate: EvaluateRecipe
    seed: int
    """Of sampled candidates, ties and resamples; not of the trainings."""
    num_resamples: int
    max_seconds: float | None
    """Of each training."""


class CurvePoint(BaseModel):
    """Validation after an epoch."""

    model_config = ConfigDict(frozen=True)

    epoch: int
    seconds: float
    """Since the first epoch began, validations included."""
    value: float


class Cost(BaseModel):
    """Cost of a trained model."""

    model_config = ConfigDict(frozen=True)

    train_s: float | None
    """Wall time of `train`, start of its workers included; None: it was interrupted and resumed."""
    model_mb: float
    """The model's files."""
    request_ms: float
    """Median time to recall 200 candidates for a user and to rerank them, in process, on one thread."""
    fold_in_ms: float | None
    """Median time to fold in a user's history; None: the model cannot."""


class Cell(BaseModel):
    """A recipe trained with one seed, and its evaluation."""

    model_config = ConfigDict(frozen=True)

    terms: Terms
    recipe: str
    """Name of the recipe's file, without its ending."""
    seed: int
    model: str
    num_epochs: int
    curve_label: str
    """The validation metric that the curve shows."""
    curve: tuple[CurvePoint, ...]
    """Empty for a model that is fitted without epochs."""
    cost: Cost
    evaluation: EvaluationResult

    @property
    def metrics(self) -> ModelMetrics:
        """The metrics of the cell's model, the only one of its evaluation."""
        (metrics,) = self.evaluation.models.values()
        return metrics


class RecipeResult(BaseModel):
    """A recipe over its seeds."""

    model_config = ConfigDict(frozen=True)

    recipe: str
    model: str
    seeds: tuple[int, ...]
    metrics: dict[str, Interval]
    """The metrics over users."""
    deviations: dict[str, float]
    """Standard deviation of each metric over the seeds; 0 for one."""
    others: dict[str, float]
    """Metrics without an interval (RMSE, MAE and those of the recommended items): mean over the seeds."""
    cost: Cost
    """Mean over the seeds."""
    by_activity: tuple[BucketMetrics, ...]
    """Of the first seed, as all below."""
    by_popularity: tuple[BucketMetrics, ...]
    two_stage: TwoStageResult | None
    curve_label: str
    curve: tuple[CurvePoint, ...]

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Self:
        """Returns the result of the cells of one recipe."""
        first = cells[0]
        values = {name: [cell.metrics.metrics[name] for cell in cells] for name in first.metrics.metrics}
        means = {name: float(np.mean(of_seeds)) for name, of_seeds in values.items()}
        resampled = mean_resampled([cell.metrics for cell in cells])
        spread = {name: float(np.std(values[name], ddof=1)) if len(cells) > 1 else 0.0 for name in resampled}
        return cls(
            recipe=first.recipe,
            model=first.model,
            seeds=tuple(cell.seed for cell in cells),
            metrics={name: Interval.of(means[name], of_users) for name, of_users in resampled.items()},
            deviations=spread,
            others={name: mean for name, mean in means.items() if name not in resampled},
            cost=_mean_cost([cell.cost for cell in cells]),
            by_activity=first.metrics.by_activity,
            by_popularity=first.metrics.by_popularity,
            two_stage=first.metrics.two_stage,
            curve_label=first.curve_label,
            curve=first.curve,
        )


class Difference(BaseModel):
    """One recipe minus another, on the same users."""

    model_config = ConfigDict(frozen=True)

    recipe: str
    other: str
    metrics: dict[str, Interval]

    @classmethod
    def of(cls, cells: Sequence[Cell], others: Sequence[Cell]) -> Self:
        """Returns the difference of the recipes of two groups of cells."""
        left, right = (mean_resampled([cell.metrics for cell in group]) for group in (cells, others))
        metrics = {}
        for name in left:
            value, other = (np.mean([cell.metrics.metrics[name] for cell in group]) for group in (cells, others))
            metrics[name] = Interval.of(float(value - other), left[name] - right[name])
        return cls(recipe=cells[0].recipe, other=others[0].recipe, metrics=metrics)


class Comparison(BaseModel):
    """The recipes and the baselines, compared."""

    model_config = ConfigDict(frozen=True)

    terms: Terms
    data: str
    """Path of the prepared set."""
    protocol: str
    num_users: int
    num_eligible_users: int
    recipes: tuple[RecipeResult, ...]
    """Best first, by `main_metric`."""
    baselines: dict[str, dict[str, Interval]]
    """Metrics of Popularity and Random, by label."""
    differences: tuple[Difference, ...]
    """Of all pairs of recipes, the better one first."""
    main_metric: str

    @classmethod
    def of(cls, groups: Sequence[Sequence[Cell]], baselines: EvaluationResult, data: str) -> Self:
        """Returns the comparison of the recipes of groups of cells, a group per recipe."""
        terms, evaluation = groups[0][0].terms, groups[0][0].evaluation
        main = main_metric(terms.evaluate)
        ranked = sorted(
            ((RecipeResult.of(cells), cells) for cells in groups), key=lambda pair: -pair[0].metrics[main].value
        )
        return cls(
            terms=terms,
            data=data,
            protocol=evaluation.protocol,
            num_users=evaluation.num_users,
            num_eligible_users=evaluation.num_eligible_users,
            recipes=tuple(result for result, _ in ranked),
            baselines={
                label: {name: Interval.of(model.metrics[name], np.array(of)) for name, of in model.resampled.items()}
                for label, model in baselines.models.items()
            },
            differences=tuple(Difference.of(better, worse) for (_, better), (_, worse) in combinations(ranked, 2)),
            main_metric=main,
        )


def main_metric(evaluate: EvaluateRecipe) -> str:
    """Returns the metric that recipes are ordered by: NDCG@10, or NDCG at the K nearest to 10."""
    return f"NDCG@{min(evaluate.ks, key=lambda k: (abs(k - 10), k))}"


def mean_resampled(models: Sequence[ModelMetrics]) -> dict[str, Float64s]:
    """Returns the mean over models (of several seeds) of each metric in each resample, float64[R]."""
    return {
        name: np.mean([model.resampled[name] for model in models], axis=0, dtype=np.float64)
        for name in models[0].resampled
    }


def _mean_cost(costs: Sequence[Cost]) -> Cost:
    known = [cost.train_s for cost in costs if cost.train_s is not None]
    fold_in = [cost.fold_in_ms for cost in costs if cost.fold_in_ms is not None]
    return Cost(
        train_s=float(np.mean(known)) if known else None,
        model_mb=float(np.mean([cost.model_mb for cost in costs])),
        request_ms=float(np.mean([cost.request_ms for cost in costs])),
        fold_in_ms=float(np.mean(fold_in)) if fold_in else None,
    )
