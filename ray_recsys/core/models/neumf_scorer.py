"""Fast inference with NeuMF: the item half of the first layer is computed once, and scores are numpy arrays.

The number of torch threads is the caller's business. Shapes: B users, C candidates, I items, H1 first hidden width.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ray_recsys.core.arrays import Float32s, Int64s
from ray_recsys.core.models.neumf import NeuMF

# Rows of a block are so many that its first hidden layer stays in the cache: 2 MB of float32.
_BLOCK_VALUES = 512 * 1024


class NeuMFScorer:
    """Scores (logits) of a trained NeuMF; see `core.evaluating.scorer` for the protocol.

    A user's scores do not depend on which other users are in the call, so that a batch job and a request agree.

    Args:
        model: Left as it is but for evaluation mode; changes of its weights after this are not seen.
    """

    def __init__(self, model: NeuMF) -> None:
        self._model = model.eval()
        with torch.inference_mode():
            self._item_hidden = model.item_hidden()
            self._item_gmf = model.item_gmf.detach()
            self._item_bias = model.item_bias.detach()
        self._block = max(1, _BLOCK_VALUES // self._item_hidden.shape[1])

    @property
    def num_items(self) -> int:
        """I."""
        return self._model.num_items

    @torch.inference_mode()
    def score_catalogue(self, user_idx: Int64s) -> Float32s:
        """Returns the scores of every item for each user, float32[B, I]; working memory is one block of items.

        Args:
            user_idx: int64[B].
        """
        device = self._item_gmf.device
        scores = torch.empty(len(user_idx), self.num_items, device=device)
        for row, gmf_D, bias, hidden_H in self._users(user_idx):
            for start in range(0, self.num_items, self._block):
                part = slice(start, start + self._block)
                torch.addmv(self._item_bias[part], self._item_gmf[part], gmf_D, out=scores[row, part])
                scores[row, part] += self._model.mlp_head(self._item_hidden[part] + hidden_H)
            scores[row] += bias
        return _to_numpy(scores)

    @torch.inference_mode()
    def score_pairs(self, user_idx: Int64s, item_idx: npt.NDArray[np.integer]) -> Float32s:
        """Returns the scores of each user with its own items, float32[B, C].

        Args:
            user_idx: int64[B].
            item_idx: Integers [B, C], each in 0..I-1.
        """
        device = self._item_gmf.device
        items = torch.from_numpy(np.ascontiguousarray(item_idx, np.int64)).to(device)
        scores = torch.empty(items.shape, device=device)
        for row, gmf_D, bias, hidden_H in self._users(user_idx):
            for start in range(0, items.shape[1], self._block):
                part = slice(start, start + self._block)
                chosen = items[row, part]
                torch.addmv(self._item_bias[chosen], self._item_gmf[chosen], gmf_D, out=scores[row, part])
                scores[row, part] += self._model.mlp_head(self._item_hidden[chosen].add_(hidden_H))
            scores[row] += bias
        return _to_numpy(scores)

    def _users(self, user_idx: Int64s) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yields each user's row, GMF vector (output weights folded in), bias and half of the first layer."""
        model = self._model
        users = torch.from_numpy(np.ascontiguousarray(user_idx, np.int64)).to(self._item_gmf.device)
        for row in range(len(users)):
            user = users[row : row + 1]
            gmf_D = model.user_gmf[user[0]] * model.gmf_output
            yield row, gmf_D, model.user_bias[user[0]] + model.global_bias, model.user_hidden(user)[0]


def _to_numpy(scores: Tensor) -> Float32s:
    array: Float32s = scores.cpu().numpy()
    return array
