"""What evaluation asks of a model: scores for users and items, higher being better.

Any comparable number will do as a score; it knows nothing of candidates, seen items or metrics. B users, C candidates,
I items.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from ray_recsys.core.arrays import Float32s, Int64s


class Scorer(Protocol):
    """Scores users' items; a score depends on its user and item alone, not on the rest of the call.

    Scores are finite. The arrays returned are the caller's to overwrite.
    """

    def score_catalogue(self, user_idx: Int64s) -> Float32s:
        """Returns the scores of every item for each user, float32[B, I].

        Args:
            user_idx: int64[B].
        """
        ...

    def score_pairs(self, user_idx: Int64s, item_idx: npt.NDArray[np.integer]) -> Float32s:
        """Returns the scores of each user with its own items, float32[B, C].

        Args:
            user_idx: int64[B].
            item_idx: Integers [B, C], each in 0..I-1.
        """
        ...
