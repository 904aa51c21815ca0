"""Candidate lists read from a file, and the metrics of a scorer on them.

A list is a user with candidate items, one or more of which are labelled 1: held out. The lists are ranked as given. A
pair whose user or item is unknown to the model has no score and ranks last in its list, for every scorer. Lists without
a held-out item have no metrics and are skipped.

Shapes: L lists, n candidates in all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

from ray_recsys.config import EvaluateRecipe
from ray_recsys.core.arrays import Bools, Int64s
from ray_recsys.core.evaluation.metric_sums import MetricSums
from ray_recsys.core.evaluation.metrics import RankedLists
from ray_recsys.core.evaluation.ranking import TieOrder, check_finite, ranks_of
from ray_recsys.core.models.contract import Scorer
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.table_files import IdFile
from ray_recsys.core.vocabulary import Lookup, Vocabulary
from ray_recsys.errors import DataError, EmptyDataError
from ray_recsys.storage.location import LocationLike

COLUMNS = ("user_id", "item_id", "label")
_MAX_SCORES = 1 << 22  # padded candidates held at once
_LABELS = "a label is 1 (held out) or 0"


@dataclass(frozen=True, slots=True)
class CandidateLists:
    """L lists, one after the other: list l has the candidates `offsets[l]:offsets[l + 1]`.

    Attributes:
        users: Of the lists; distinct.
        offsets: int64[L + 1].
        item_idx: int64[n]; 0 where the item is unknown.
        is_known: Whether the item is known, bool[n].
        is_held_out: bool[n]; at least one a list.
        num_skipped: Lists without a held-out item.
    """

    users: Lookup
    offsets: Int64s
    item_idx: Int64s
    is_known: Bools
    is_held_out: Bools
    num_skipped: int

    @classmethod
    def read(cls, path: LocationLike, prepared: PreparedSet) -> Self:
        """Returns the lists of a file with the columns user_id, item_id and label (1: held out, 0: not).

        Args:
            path: Parquet or CSV.
            prepared: Whose users and items are known.

        Raises:
            DataError: The file cannot be read, lacks a column, has a null, another label, or a pair twice.
            EmptyDataError: There is no row, or no row has label 1.
        """
        table = IdFile.open(path, COLUMNS).read(COLUMNS)
        is_held_out = _labels(table["label"], path)
        users = table["user_id"].combine_chunks().dictionary_encode()
        codes = users.indices.to_numpy().astype(np.int64)
        lookup = Vocabulary.of(prepared.read_items()["item_id"]).lookup(table["item_id"])
        _check_distinct(codes, table["item_id"].combine_chunks(), users.dictionary, path)
        has_held_out = np.bincount(codes, weights=is_held_out, minlength=len(users.dictionary)) > 0
        if not has_held_out.any():
            raise EmptyDataError(f"{path}: no row has label 1", remedy="label each user's held-out item with 1")
        order = np.argsort(codes, kind="stable")
        order = order[has_held_out[codes[order]]]
        lengths = np.bincount(codes, minlength=len(has_held_out))[has_held_out]
        return cls(
            _find_users(users.dictionary.filter(pa.array(has_held_out)), prepared),
            np.concatenate([[0], np.cumsum(lengths)]),
            np.where(lookup.is_known, lookup.idx, 0)[order],
            lookup.is_known[order],
            is_held_out[order],
            int((~has_held_out).sum()),
        )

    @property
    def num_lists(self) -> int:
        """L."""
        return len(self.users.idx)

    @property
    def num_unknown_candidates(self) -> int:
        """Candidates whose item is unknown."""
        return int((~self.is_known).sum())

    def evaluate(self, scorer: Scorer, lists: Int64s, *, recipe: EvaluateRecipe, seed: int) -> MetricSums:
        """Returns the metric sums of some lists.

        Args:
            scorer: Of the whole catalogue.
            lists: Which to evaluate, int64[<= L].
            recipe: Ks, and lists scored at once.
            seed: Of the order of ties.

        Raises:
            StageError: A score is NaN or infinite; names the user.
        """
        batches = self._batches(lists, recipe.users_per_batch)
        return MetricSums.total(self._evaluate(scorer, batch, recipe, seed) for batch in batches)

    def _batches(self, lists: Int64s, size: int) -> Iterator[Int64s]:
        """Yields lists of similar length, longest first, since a batch is padded to its longest."""
        lengths = np.diff(self.offsets)[lists]
        order, start = np.argsort(-lengths, kind="stable"), 0
        while start < len(lists):
            stop = start + max(1, min(size, _MAX_SCORES // int(lengths[order[start]])))
            yield lists[order[start:stop]]
            start = stop

    def _evaluate(self, scorer: Scorer, lists: Int64s, recipe: EvaluateRecipe, seed: int) -> MetricSums:
        lengths = self.offsets[lists + 1] - self.offsets[lists]
        columns = np.arange(int(lengths.max()))
        is_candidate = columns < lengths[:, None]
        positions = np.where(is_candidate, self.offsets[lists][:, None] + columns, self.offsets[lists][:, None])
        has_score = is_candidate & self.is_known[positions] & self.users.is_known[lists][:, None]
        scores = np.full(positions.shape, -np.inf, np.float32)
        scored = np.flatnonzero(has_score.any(axis=1))
        user_idx = np.where(self.users.is_known, self.users.idx, 0)[lists]
        if len(scored):
            found = scorer.scores(scorer.users(user_idx[scored]), self.item_idx[positions[scored]])
            check_finite(found, user_idx[scored])
            scores[scored] = np.where(has_score[scored], found, -np.inf)
        rows, own = np.nonzero(is_candidate & self.is_held_out[positions])
        ranks = ranks_of(scores[rows], own, TieOrder(seed, user_idx[rows], self.item_idx[positions[rows]]))
        ranks = np.where(has_score[rows, own], ranks, lengths[rows])
        return MetricSums.of(
            RankedLists(ranks, rows, np.arange(len(lists))), ks=recipe.ks, num_candidates=int(lengths.sum())
        )


def _labels(column: pa.ChunkedArray, path: LocationLike) -> Bools:
    try:
        labels = column.cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path}, column label: {error}", remedy=_LABELS) from error
    is_held_out: Bools = labels == 1
    is_wrong = ~is_held_out & (labels != 0)
    if is_wrong.any():
        row = int(np.argmax(is_wrong))
        raise DataError(f"{path}, column label, row {row + 1}: {labels[row]:g}", remedy=_LABELS)
    return is_held_out


def _check_distinct(codes: Int64s, item_ids: pa.Array, user_ids: pa.Array, path: LocationLike) -> None:
    items = item_ids.dictionary_encode()
    keys = codes * len(items.dictionary) + items.indices.to_numpy()
    distinct, counts = np.unique(keys, return_counts=True)
    if len(distinct) < len(keys):
        user, item = divmod(int(distinct[np.argmax(counts > 1)]), len(items.dictionary))
        pair = f"user {user_ids[user].as_py()!r}, item {items.dictionary[item].as_py()!r}"
        raise DataError(f"{path}: {pair} occurs twice", remedy="list a candidate once per user")


def _find_users(user_ids: pa.Array, prepared: PreparedSet) -> Lookup:
    """Returns which users a prepared set has, and their indices; its ids are read a partition at a time."""
    idx, is_known = np.zeros(len(user_ids), np.int64), np.zeros(len(user_ids), np.bool_)
    for partition, info in enumerate(prepared.manifest.partitions):
        if info.num_users:
            found = Vocabulary.of(prepared.read_user_ids(partition)).lookup(user_ids)
            idx[found.is_known] = found.known + info.first_user_idx
            is_known |= found.is_known
    return Lookup(idx, is_known)
