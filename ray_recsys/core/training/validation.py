"""Validation during training: a fixed sample of users, each ranked over the whole catalogue by one worker."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from ray_recsys.config import EvaluateRecipe, Recipe
from ray_recsys.core.arrays import Bools
from ray_recsys.core.evaluation.candidates import choose_users
from ray_recsys.core.evaluation.metric_sums import MetricSums
from ray_recsys.core.evaluation.protocols import evaluate_users
from ray_recsys.core.histories import Histories, Interactions
from ray_recsys.core.models.contract import Model
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

    @classmethod
    def read(cls, prepared: PreparedSet, recipe: Recipe, *, rank: int = 0, world_size: int = 1) -> Self:
        """Reads the chosen users of every world_size-th partition of a prepared set.

        About `train.max_validation_users` of all users are chosen, the same for any number of workers.
        """
        share = min(1.0, recipe.train.max_validation_users / max(1, prepared.manifest.num_users))
        kept = []
        for partition in range(rank, len(prepared.manifest.partitions), world_size):
            histories = prepared.read_partition(partition)
            is_chosen = choose_users(histories.user_idx, share, recipe.seed) & (histories.validation.lengths > 0)
            if is_chosen.any():
                kept.append(_only(histories, is_chosen))
        return cls(kept, recipe.evaluate.users_per_batch, recipe.seed, recipe.train.objective == "explicit")

    def measure(self, model: Model) -> MetricSums:
        """Returns the metric sums of this share's users under the full-ranking protocol."""
        recipe = EvaluateRecipe(protocol="full", ks=(10,), users_per_batch=self.users_per_batch)
        return MetricSums.total(
            evaluate_users(
                model,
                part,
                num_items=model.num_items,
                recipe=recipe,
                split="validation",
                seed=self.seed,
                has_ratings=self.has_ratings,
            )
            for part in self.histories
        )


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
