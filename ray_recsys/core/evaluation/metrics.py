"""Definitions of the ranking metrics, from the ranks of held-out items.

Ranks are whole numbers from 1. R held-out items, L ranked lists, U users.

A user's value is the mean over the user's lists (one list with full ranking, one per held-out item with sampled
candidates), and a metric is the mean over users; see `metric_sums`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_recsys.core.arrays import Bools, Float64s, Int64s


@dataclass(frozen=True, slots=True)
class RankedLists:
    """Ranks of the held-out items in L ranked lists.

    Attributes:
        ranks: int64[R], from 1.
        list_of: The list of each held-out item, int64[R]; each of 0..L-1 occurs.
        user_of: The user of each list, int64[L]; each of 0..U-1 occurs.
    """

    ranks: Int64s
    list_of: Int64s
    user_of: Int64s

    @property
    def num_lists(self) -> int:
        """L."""
        return len(self.user_of)

    @property
    def num_held_out(self) -> Int64s:
        """Held-out items of each list, int64[L]."""
        return np.bincount(self.list_of, minlength=self.num_lists).astype(np.int64)

    def of_users(self, is_chosen: Bools) -> "RankedLists":
        """Returns the lists of some users, bool[U], renumbered."""
        has_list = is_chosen[self.user_of]
        has_rank = has_list[self.list_of]
        new_list, new_user = np.cumsum(has_list) - 1, np.cumsum(is_chosen) - 1
        return RankedLists(self.ranks[has_rank], new_list[self.list_of[has_rank]], new_user[self.user_of[has_list]])

    def item_by_item(self, is_chosen: Bools) -> "RankedLists":
        """Returns some held-out items, bool[R], each as the only one of a list and of a user of its own."""
        ranks = self.ranks[is_chosen]
        return RankedLists(ranks, np.arange(len(ranks)), np.arange(len(ranks)))

    def total(self, values: npt.NDArray[np.float64 | np.bool_]) -> Float64s:
        """Returns the sum over each list of a value per held-out item, float64[L]."""
        return np.bincount(self.list_of, weights=values, minlength=self.num_lists).astype(np.float64)

    def mean_by_user(self, values: Float64s) -> Float64s:
        """Returns the mean over each user's lists of a value per list, float64[U]."""
        sums = np.bincount(self.user_of, weights=values).astype(np.float64)
        return sums / np.bincount(self.user_of)


def hit(lists: RankedLists, k: int) -> Float64s:
    """Returns 1 for a list with a held-out item among its first k, else 0: float64[L].

    Source: Deshpande, Karypis: Item-based top-N recommendation algorithms, TOIS 2004, section 6 (hit rate). Held-out at
        ranks 2 and 7: Hit@1 = 0, Hit@2 = 1.
    """
    return (lists.total(lists.ranks <= k) > 0).astype(np.float64)


def recall(lists: RankedLists, k: int) -> Float64s:
    """Returns the share of a list's held-out items that are among its first k, float64[L].

    Source: Herlocker et al.: Evaluating collaborative filtering recommender systems, TOIS 2004, section 4.2. Held-out
        at ranks 2 and 7: Recall@5 = 1/2.
    """
    return lists.total(lists.ranks <= k) / lists.num_held_out


def precision(lists: RankedLists, k: int) -> Float64s:
    """Returns the share of a list's first k that are held out, float64[L]; k is the divisor of shorter lists too.

    Source: Herlocker et al., as for recall. Held-out at ranks 2 and 7: Precision@5 = 1/5.
    """
    return lists.total(lists.ranks <= k) / k


def average_precision(lists: RankedLists, k: int) -> Float64s:
    """Returns the mean over a list's held-out items of the precision at their rank, 0 beyond k; its mean is MAP@k.

    With one held-out item this is the reciprocal rank cut at k.

    Source: Buckley, Voorhees: Evaluating evaluation measure stability, SIGIR 2000, section 2; cut at k as trec_eval's
        map_cut_k. Held-out at ranks 2 and 7: MAP@5 = (1/2) / 2 = 0.25, MAP@7 = (1/2 + 2/7) / 2 = 0.392857.
    """
    order = np.lexsort((lists.ranks, lists.list_of))
    ranks, list_of = lists.ranks[order], lists.list_of[order]
    starts = np.cumsum(lists.num_held_out) - lists.num_held_out
    num_found = np.arange(1, len(ranks) + 1) - starts[list_of]
    precisions = np.where(ranks <= k, num_found / ranks, 0.0)
    return np.bincount(list_of, weights=precisions, minlength=lists.num_lists) / lists.num_held_out


def ndcg(lists: RankedLists, k: int) -> Float64s:
    """Returns the discounted gain of a list's first k over that of the best possible order, float64[L].

    A held-out item at rank r gains 1 / log2(r + 1); the best order has min(k, held-out items) first.

    Source: Järvelin, Kekäläinen: Cumulated gain-based evaluation of IR techniques, TOIS 2002, sections 2.2 and 2.3,
        with the discount in use since Burges et al., ICML 2005. Held-out at ranks 2 and 7:
        NDCG@5 = (1 / log2 3) / (1 / log2 2 + 1 / log2 3) = 0.630930 / 1.630930 = 0.386853.
    """
    gains = 1.0 / np.log2(lists.ranks + 1.0)
    ideal = np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))
    best: Float64s = ideal[np.minimum(lists.num_held_out, k) - 1]
    return lists.total(np.where(lists.ranks <= k, gains, 0.0)) / best


def reciprocal_rank(lists: RankedLists) -> Float64s:
    """Returns 1 / rank of a list's first held-out item, float64[L]; its mean is MRR.

    Source: Voorhees: The TREC-8 question answering track report, 1999, section 3. Held-out at ranks 2 and 7: 1/2.
    """
    best = np.zeros(lists.num_lists)
    np.maximum.at(best, lists.list_of, 1.0 / lists.ranks)
    return best


_AT_K = {"Hit": hit, "NDCG": ndcg, "Recall": recall, "Precision": precision, "MAP": average_precision}


def values_by_user(lists: RankedLists, ks: Sequence[int]) -> dict[str, Float64s]:
    """Returns each metric of U users, float64[U], by its label (`NDCG@10`)."""
    by_list = {f"{name}@{k}": metric(lists, k) for name, metric in _AT_K.items() for k in sorted(set(ks))}
    by_list["MRR"] = reciprocal_rank(lists)
    return {name: lists.mean_by_user(values) for name, values in by_list.items()}
