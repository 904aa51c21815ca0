"""What NeuMF needs to know of one user to score items: three small arrays, known or folded in.

Shapes: D embedding width, H1 first hidden width.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ray_recsys.core.arrays import Float32s
from ray_recsys.core.models.neumf import NeuMF


@dataclass(frozen=True, slots=True)
class UserRow:
    """A user's half of the model.

    `gmf` float32[D]: GMF embedding with the output weights folded in. `hidden` float32[H1]: the user half of the MLP's
    first layer before its activation. `bias`: user and global bias.
    """

    gmf: Float32s
    hidden: Float32s
    bias: float

    def recall_vector(self) -> Float32s:
        """Returns the vector [D + 1] whose inner product with an item's is GMF product + item bias."""
        return np.append(self.gmf, np.float32(1))


@torch.inference_mode()
def known_row(model: NeuMF, user_idx: int) -> UserRow:
    """Returns the row of a user that the model was trained on."""
    user = torch.tensor([user_idx])
    gmf_D = model.user_gmf[user_idx] * model.gmf_output
    bias = model.user_bias[user_idx] + model.global_bias
    return UserRow(gmf_D.numpy(), model.user_hidden(user)[0].numpy(), float(bias))
