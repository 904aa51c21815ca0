"""The training interactions as sparse rows of users, and the weights of a history's items.

Item-based and user-based CF, EASE and iALS are computed from it. Shapes: U users, n interactions.
"""

import numpy as np

from ray_recsys.config import HistoryWeightsRecipe
from ray_recsys.core.arrays import Float32s, Int32s, entries_after
from ray_recsys.core.histories import Interactions, interactions_from_table
from ray_recsys.core.models.contract import SparseFactors
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.errors import ArtifactError

_VANISHING = 2.0**-40  # far below float32's resolution at the last interaction's weight of 1


def read_training_matrix(prepared: PreparedSet, *, weight_by_repetition: bool = False) -> SparseFactors:
    """Returns the training items of every user, oldest first, one partition in memory besides the result.

    Args:
        prepared: Its training interactions are read, nothing else.
        weight_by_repetition: Weigh an interaction by 1 + ln(repetition); otherwise by 1.

    Raises:
        ArtifactError: Weights by repetition of a set that was prepared without counting.
    """
    offsets, idx, weights = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for partition, info in enumerate(prepared.manifest.partitions):
        if not info.num_users:
            continue
        training = interactions_from_table(prepared.read_columns(partition, ["item_idx", "repetition"]), "")
        offsets.append(training.offsets[1:] + offsets[-1][-1])
        idx.append(training.item_idx)
        weights.append(_base_weights(training, weight_by_repetition=weight_by_repetition))
    return SparseFactors(np.concatenate(offsets), np.concatenate(idx), np.concatenate(weights))


def _base_weights(training: Interactions, *, weight_by_repetition: bool) -> Float32s:
    if not weight_by_repetition:
        return np.ones(len(training.item_idx), np.float32)
    if training.repetition is None:
        raise ArtifactError(
            "model.weight_by_repetition is set, but the prepared set has no repetitions",
            remedy="prepare it with prepare.deduplicate = 'count'",
        )
    return (1 + np.log(training.repetition)).astype(np.float32)


def unweighted(histories: SparseFactors) -> SparseFactors:
    """Returns the histories with every weight 1."""
    return SparseFactors(histories.offsets, histories.idx, np.ones_like(histories.weights))


def weigh_by_recency(histories: SparseFactors, recipe: HistoryWeightsRecipe) -> SparseFactors:
    """Returns the histories with each weight multiplied by floor + (1 - floor) x 2^(-later / half_life).

    `later` counts the user's later interactions. Entries whose weight vanishes are left out.

    Args:
        histories: Of U users, oldest first.
        recipe: Half-life and floor.
    """
    if recipe.recency_half_life is None:
        return histories
    num_later = entries_after(np.diff(histories.offsets))
    recency = recipe.recency_floor + (1 - recipe.recency_floor) * np.exp2(-num_later / recipe.recency_half_life)
    kept = recency >= _VANISHING
    num_before = np.concatenate([[0], np.cumsum(kept)])
    weights = (histories.weights * recency)[kept].astype(np.float32)
    return SparseFactors(num_before[histories.offsets], histories.idx[kept], weights)


def one_history(history: Int32s) -> SparseFactors:
    """Returns a history as the row of one user, each weight 1; of an item that repeats, the last remains.

    Args:
        history: Items, oldest first.
    """
    _, from_end = np.unique(history[::-1], return_index=True)
    kept = history[np.sort(len(history) - 1 - from_end)]
    return SparseFactors(np.array([0, len(kept)]), kept.astype(np.int32), np.ones(len(kept), np.float32))
