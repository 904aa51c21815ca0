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
from ray_recsys.core.recommending.top_items import top_items
from ray_recsys.errors import IntegrityError

VECTORS = "recall_vectors.npy"
LISTS = "recall_lists.faiss"


class Recall(Protocol):
    """Finds candidates for one user."""

    def search(
        self, user: UserFactors, num_candidates: int, excluded: Integers, allowed: Int32s | None = None
    ) -> Int32s:
        """Returns the items with the highest recall scores, ascending; of those tied for the last place, the first.

        Reranking orders them.

        Args:
            user: Factors of one user, of the recall model.
            num_candidates: C, at least 1; fewer are returned only where fewer items are eligible: int32[<= C].
            excluded: Indices of items that are not eligible, in any order.
            allowed: Distinct indices, ascending: only these are eligible; None: all that are not excluded are.
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
            items = allowed[~np.isin(allowed, excluded)]
            scores = torch.from_numpy(self.vectors[items]) @ torch.from_numpy(self._query(user)[0])
            return items[top_items(scores.numpy()[np.newaxis], num_candidates)[0]].astype(np.int32)
        return self.search_all(user, [num_candidates], [excluded])[0]

    def search_all(
        self, users: UserFactors, num_candidates: Sequence[int], excluded: Sequence[Integers]
    ) -> list[Int32s]:
        """Returns what `search` does for each of B users, in one pass over the vectors.

        Args:
            users: Factors of B users.
            num_candidates: C of each.
            excluded: Indices of items that are not eligible, of each.
        """
        query = self._query(users)
        if self._lists is not None:
            return self._search_lists(query, num_candidates, excluded)
        scores = torch.mm(torch.from_numpy(query), self._tensor.T).numpy()
        for row, out in zip(scores, excluded, strict=True):
            row[out] = -np.inf
        if len(set(num_candidates)) == 1:
            return top_items(scores, num_candidates[0])
        return [top_items(row[np.newaxis], count)[0] for row, count in zip(scores, num_candidates, strict=True)]

    def _query(self, users: UserFactors) -> Float32s:
        assert isinstance(users, DenseFactors)
        return np.ascontiguousarray(users.values[:, : self.vectors.shape[1]])

    def _search_lists(
        self, query: Float32s, num_candidates: Sequence[int], excluded: Sequence[Integers]
    ) -> list[Int32s]:
        wanted = [min(count + len(out), self.num_items) for count, out in zip(num_candidates, excluded, strict=True)]
        scores, items = self._probe(query, wanted)
        rows = zip(scores, items, excluded, num_candidates, strict=True)
        return [_best_found(own_scores, own, out, count) for own_scores, own, out, count in rows]

    def _probe(self, query: Float32s, wanted: list[int]) -> tuple[Float32s, Int64s]:
        """Returns the best of each query that its probes find, best first, then -1; more probes if they are too few."""
        num_probes, most = int(self._lists.nprobe), int(self._lists.nlist)
        while True:
            settings = faiss.SearchParametersIVF(nprobe=num_probes)  # type: ignore[call-arg]  # Faiss adds it
            scores, items = self._lists.search(query, max(wanted), params=settings)
            if num_probes == most or ((items >= 0).sum(axis=1) >= wanted).all():
                return scores, items
            num_probes = min(2 * num_probes, most)


def _best_found(scores: Float32s, items: Int64s, excluded: Integers, num_candidates: int) -> Int32s:
    """Returns the best of found items, which come best first, that are not excluded; ascending."""
    is_kept = (items >= 0) & ~np.isin(items, excluded)
    items, scores = items[is_kept], scores[is_kept]
    if len(items) > num_candidates and scores[num_candidates] == scores[num_candidates - 1]:
        items = items[np.lexsort((items, -scores))]  # Faiss leaves the order of ties open
    return np.sort(items[:num_candidates].astype(np.int32))


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
        scores = self._model.scores(user)
        if allowed is not None:
            items = allowed[~np.isin(allowed, excluded)]
            return items[top_items(scores[:, items], num_candidates)[0]].astype(np.int32)
        scores[0, excluded] = -np.inf
        return top_items(scores, num_candidates)[0]
