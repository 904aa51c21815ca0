"""Stage 2: NeuMF's logit for each candidate, and the best k of them.

The number of torch threads is the caller's business. Shapes: C candidates, D embedding width, H1 first hidden width,
I items.
"""

import numpy as np
import torch

from ray_recsys.core.arrays import Float32s, Int32s
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.recommending.user_row import UserRow


class Rerank:
    """Scores candidates of one user a call, so that an answer does not depend on what else is asked."""

    def __init__(self, model: NeuMF) -> None:
        self._model = model.eval()
        with torch.inference_mode():
            # one row an item, so that a candidate is one gather: GMF embedding, bias, item half of layer 1
            self._items = torch.cat([model.item_gmf, model.item_bias.unsqueeze(1), model.item_hidden()], dim=1)
        self._width = model.item_gmf.shape[1]

    @torch.inference_mode()
    def score(self, user: UserRow, item_idx: Int32s) -> Float32s:
        """Returns the logits of a user with items, float32[C]."""
        rows = self._items.index_select(0, torch.from_numpy(item_idx.astype(np.int64)))
        gmf_and_one = torch.from_numpy(user.recall_vector())
        scores = rows[:, : self._width + 1] @ gmf_and_one
        hidden = rows[:, self._width + 1 :] + torch.tensor(user.hidden)
        scores += self._model.mlp_head(hidden)
        scores += user.bias
        logits: Float32s = scores.numpy()
        return logits

    def best(self, user: UserRow, candidates: Int32s, k: int) -> tuple[Int32s, Float32s]:
        """Returns the k candidates with the highest logits and those, best first, ties by item_idx.

        Fewer than k come back where there are fewer candidates.
        """
        scores = self.score(user, candidates)
        order = np.lexsort((candidates, -scores))[:k]
        return candidates[order], scores[order]
