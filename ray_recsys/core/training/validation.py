"""Validation during training: a fixed sample of users, each ranked over the whole catalogue by the worker that has it.

This module does not know of early stopping.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from ray_recsys.config import EvaluateRecipe, Recipe
from ray_recsys.core.arrays import Bools, Int64s
from ray_recsys.core.counter_random import derive_key, derive_keys
from ray_recsys.core.evaluation.metrics import MetricSums
from ray_recsys.core.evaluation.protocols import evaluate_users
from ray_recsys.core.histories import Histories, Interactions
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.models.neumf_scorer import NeuMFScorer
from ray_recsys.core.prepared import PreparedSet

_PURPOSE = 5  # keeps the choice of users apart from other random numbers under the same seed


@dataclass(frozen=True, slots=True)
class Validation:
    """One worker's share of the validation users."""

    histories: Sequence[Histories]
    """Partitions in which users that are not chosen have no interactions."""
    recipe: Recipe

    @classmethod
    def read(cls, prepared: PreparedSet, recipe: Recipe, *, rank: int = 0, world_size: int = 1) -> Self:
        """Reads the chosen users of every world_size-th partition of a prepared set.

        About `train.max_validation_users` of all users are chosen, the same for any number of workers.
        """
        share = min(1.0, recipe.train.max_validation_users / max(1, prepared.manifest.num_users))
        kept = []
        for partition in range(rank, len(prepared.manifest.partitions), world_size):
            histories = prepared.read_partition(partition)
            is_chosen = _choose(histories.user_idx, share, recipe.seed) & (histories.validation.lengths > 0)
            if is_chosen.any():
                kept.append(_only(histories, is_chosen))
        return cls(kept, recipe)

    def measure(self, model: NeuMF) -> MetricSums:
        """Returns the metric sums of this share's users under the full-ranking protocol."""
        if not self.histories:
            return MetricSums()
        scorer = NeuMFScorer(model)
        batch = self.recipe.evaluate.users_per_batch
        protocol = EvaluateRecipe(protocol="full", ks=(10,), users_per_batch=batch)
        num_items, seed = model.num_items, self.recipe.seed
        return MetricSums.total(
            evaluate_users(scorer, part, num_items=num_items, recipe=protocol, split="validation", seed=seed)
            for part in self.histories
        )


def _choose(user_idx: Int64s, share: float, seed: int) -> Bools:
    if share >= 1.0:
        return np.ones(len(user_idx), np.bool_)
    return derive_keys(derive_key(seed, _PURPOSE), user_idx) < np.uint64(share * 2.0**64)


def _only(histories: Histories, is_chosen: Bools) -> Histories:
    parts = (histories.training, histories.validation)
    training, validation = (_without_others(part, is_chosen) for part in parts)
    nothing = Interactions(np.zeros_like(histories.test.offsets), histories.test.item_idx[:0])
    return Histories(histories.first_user_idx, training, validation, nothing)


def _without_others(part: Interactions, is_chosen: Bools) -> Interactions:
    lengths = np.where(is_chosen, part.lengths, 0)
    return Interactions(np.concatenate([[0], np.cumsum(lengths)]), part.item_idx[np.repeat(is_chosen, part.lengths)])
