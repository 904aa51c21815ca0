"""The paired bootstrap over users: intervals of metrics, and of differences between models, from sums that add up.

In a resample every user counts w times, w drawn from Poisson(1) instead of the multinomial distribution, so that a
user's weight depends on (seed, user_idx, resample) alone: batches and workers sum independently, nothing grows with the
users, and every model gets the same resamples, wherever and whenever it is evaluated. That makes differences of models
paired: the difference of two resampled means is the resampled mean of the users' differences.

Shapes: B users, R resamples, M metrics.

Source: Efron, Tibshirani: An introduction to the bootstrap, 1993, chapters 6 and 13 (percentile intervals); for Poisson
    weights Chamandy et al.: Estimating uncertainty for massive data streams, Google technical report, 2012; Hanley,
    MacGibbon: Creating non-parametric bootstrap samples using Poisson frequencies, Computer Methods and Programs in
    Biomedicine 83(1), 2006.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from ray_recsys.core.arrays import Float64s, Int64s
from ray_recsys.core.counter_random import derive_key, derive_keys, random_bits

CONFIDENCE = 0.95
_WEIGHTS = 14  # separates the weights from other random numbers under the same seed
_UNIT = 2.0**30  # values are rounded to multiples of 2^-30: sums over 8 M users are exact, in any order
_MOST = 18  # P(Poisson(1) > 18) is below 2^-53
_CUMULATIVE = np.cumsum([math.exp(-1) / math.factorial(n) for n in range(_MOST)])


def user_weights(user_idx: Int64s, num_resamples: int, seed: int) -> Float64s:
    """Returns how often each user counts in each resample, whole numbers, float64[R, B]."""
    keys = derive_keys(derive_key(seed, _WEIGHTS), user_idx)
    bits = random_bits(keys, np.arange(num_resamples)[:, None])
    uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.searchsorted(_CUMULATIVE, uniform, side="right").astype(np.float64)


@dataclass(frozen=True, slots=True)
class ResampledSums:
    """Weighted sums over some users; those of disjoint users add up.

    Attributes:
        weights: Sum of the users' weights in each resample, float64[R].
        sums: Sum of weight × value in each resample, float64[R], by metric; in units of 2^-30.
    """

    weights: Float64s
    sums: dict[str, Float64s]

    @classmethod
    def of(cls, by_user: Mapping[str, Float64s], weights: Float64s) -> Self:
        """Returns the sums of values of B users, float64[B] each, with their weights, float64[R, B]."""
        values = np.rint(np.stack(list(by_user.values()), axis=1) * _UNIT)
        return cls(weights.sum(axis=1), dict(zip(by_user, (weights @ values).T, strict=True)))

    def __add__(self, other: Self) -> Self:
        """Returns the sums over the users of both, who must be different ones."""
        return type(self)(
            self.weights + other.weights, {name: total + other.sums[name] for name, total in self.sums.items()}
        )

    def means(self) -> dict[str, Float64s]:
        """Returns the mean of each metric in each resample, float64[R]; a resample without users has a mean of 0."""
        num_users = np.maximum(self.weights, 1.0)
        return {name: total / _UNIT / num_users for name, total in self.sums.items()}


class Interval(BaseModel):
    """A value with its percentile interval at 95 % confidence."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled: Float64s) -> Self:
        """Returns the interval of a value from its resampled ones, float64[R]."""
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(resampled, (tail, 1 - tail))
        return cls(value=value, low=float(low), high=float(high))

    @property
    def is_apart_from_zero(self) -> bool:
        """Whether 0 is outside of the interval."""
        return self.low > 0 or self.high < 0
