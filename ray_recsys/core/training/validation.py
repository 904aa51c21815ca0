"""Validation during training: a fixed sample of users, each ranked over the whole catalogue by one worker."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from ray_recsys.config import EvaluateRecipe, Recipe
from ray_recsys.core.arrays import Bools, Float32s, Int64s, Integers
from ray_recsys.core.evaluation.candidates import choose_users
from ray_recsys.core.evaluation.metric_sums import MetricSums
from ray_recsys.core.evaluation.protocols import evaluate_users
from ray_recsys.core.histories import Histories, Interactions
from ray_recsys.core.models.contract import Model, UserFactors
from ray_recsys.core.prepared import PreparedSet


@dataclass(frozen=True, slots=True)
class Validation:
    """One worker's share of the validation users."""

    histories: Sequence[Histories]
    """Partitions in which users that are not chosen have no interactions."""
    users_per_batch: int
    seed: int
    has_ratings: bool
    """Whether the model predicts ratings, whose error is measured too."""
    first_user: int = 0
    """The user that has the model's row 0."""

    @classmethod
    def read(
        cls, prepared: PreparedSet, recipe: Recipe, *, rank: int = 0, world_size: int = 1, users: range | None = None
    ) -> Self:
        """Reads a worker's share of the chosen users of a prepared set.

        About `train.max_validation_users` of all users are chosen, the same for any number of workers.

        Args:
            prepared: The set.
            recipe: Training, evaluation and seed.
            rank: Of this worker.
            world_size: Number of workers.
            users: The worker's users; None: those of every world_size-th partition.
        """
        share = min(1.0, recipe.train.max_validation_users / max(1, prepared.manifest.num_users))
        kept = []
        every_other = range(rank, len(prepared.manifest.partitions), world_size)
        for partition in every_other if users is None else prepared.partitions_of(users):
            histories = prepared.read_partition(partition)
            is_chosen = choose_users(histories.user_idx, share, recipe.seed) & (histories.validation.lengths > 0)
            if users is not None:
                is_chosen &= (histories.user_idx >= users.start) & (histories.user_idx < users.stop)
            if is_chosen.any():
                kept.append(_only(histories, is_chosen))
        is_explicit, first_user = recipe.train.objective == "explicit", 0 if users is None else users.start
        return cls(kept, recipe.evaluate.users_per_batch, recipe.seed, is_explicit, first_user)

    def measure(self, model: Model) -> MetricSums:
        """Returns the metric sums of this share's users under the full-ranking protocol."""
        recipe = EvaluateRecipe(protocol="full", ks=(10,), users_per_batch=self.users_per_batch)
        return MetricSums.total(
            evaluate_users(
                _OwnUsers(model, self.first_user),
                part,
                num_items=model.num_items,
                recipe=recipe,
                split="validation",
                seed=self.seed,
                has_ratings=self.has_ratings,
            )
            for part in self.histories
        )


@dataclass(frozen=True, slots=True)
class _OwnUsers:
    """Scores a worker's own users with a model that has rows of these alone."""

    model: Model
    first_user: int

    def users(self, user_idx: Int64s) -> UserFactors:
        """Returns the factors of users of this worker."""
        return self.model.users(user_idx - self.first_user)

    def scores(self, users: UserFactors, item_idx: Integers | None = None) -> Float32s:
        """Returns the model's scores."""
        return self.model.scores(users, item_idx)


def _only(histories: Histories, is_chosen: Bools) -> Histories:
    parts = (histories.training, histories.validation)
    training, validation = (_without_others(part, is_chosen) for part in parts)
    nothing = Interactions(np.zeros_like(histories.test.offsets), histories.test.item_idx[:0])
    return Histories(histories.first_user_idx, training, validation, nothing)


def _without_others(part: Interactions, is_chosen: Bools) -> Interactions:
    lengths = np.where(is_chosen, part.lengths, 0)
    is_kept = np.repeat(is_chosen, part.lengths)
    rating = None if part.rating is None else part.rating[is_kept]
    return Interactions(np.concatenate([[0], np.cumsum(lengths)]), part.item_idx[is_kept], rating=rating)
