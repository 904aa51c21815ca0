"""Recall: a user's candidates from all eligible items of the catalogue.

Shapes: B users, C candidates, I items, Q query width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import faiss
import numpy as np
import torch

from ray_recsys.core.arrays import Float32s, Int32s, Int64s, Integers
from ray_recsys.core.models.contract import DenseFactors, Model, UserFactors
from ray_recsys.errors import IntegrityError

VECTORS = "recall_vectors.npy"
LISTS = "recall_lists.faiss"


class Recall(Protocol):
    """Finds candidates for one user."""

    def search(
        self, user: UserFactors, num_candidates: int, excluded: Integers, allowed: Int32s | None = None
    ) -> Int32s:
        """Returns the items with the highest recall scores, best first, ties by item_idx; int32[<= C].

        Args:
            user: Factors of one user, of the recall model.
            num_candidates: C; fewer are returned only where fewer items are eligible.
            excluded: Distinct indices of items that are not eligible, ascending.
            allowed: Distinct indices; None: all items that are not excluded are eligible, otherwise only these.
        """
        ...


class CandidateIndex:
    """Maximum inner product search over the item vectors of a recall space; exact, or approximate with lists.

    Vectors and lists are mapped into memory, so that the processes of a node share them.

    Args:
        vectors: float32[I, Q].
        lists: A Faiss IVF index over the same vectors, whose ids are item indices, with its number of probes set; None:
            every item is scored.
    """

    def __init__(self, vectors: Float32s, lists: Any = None) -> None:
        self.vectors, self._lists = vectors, lists
        self._tensor = torch.from_numpy(vectors)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Maps the files of a directory.

        Raises:
            IntegrityError: They cannot be read, or do not belong together.
        """
        try:
            vectors = np.load(directory / VECTORS, mmap_mode="c", allow_pickle=False).view(np.ndarray)
            has_lists = (directory / LISTS).is_file()
            lists = faiss.read_index(str(directory / LISTS), faiss.IO_FLAG_MMAP) if has_lists else None
        except (OSError, ValueError, RuntimeError) as error:
            message = f"{directory}: the recall index cannot be read ({error})"
            raise IntegrityError(message, remedy="publish the bundle again") from error
        if vectors.ndim != 2 or (lists is not None and (lists.ntotal, lists.d) != vectors.shape):
            raise IntegrityError(f"{directory / LISTS} does not belong to {VECTORS}", remedy="publish the bundle again")
        return cls(vectors, lists)

    def write(self, directory: Path) -> None:
        """Writes the files."""
        np.save(directory / VECTORS, self.vectors, allow_pickle=False)
        if self._lists is not None:
            faiss.write_index(self._lists, str(directory / LISTS))

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.vectors)

    def search(
        self, user: UserFactors, num_candidates: int, excluded: Integers, allowed: Int32s | None = None
    ) -> Int32s:
        """Returns the items with the highest inner product; see `Recall`.

        Excluded items cannot displace others: the search returns as many more.
        """
        if allowed is not None:
            items = np.setdiff1d(allowed, excluded, assume_unique=True)
            return _best(items, self.vectors[items] @ self._query(user)[0], num_candidates)
        return self.search_all(user, [num_candidates], [excluded])[0]

    def search_all(
        self, users: UserFactors, num_candidates: Sequence[int], excluded: Sequence[Integers]
    ) -> list[Int32s]:
        """Returns what `search` does for each of B users, in one pass over the vectors.

        Args:
            users: Factors of B users.
            num_candidates: C of each.
            excluded: Distinct indices of items that are not eligible, ascending, of each.
        """
        query = self._query(users)
        if self._lists is None:
            scores = torch.mm(torch.from_numpy(query), self._tensor.T).numpy()
            return [
                _best_eligible(row, out, count)
                for row, out, count in zip(scores, excluded, num_candidates, strict=True)
            ]
        wanted = [min(count + len(out), self.num_items) for count, out in zip(num_candidates, excluded, strict=True)]
        rows = zip(self._search_lists(query, wanted), excluded, num_candidates, strict=True)
        return [_without(items, out)[:count].astype(np.int32) for items, out, count in rows]

    def _query(self, users: UserFactors) -> Float32s:
        assert isinstance(users, DenseFactors)
        return np.ascontiguousarray(users.values[:, : self.vectors.shape[1]])

    def _search_lists(self, query: Float32s, wanted: list[int]) -> list[Int64s]:
        """Returns the `wanted` best of each query, with more probes where the lists hold too few."""
        num_probes, most = int(self._lists.nprobe), int(self._lists.nlist)
        while True:
            settings = faiss.SearchParametersIVF(nprobe=num_probes)  # type: ignore[call-arg]  # Faiss adds it
            scores, items = self._lists.search(query, max(wanted), params=settings)
            num_found = (items >= 0).sum(axis=1)
            if num_probes == most or (num_found >= wanted).all():
                kept = np.minimum(num_found, wanted).tolist()
                return _in_order(scores, items, kept)
            num_probes = min(2 * num_probes, most)


def _in_order(scores: Float32s, items: Int64s, num_kept: Sequence[int]) -> list[Int64s]:
    """Returns the first items of each row, best first, ties by item_idx."""
    return [
        own[np.lexsort((own, -row))][:kept] for row, own, kept in zip(scores, items, num_kept, strict=True)
    ]  # fmt: skip


class RankedCatalogue:
    """Recall by a model without a recall space: its scores of the whole catalogue.

    Args:
        model: The recall model.
    """

    def __init__(self, model: Model) -> None:
        self._model = model

    def search(
        self, user: UserFactors, num_candidates: int, excluded: Integers, allowed: Int32s | None = None
    ) -> Int32s:
        """Returns the items with the highest scores; see `Recall`."""
        scores = self._model.scores(user)[0]
        if allowed is not None:
            items = np.setdiff1d(allowed, excluded, assume_unique=True)
            return _best(items, scores[items], num_candidates)
        return _best_eligible(scores, excluded, num_candidates)


def _best_eligible(scores: Float32s, excluded: Integers, num_candidates: int) -> Int32s:
    """Returns the items with the highest scores that are not excluded, best first; overwrites `scores`, float32[I]."""
    scores[excluded] = -np.inf
    num_kept = min(num_candidates, len(scores) - len(excluded))
    if num_kept <= 0:
        return np.zeros(0, np.int32)
    edge = np.partition(scores, len(scores) - num_kept)[len(scores) - num_kept]
    items = np.flatnonzero(scores >= edge)
    return _best(items, scores[items], num_kept)


def _without(items: Int64s, excluded: Integers) -> Int64s:
    """Returns the items that are not among the excluded ones, which ascend."""
    if not len(excluded):
        return items
    at = np.minimum(np.searchsorted(excluded, items), len(excluded) - 1)
    kept: Int64s = items[excluded[at] != items]
    return kept


def _best(items: Integers, scores: Float32s, num_kept: int) -> Int32s:
    """Returns the items with the highest scores, best first, ties by item_idx."""
    order = np.lexsort((items, -scores))[:num_kept]
    return items[order].astype(np.int32)
