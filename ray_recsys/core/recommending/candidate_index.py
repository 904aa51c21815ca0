"""Recall: the items that may be a user's best, from the whole catalogue, without those that are not eligible.

Shapes: C candidates, I items, Q query width.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import faiss
import numpy as np

from ray_recsys.core.arrays import Float32s, Int32s, Int64s, Integers
from ray_recsys.core.models.contract import DenseFactors, Model, RecallSpace, UserFactors
from ray_recsys.errors import IntegrityError


class Recall(Protocol):
    """Finds candidates for one user."""

    def search(
        self, user: UserFactors, num_candidates: int, excluded: Integers, allowed: Int32s | None = None
    ) -> Int32s:
        """Returns the items with the highest recall scores, best first, ties by item_idx; int32[<= C].

        Args:
            user: Factors of one user, of the recall model.
            num_candidates: C; fewer are returned only where fewer items are eligible.
            excluded: Distinct indices of items that are not eligible.
            allowed: Distinct indices; None: all items that are not excluded are eligible, otherwise only these.
        """
        ...


class CandidateIndex:
    """A Faiss inner-product index over the item vectors of a recall space.

    One query per call, so that an answer does not depend on what else is asked.

    Args:
        index: A Faiss inner-product index whose ids are item indices.
    """

    def __init__(self, index: Any) -> None:
        self._index = index

    @cached_property
    def _vectors(self) -> Float32s:
        """The index's own memory, float32[I, Q]."""
        flat: Float32s = faiss.rev_swig_ptr(self._index.get_xb(), self.num_items * self._index.d)
        return flat.reshape(self.num_items, self._index.d)

    @classmethod
    def build(cls, space: RecallSpace) -> Self:
        """Returns an exact index."""
        index = faiss.IndexFlatIP(space.query_width)
        index.add(np.ascontiguousarray(space.item_vectors, np.float32))
        return cls(index)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads an index file.

        Raises:
            IntegrityError: Faiss cannot read it.
        """
        try:
            return cls(faiss.read_index(str(path)))
        except RuntimeError as error:
            raise IntegrityError(f"{path} is not a Faiss index", remedy="publish the bundle again") from error

    def write(self, path: Path) -> None:
        """Writes the index file."""
        faiss.write_index(self._index, str(path))

    @property
    def num_items(self) -> int:
        """I."""
        return int(self._index.ntotal)

    def vectors(self, first: int, num_items: int) -> Float32s:
        """Returns the vectors of consecutive items, float32[n, Q]."""
        vectors: Float32s = self._index.reconstruct_n(first, num_items)
        return vectors

    def search(
        self, user: UserFactors, num_candidates: int, excluded: Integers, allowed: Int32s | None = None
    ) -> Int32s:
        """Returns the items with the highest inner product; see `Recall`.

        Exact: excluded items cannot displace others, because as many more are asked for; of items tied at the edge the
        lowest indices are taken.
        """
        assert isinstance(user, DenseFactors)
        query = np.ascontiguousarray(user.values[:1, : self._index.d])
        if allowed is not None:
            items = np.setdiff1d(allowed, excluded, assume_unique=True)
            return _best(items, self._vectors[items] @ query[0], num_candidates)
        wanted = min(num_candidates + len(excluded), self.num_items)
        items = self._search(query, wanted)
        if excluded.size:
            items = items[~np.isin(items, excluded)]
        return items[:num_candidates].astype(np.int32)

    def _search(self, query: Float32s, wanted: int) -> Int64s:
        """Returns the `wanted` best, in the exact order: asks for more until the last is worse than the last wanted."""
        asked = min(wanted + 1, self.num_items)
        while True:
            scores, items = self._index.search(query, asked)
            if asked == self.num_items or scores[0, -1] < scores[0, wanted - 1]:
                order = np.lexsort((items[0], -scores[0]))[:wanted]
                best: Int64s = items[0, order]
                return best
            asked = min(2 * asked, self.num_items)


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
        scores[excluded] = -np.inf
        num_kept = min(num_candidates, len(scores) - len(excluded))
        if num_kept <= 0:
            return np.zeros(0, np.int32)
        edge = np.partition(scores, len(scores) - num_kept)[len(scores) - num_kept]
        items = np.flatnonzero(scores >= edge)
        return _best(items, scores[items], num_kept)


def _best(items: Integers, scores: Float32s, num_kept: int) -> Int32s:
    """Returns the items with the highest scores, best first, ties by item_idx."""
    order = np.lexsort((items, -scores))[:num_kept]
    return items[order].astype(np.int32)
