"""Exposure: how often each item is in users' top-K lists, and the metrics of these counts.

The counts are whole numbers, so that those of disjoint users add up exactly. I items, K the length of a list.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from ray_recsys.core.arrays import Float64s, Int64s

_POPULARITY_UNIT = 1 << 40  # mean popularity of a user's items, as a multiple of 2^-40


@dataclass(frozen=True, slots=True)
class Exposure:
    """How often each item is among the first K of users' lists, for some K; only items that are.

    Attributes:
        ks: Ascending, S of them.
        item_idx: Distinct and ascending, int64[n].
        counts: int64[S, n].
        num_users: Users with a list.
        profile_popularity: Sum over these users of the mean training count of their training items, times 2^40.
    """

    ks: tuple[int, ...]
    item_idx: Int64s
    counts: Int64s
    num_users: int
    profile_popularity: int

    @classmethod
    def nothing(cls, ks: Sequence[int]) -> Self:
        """Returns the exposure over no users."""
        distinct = tuple(sorted(set(ks)))
        return cls(distinct, np.zeros(0, np.int64), np.zeros((len(distinct), 0), np.int64), 0, 0)

    @classmethod
    def of(cls, top: Int64s, profile_popularity: Float64s, ks: Sequence[int]) -> Self:
        """Returns the exposure over B users.

        Args:
            top: Items of each list, best first, int64[B, >= max K]; -1 where a list ends early.
            profile_popularity: Mean training count of each user's training items, float64[B].
            ks: The K.
        """
        distinct = tuple(sorted(set(ks)))
        shown = top[:, : distinct[-1]]
        item_idx, column = np.unique(shown, return_inverse=True)
        column = column.reshape(shown.shape)
        counts = np.stack([np.bincount(column[:, :k].reshape(-1), minlength=len(item_idx)) for k in distinct])
        is_item = item_idx >= 0
        # Python's integers: the sum over many users of popular items exceeds 64 bits.
        popularity = sum(map(int, np.rint(profile_popularity * _POPULARITY_UNIT).tolist()))
        return cls(distinct, item_idx[is_item], counts[:, is_item].astype(np.int64), len(top), popularity)

    def __add__(self, other: Self) -> Self:
        """Returns the exposure over the users of both, who must be different ones."""
        assert self.ks == other.ks
        item_idx, columns = np.unique(np.concatenate([self.item_idx, other.item_idx]), return_inverse=True)
        counts = np.zeros((len(self.ks), len(item_idx)), np.int64)
        counts[:, columns[: len(self.item_idx)]] += self.counts
        counts[:, columns[len(self.item_idx) :]] += other.counts
        return type(self)(
            self.ks,
            item_idx,
            counts,
            self.num_users + other.num_users,
            self.profile_popularity + other.profile_popularity,
        )

    def metrics(self, item_counts: Int64s, num_users: int) -> dict[str, float]:
        """Returns Coverage, Gini, Novelty and PopularityLift at each K; nothing without lists.

        Args:
            item_counts: Training interactions of each item, int64[I].
            num_users: Of the training data.
        """
        values: dict[str, float] = {}
        if not self.num_users:
            return values
        profile = self.profile_popularity / _POPULARITY_UNIT / self.num_users
        for k, counts in zip(self.ks, self.counts, strict=True):
            training = item_counts[self.item_idx]
            values[f"Coverage@{k}"] = coverage(counts, len(item_counts))
            values[f"Gini@{k}"] = gini(counts, len(item_counts))
            values[f"Novelty@{k}"] = novelty(counts, training, num_users)
            values[f"PopularityLift@{k}"] = popularity_lift(counts, training, profile)
        return dict(sorted(values.items(), key=lambda entry: entry[0].split("@")[0]))


def coverage(counts: Int64s, num_items: int) -> float:
    """Returns the share of the catalogue that is in at least one list.

    Source: Ge et al.: Beyond accuracy: evaluating recommender systems by coverage and serendipity, RecSys 2010,
        section 3.1 (catalogue coverage). Counts 3, 1 and 0 of 4 items: 2/4.
    """
    return int(np.count_nonzero(counts)) / num_items


def gini(counts: Int64s, num_items: int) -> float:
    """Returns the Gini coefficient of the recommendations over all items: 0 if all are shown equally often.

    Source: Shani, Gunawardana: Evaluating recommendation systems, in: Recommender Systems Handbook, 2011, section
        8.3.3, with n items instead of n - 1 in the denominator. Counts 3, 1, 0, 0, in ascending order at ranks 1 to 4:
        2 x (3 x 1 + 4 x 3) / (4 x 4) - 5 / 4 = 0.625.
    """
    shown = np.sort(counts[counts > 0])
    if not len(shown):
        return 0.0
    # Items that are in no list come first, and add nothing to the sum.
    positions = np.arange(num_items - len(shown) + 1, num_items + 1)
    return 2 * int(positions @ shown) / (num_items * int(shown.sum())) - (num_items + 1) / num_items


def novelty(counts: Int64s, training_counts: Int64s, num_users: int) -> float:
    """Returns the mean self-information of the recommendations in bits, -log2(share of users who have the item).

    An item without training interactions counts as one with a single interaction.

    Source: Zhou et al.: Solving the apparent diversity-accuracy dilemma of recommender systems, PNAS 107(10), 2010.
        Of 8 users, an item of 4 recommended three times and one of 1 once: (3 x 1 + 1 x 3) / 4 = 1.5.
    """
    information = np.log2(num_users / np.maximum(training_counts, 1))
    return float((information * counts).sum() / counts.sum())


def popularity_lift(counts: Int64s, training_counts: Int64s, profile_popularity: float) -> float:
    """Returns by how much recommended items are more popular than the users' own: 0: equally, 1: twice as popular.

    Source: Abdollahpouri et al.: The connection between popularity bias, calibration, and fairness in recommendation,
        RecSys 2020, section 3.2, for one group of all users. Items of training counts 4 and 1, shown three times and
        once, for profiles of mean popularity 2: (13/4 - 2) / 2 = 0.625.
    """
    recommended = float((training_counts.astype(np.float64) * counts).sum() / counts.sum())
    return recommended / profile_popularity - 1.0
