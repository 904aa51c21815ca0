"""Stage 1: the items with the highest GMF logit, from the whole catalogue, by a Faiss inner-product index.

Shapes: D embedding width, C candidates. This module does not know what the vectors mean.
"""

from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
import numpy.typing as npt

from ray_recsys.core.arrays import Float32s, Int32s
from ray_recsys.errors import IntegrityError


class Recall:
    """Searches item vectors; one query a call, so that an answer does not depend on what else is asked."""

    def __init__(self, index: Any) -> None:
        """Args: a Faiss inner-product index whose ids are item indices."""
        self._index = index

    @classmethod
    def build(cls, item_vectors: Float32s) -> Self:
        """Returns exact recall over item vectors, float32[I, D + 1]."""
        index = faiss.IndexFlatIP(item_vectors.shape[1])
        index.add(np.ascontiguousarray(item_vectors, np.float32))
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
            raise IntegrityError(f"{path} is not a Faiss index; publish the bundle again") from error

    def write(self, path: Path) -> None:
        """Writes the index file."""
        faiss.write_index(self._index, str(path))

    @property
    def num_items(self) -> int:
        """I."""
        return int(self._index.ntotal)

    def search(self, user_vector: Float32s, num_candidates: int, excluded: npt.NDArray[np.integer[Any]]) -> Int32s:
        """Returns the items with the highest inner product, best first, ties by item_idx; int32[<= C].

        Exact: excluded items cannot take the place of others, because as many more are asked for; and of items tied at
        the edge the lowest indices are taken.

        Args:
            user_vector: float32[D + 1].
            num_candidates: C; fewer come back only where no more items are eligible.
            excluded: Distinct indices of items that are not eligible.
        """
        wanted = min(num_candidates + len(excluded), self.num_items)
        scores, items = self._search(user_vector, wanted)
        if excluded.size:
            is_eligible = ~np.isin(items, excluded)
            scores, items = scores[is_eligible], items[is_eligible]
        return items[:num_candidates].astype(np.int32)

    def _search(self, user_vector: Float32s, wanted: int) -> tuple[Float32s, npt.NDArray[np.int64]]:
        """Returns the `wanted` best, in the exact order: asks for more until the last is worse than the last wanted."""
        asked = min(wanted + 1, self.num_items)
        while True:
            scores, items = self._index.search(user_vector[np.newaxis], asked)
            if asked == self.num_items or scores[0, -1] < scores[0, wanted - 1]:
                order = np.lexsort((items[0], -scores[0]))[:wanted]
                return scores[0, order], items[0, order]
            asked = min(2 * asked, self.num_items)
