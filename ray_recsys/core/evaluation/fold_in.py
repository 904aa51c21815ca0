"""A model's scores for users who are folded in from their histories, as in a request."""

import numpy as np

from ray_recsys.core.arrays import Float32s, Int32s, Int64s, Integers
from ray_recsys.core.histories import Histories
from ray_recsys.core.models.contract import DenseFactors, Model, SparseFactors, UserFactors


class FoldedIn:
    """Scores users by folding in their histories, oldest first; their own factors, if it has any, are not used.

    Args:
        model: It can fold in; its users may be others.
        histories: Of the users to score, each with training interactions.
        with_validation: Whether the validation interactions are part of the history.
    """

    def __init__(self, model: Model, histories: Histories, *, with_validation: bool = False) -> None:
        self._model, self._histories, self._with_validation = model, histories, with_validation

    def users(self, user_idx: Int64s) -> UserFactors:
        """Returns the factors of users of `histories`."""
        parts = [self._model.fold_in(self.history(int(user))) for user in user_idx]
        dense = [part for part in parts if isinstance(part, DenseFactors)]
        if dense:
            return DenseFactors(np.concatenate([part.values for part in dense]))
        sparse = [part for part in parts if isinstance(part, SparseFactors)]
        assert len(sparse) == len(user_idx), "the model can fold in"
        lengths = np.concatenate([np.diff(part.offsets) for part in sparse])
        return SparseFactors(
            np.concatenate([[0], np.cumsum(lengths)]),
            np.concatenate([part.idx for part in sparse]),
            np.concatenate([part.weights for part in sparse]),
        )

    def scores(self, users: UserFactors, item_idx: Integers | None = None) -> Float32s:
        """Returns the model's scores."""
        return self._model.scores(users, item_idx)

    def history(self, user_idx: int) -> Int32s:
        """Returns what a request of a user of `histories` gives."""
        row = user_idx - self._histories.first_user_idx
        parts = [self._histories.training] + ([self._histories.validation] if self._with_validation else [])
        return np.concatenate([part.item_idx[part.offsets[row] : part.offsets[row + 1]] for part in parts])
