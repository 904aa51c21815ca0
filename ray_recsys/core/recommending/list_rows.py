"""Recommendations of many users as rows of a table: the lists that HTTP gives, made a batch of users at a time.

The sums of a batch are rounded otherwise than those of one request. Where two scores are so close that this could
change their order, the user's candidates are reranked alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_recsys.core.arrays import Int64s, ranks_in_rows
from ray_recsys.core.recommending.recommender import Query, Recommendations, Recommender, Source
from ray_recsys.core.vocabulary import Lookup

USERS_PER_CALL = 64
_ROUNDING = 2e-6  # of a user's largest score: how far a difference of two scores was seen to move, and a bit
_SOURCES: tuple[Source, ...] = ("two-stage", "popular")


@dataclass(frozen=True, slots=True)
class ListRows:
    """Makes batches with columns user_id, rank (from 1), item_id, score, title (if the bundle has titles), source.

    Strings come as dictionaries of what occurs in the batch.

    Args:
        recommender: Over the bundle.
        k: Items per user.
        num_candidates: Items that recall hands to rerank.
        popular: What an unknown user gets.
    """

    recommender: Recommender
    k: int
    num_candidates: int
    popular: Recommendations

    @classmethod
    def of(cls, recommender: Recommender, *, k: int, num_candidates: int) -> "ListRows":
        """Returns what makes rows with these settings."""
        popular = recommender.recommend(Query(k=k, num_candidates=num_candidates))
        return cls(recommender, k, num_candidates, popular)

    def schema(self, user_ids: pa.Array) -> pa.Schema:
        """Returns the schema of the batches of users with such ids."""
        return self.batch(user_ids[:0], Lookup(np.zeros(0, np.int64), np.zeros(0, np.bool_))).schema

    def batch(self, user_ids: pa.Array, users: Lookup) -> pa.RecordBatch:
        """Returns the best k items of each user, users in the order given.

        Args:
            user_ids: Ids of the users, as they are to be written.
            users: Their indices.
        """
        answers = self._answers(users)
        lengths = np.array([len(answer.item_idx) for answer in answers], np.int64)
        rows = np.repeat(np.arange(len(answers)), lengths)
        items = _concatenate([answer.item_idx for answer in answers], np.int32)
        distinct, entries = np.unique(items, return_inverse=True)
        table = self.recommender.bundle.catalogue.table.take(pa.array(distinct))
        sources = np.array([_SOURCES.index(answer.source) for answer in answers], np.int64)
        columns = {
            "user_id": _taken(user_ids, rows),
            "rank": pa.array(ranks_in_rows(lengths) + 1, pa.int32()),
            "item_id": _taken(table["item_id"], entries),
            "score": pa.array(_concatenate([answer.scores for answer in answers], np.float32)),
        }
        if "title" in table.column_names:
            columns["title"] = _taken(table["title"], entries)
        return pa.record_batch({**columns, "source": _taken(pa.array(_SOURCES, pa.string()), sources[rows])})

    def _answers(self, users: Lookup) -> list[Recommendations]:
        answers = [self.popular] * len(users.idx)
        known = np.flatnonzero(users.is_known)
        for first in range(0, len(known), USERS_PER_CALL):
            rows = known[first : first + USERS_PER_CALL]
            for row, answer in zip(rows, self._answer_all(users.idx[rows].tolist()), strict=True):
                answers[row] = answer
        return answers

    def _answer_all(self, user_idx: list[int]) -> list[Recommendations]:
        recommender = self.recommender
        # one item more, to see whether the last place is a close call; recall finds at least k
        k = self.k + (self.num_candidates > self.k)
        queries = [Query(idx, k=k, num_candidates=self.num_candidates) for idx in user_idx]
        candidates = recommender.recaller.recall_all(queries)
        answers = [
            recommender.reranker.rerank(query, found) if _is_close_call(answer) else answer
            for query, found, answer in zip(
                queries, candidates, recommender.reranker.rerank_all(queries, candidates), strict=True
            )
        ]
        return [
            Recommendations(answer.item_idx[: self.k], answer.scores[: self.k], answer.source) for answer in answers
        ]


def _is_close_call(answer: Recommendations) -> bool:
    """Returns whether rounding could have changed the order of the items."""
    if len(answer.scores) < 2:
        return False
    return bool((answer.scores[:-1] - answer.scores[1:]).min() <= _ROUNDING * np.abs(answer.scores).max())


def _taken(values: pa.Array | pa.ChunkedArray, rows: Int64s) -> pa.Array:
    """Returns values by row; strings are not copied, since their rows are many and distinct ones few."""
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if pa.types.is_integer(values.type):
        return values.take(pa.array(rows))
    return pa.DictionaryArray.from_arrays(pa.array(rows.astype(np.int32)), values)


def _concatenate(parts: Sequence[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts])
