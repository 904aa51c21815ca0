"""The result of `evaluate`: each model's metrics, overall and by bucket, on the same users and candidates."""

from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict

from ray_recsys.core.evaluation.candidate_lists import CandidateLists
from ray_recsys.core.evaluation.candidates import Split
from ray_recsys.core.evaluation.metric_sums import MetricSums
from ray_recsys.core.evaluation.sums import Buckets, EvaluationSums, Frame
from ray_recsys.core.evaluation.two_stage import TwoStageResult


class BucketMetrics(BaseModel):
    """Metrics over the users, or over the held-out items, whose number of training interactions is in a range."""

    model_config = ConfigDict(frozen=True)

    training_interactions: str
    """`<lowest>–<highest>`."""
    count: int
    """Users, or held-out items."""
    metrics: dict[str, float]
    standard_errors: dict[str, float]

    @classmethod
    def each(cls, buckets: Buckets, sums: Sequence[MetricSums]) -> tuple[Self, ...]:
        """Returns the metrics of the buckets that have users."""
        return tuple(
            cls(
                training_interactions=label,
                count=part.num_users,
                metrics=part.means(),
                standard_errors=part.standard_errors(),
            )
            for label, part in zip(buckets.labels, sums, strict=False)
            if part.num_users
        )


class ModelMetrics(BaseModel):
    """One model's metrics; means over users have a standard error, metrics of the recommended items have none."""

    model_config = ConfigDict(frozen=True)

    metrics: dict[str, float]
    standard_errors: dict[str, float]
    by_activity: tuple[BucketMetrics, ...] = ()
    """By the user's training interactions."""
    by_popularity: tuple[BucketMetrics, ...] = ()
    """By the held-out item's training interactions; each held-out item counts alone."""
    two_stage: TwoStageResult | None = None
    """If asked for, and never of a baseline."""
    resampled: Mapping[str, tuple[float, ...]] = {}
    """If asked for: the value of each metric over users in each resample, the same users in that of every model."""

    @classmethod
    def of(cls, sums: EvaluationSums, frame: Frame | None, num_users: int, two_stage: MetricSums | None) -> Self:
        """Returns the metrics of sums over at least one user."""
        metrics = sums.total.means()
        if frame is not None and sums.exposure is not None:
            metrics |= sums.exposure.metrics(frame.item_counts, num_users)
        return cls(
            metrics=metrics,
            standard_errors=sums.total.standard_errors(),
            by_activity=() if frame is None else BucketMetrics.each(frame.activity, sums.by_activity),
            by_popularity=() if frame is None else BucketMetrics.each(frame.popularity, sums.by_popularity),
            two_stage=None if two_stage is None else TwoStageResult.of(two_stage),
            resampled={name: tuple(values.tolist()) for name, values in sums.resampled_means().items()},
        )


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
    """Users evaluated."""
    num_eligible_users: int
    """Users with held-out items, from whom those evaluated were sampled if there are more; see `evaluate.max_users`."""
    num_held_out: int
    candidates_per_list: float
    """Mean over the lists."""
    models: dict[str, ModelMetrics]
    """By label, in the order given; then the baselines Popularity and Random."""
    seconds: float
    unknown: UnknownCounts | None = None
    """With a candidate file: the rows that could not be scored."""
