"""Recommendations of many users as a table: one row per user and rank.

Calls the one `Recommender` that HTTP calls. Knows nothing of files. B users.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ray_recsys.core.recommending.recommender import Query, Recommender
from ray_recsys.core.vocabulary import Lookup


class RecommendationTable:
    """Makes tables with columns user_id, rank (from 1), item_id, score, title (if the bundle has titles), source."""

    def __init__(self, recommender: Recommender, *, k: int, num_candidates: int) -> None:
        self._recommender = recommender
        self._items = recommender.bundle.catalogue.table
        self._k, self._num_candidates = k, num_candidates
        self._popular = recommender.recommend(Query(k=k, num_candidates=num_candidates))

    def make(self, user_ids: pa.Array, users: Lookup) -> pa.Table:
        """Returns the best k items of each user, users in the order given; an unknown user gets popular items.

        Args:
            user_ids: B ids, as they are to be written.
            users: Their indices.
        """
        known = zip(users.idx.tolist(), users.is_known.tolist(), strict=True)
        answers = [
            self._recommender.recommend(Query(idx, k=self._k, num_candidates=self._num_candidates))
            if is_known
            else self._popular
            for idx, is_known in known
        ]
        lengths = np.array([len(answer.item_idx) for answer in answers], np.int64)
        rows = np.repeat(np.arange(len(answers)), lengths)
        items = pa.array(_concatenate([answer.item_idx for answer in answers], np.int32))
        columns = {
            "user_id": user_ids.take(pa.array(rows)),
            "rank": pa.array(np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1, pa.int32()),
            "item_id": self._items["item_id"].take(items),
            "score": pa.array(_concatenate([answer.scores for answer in answers], np.float32)),
        }
        if "title" in self._items.column_names:
            columns["title"] = self._items["title"].take(items)
        sources = pa.array([answer.source for answer in answers], pa.string())
        return pa.table({**columns, "source": sources.take(pa.array(rows))})


def _concatenate(parts: Sequence[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *parts])
