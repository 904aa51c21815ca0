"""Recommendations of many users as rows of a table: the lists that HTTP gives, made a batch of users at a time."""

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
        distinct, places = np.unique(items, return_inverse=True)
        table = self.recommender.bundle.catalogue.table.take(pa.array(distinct))
        sources = np.array([_SOURCES.index(answer.source) for answer in answers], np.int64)
        columns = {
            "user_id": _taken(user_ids, rows),
            "rank": pa.array(ranks_in_rows(lengths) + 1, pa.int32()),
            "item_id": _taken(table["item_id"], places),
            "score": pa.array(_concatenate([answer.scores for answer in answers], np.float32)),
        }
        if "title" in table.column_names:
            columns["title"] = _taken(table["title"], places)
        return pa.record_batch({**columns, "source": _taken(pa.array(_SOURCES, pa.string()), sources[rows])})

    def _answers(self, users: Lookup) -> list[Recommendations]:
        answers = [self.popular] * len(users.idx)
        known = np.flatnonzero(users.is_known)
        for first in range(0, len(known), USERS_PER_CALL):
            rows = known[first : first + USERS_PER_CALL]
            queries = [Query(idx, k=self.k, num_candidates=self.num_candidates) for idx in users.idx[rows].tolist()]
            candidates = self.recommender.recaller.recall_all(queries)
            for row, answer in zip(rows, self.recommender.reranker.rerank_all(queries, candidates), strict=True):
                answers[row] = answer
        return answers


def _taken(values: pa.Array | pa.ChunkedArray, rows: Int64s) -> pa.Array:
    """Returns values by row; strings are not copied, since their rows are many and distinct ones few."""
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if pa.types.is_integer(values.type):
        return values.take(pa.array(rows))
    return pa.DictionaryArray.from_arrays(pa.array(rows.astype(np.int32)), values)


def _concatenate(parts: Sequence[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts])
