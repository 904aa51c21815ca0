"""Scores of (user, item) pairs given by their ids, from a bundle.

Knows nothing of files. B pairs.
"""

import pyarrow as pa
import torch

from ray_recsys.core.recommending.bundle import Bundle


class PairScorer:
    """Scores pairs with a bundle's model; equal to `recommend`'s scores but for the rounding of float32 sums."""

    def __init__(self, bundle: Bundle) -> None:
        self._users = bundle.users
        self._items = bundle.catalogue.vocabulary
        self._model = bundle.load_model()

    @torch.inference_mode()
    def score(self, user_ids: pa.Array, item_ids: pa.Array) -> pa.Array:
        """Returns the score (logit) of each pair, float32[B]; null where the bundle does not know the user or item.

        Raises:
            DataError: The ids are neither integers nor strings.
        """
        users, items = self._users.lookup(user_ids), self._items.lookup(item_ids)
        is_known = users.is_known & items.is_known
        pairs = (torch.from_numpy(users.idx[is_known]), torch.from_numpy(items.idx[is_known]).unsqueeze(1))
        known = pa.array(self._model(*pairs).squeeze(1).numpy(), pa.float32())
        mask = pa.array(is_known)
        return pa.nulls(len(mask), pa.float32()) if not len(known) else _spread(known, mask)


def _spread(known: pa.Array, mask: pa.Array) -> pa.Array:
    """Returns the values of `known`, in order, where the mask is true, and null elsewhere."""
    is_known = mask.to_numpy(zero_copy_only=False)
    places = pa.array(is_known.cumsum() - 1, mask=~is_known)
    return known.take(places)
