"""Weights of positives: how much each training interaction counts in the loss, with mean 1 a user.

Knows nothing of batches or losses. n interactions.
"""

import numpy as np

from ray_recsys.config import FeedRecipe
from ray_recsys.core.arrays import Float32s, Float64s
from ray_recsys.core.histories import Interactions
from ray_recsys.errors import ArtifactError


def positive_weights(training: Interactions, recipe: FeedRecipe) -> Float32s | None:
    """Returns the weight of each training interaction, float32[n]; None where the recipe weighs all alike.

    By recency a weight halves every `recency_half_life` interactions back from the user's last; by repetition it is
    1 + ln(repetition); with both it is the product. Each user's weights are then scaled to mean 1.

    Args:
        training: Whole histories, in order of time.
        recipe: Which weights.

    Raises:
        ArtifactError: Weights by repetition of a set that was prepared without counting.
    """
    factors: list[Float64s] = []
    if recipe.recency_half_life is not None:
        factors.append(_by_recency(training, recipe.recency_half_life))
    if recipe.weight_by_repetition:
        if training.repetition is None:
            raise ArtifactError(
                "feed.weight_by_repetition is set, but the prepared set has no repetitions; "
                "prepare it with prepare.deduplicate = 'count'"
            )
        factors.append(1 + np.log(training.repetition))
    if not factors:
        return None
    return _scale_to_mean_one(training, np.prod(factors, axis=0)).astype(np.float32)


def _by_recency(training: Interactions, half_life: float) -> Float64s:
    ends = np.repeat(training.offsets[1:], training.lengths)
    num_later = ends - 1 - np.arange(len(training.item_idx))
    weights: Float64s = np.exp2(-num_later / half_life)
    return weights


def _scale_to_mean_one(training: Interactions, weights: Float64s) -> Float64s:
    lengths = training.lengths
    has_any = lengths > 0
    # reduceat sums from each start to the next one: a user without interactions must not be among the starts.
    sums = np.add.reduceat(weights, training.offsets[:-1][has_any]) if has_any.any() else np.zeros(0)
    scales: Float64s = weights * np.repeat(lengths[has_any] / sums, lengths[has_any])
    return scales
