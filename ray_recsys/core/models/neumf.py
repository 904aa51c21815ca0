"""NeuMF (He et al. 2017): a GMF and an MLP branch, concatenated into one logit, with user, item and global biases.

The first MLP layer is split into a user half and an item half, `W·[u;i] + b = (W_u·u + b) + W_i·i`: the same function,
but the user half is computed once per positive instead of 1 + N times, and the item half once per item of a catalogue
that is smaller than the batch's pairs. This module knows nothing of losses, files or processes.

Shapes: B users or positives, C items of each (1 + N in training), D embedding width, H1 width of the first hidden
layer, U users, I items.

Source: He, Liao, Zhang, Nie, Hu, Chua: Neural Collaborative Filtering, WWW 2017, equations 8 to 12.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_recsys.config import NeuMFRecipe


class NeuMF(nn.Module):
    """Scores (user, item) pairs.

    Args:
        num_users: U.
        num_items: I.
        recipe: Widths, dropout, LayerNorm and the standard deviation of the initial embeddings.
        generator: Source of the initial weights; None: torch's global one.
    """

    def __init__(
        self, num_users: int, num_items: int, recipe: NeuMFRecipe, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.num_users, self.num_items, self.recipe = num_users, num_items, recipe
        width = recipe.embedding_dim
        first, *others = recipe.mlp_layers
        self.user_gmf = nn.Parameter(torch.empty(num_users, width))
        self.item_gmf = nn.Parameter(torch.empty(num_items, width))
        self.user_mlp = nn.Parameter(torch.empty(num_users, width))
        self.item_mlp = nn.Parameter(torch.empty(num_items, width))
        self.user_bias = nn.Parameter(torch.zeros(num_users))
        self.item_bias = nn.Parameter(torch.zeros(num_items))
        self.global_bias = nn.Parameter(torch.zeros(()))
        self.user_half = nn.Linear(width, first)
        self.item_half = nn.Linear(width, first, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(recipe.mlp_layers, others, strict=False))
        self.norms = nn.ModuleList(nn.LayerNorm(w) for w in recipe.mlp_layers) if recipe.layer_norm else None
        self.gmf_output = nn.Parameter(torch.empty(width))
        self.mlp_output = nn.Parameter(torch.empty(recipe.mlp_layers[-1]))
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator | None) -> None:
        """Embeddings N(0, init_std), layers Glorot-uniform (1 as one), output LeCun-uniform: the paper's code."""
        for table in (self.user_gmf, self.item_gmf, self.user_mlp, self.item_mlp):
            nn.init.normal_(table, std=self.recipe.init_std, generator=generator)
        width, first = self.recipe.embedding_dim, self.recipe.mlp_layers[0]
        bound = math.sqrt(6 / (2 * width + first))
        nn.init.uniform_(self.user_half.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.item_half.weight, -bound, bound, generator=generator)
        nn.init.zeros_(self.user_half.bias)
        for layer in self.hidden:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        bound = math.sqrt(3 / (width + self.recipe.mlp_layers[-1]))
        nn.init.uniform_(self.gmf_output, -bound, bound, generator=generator)
        nn.init.uniform_(self.mlp_output, -bound, bound, generator=generator)

    def forward(self, user_idx: Tensor, item_idx: Tensor) -> Tensor:
        """Returns the logits [B, C] of each user with each of its items.

        Args:
            user_idx: int64[B].
            item_idx: int64 or int32 [B, C].
        """
        return self.gmf_logits(user_idx, item_idx) + self.mlp_logits(user_idx, item_idx)

    def gmf_logits(self, user_idx: Tensor, item_idx: Tensor) -> Tensor:
        """Returns the GMF branch's part of the logits plus all biases, [B, C]; recall ranks by it."""
        user_BD = functional.embedding(user_idx, self.user_gmf) * self.gmf_output
        item_BCD = functional.embedding(item_idx, self.item_gmf)
        # A sum of products: the backward pass of a batched product with one column is slower.
        product_BC = (item_BCD * user_BD.unsqueeze(1)).sum(dim=2)
        item_bias_BC = functional.embedding(item_idx, self.item_bias.unsqueeze(1)).squeeze(2)
        user_bias_B1 = functional.embedding(user_idx, self.user_bias.unsqueeze(1))
        return product_BC + item_bias_BC + (user_bias_B1 + self.global_bias)

    def mlp_logits(self, user_idx: Tensor, item_idx: Tensor) -> Tensor:
        """Returns the MLP branch's part of the logits, [B, C]."""
        user_BH = self.user_hidden(user_idx)
        if item_idx.numel() >= self.num_items:
            item_BCH = functional.embedding(item_idx, self.item_hidden())
        else:
            item_BCH = self.item_half(functional.embedding(item_idx, self.item_mlp))
        return self.mlp_head(user_BH.unsqueeze(1) + item_BCH)

    def user_hidden(self, user_idx: Tensor) -> Tensor:
        """Returns the user half of the first MLP layer before its activation, bias included, [B, H1]."""
        hidden: Tensor = self.user_half(functional.embedding(user_idx, self.user_mlp))
        return hidden

    def item_hidden(self) -> Tensor:
        """Returns the item half of the first MLP layer for the whole catalogue, [I, H1]."""
        hidden: Tensor = self.item_half(self.item_mlp)
        return hidden

    def mlp_head(self, hidden: Tensor) -> Tensor:
        """Returns the MLP branch's part of the logits from layer 1's sums, [..., H1] → [...]; may overwrite them."""
        for place in range(len(self.recipe.mlp_layers)):
            if place:
                hidden = self.hidden[place - 1](hidden)
            if self.norms is not None:
                hidden = self.norms[place](hidden)
            hidden = functional.relu(hidden, inplace=True)
            if self.recipe.dropout:
                hidden = functional.dropout(hidden, self.recipe.dropout, self.training)
        return torch.matmul(hidden, self.mlp_output)

    def recall_vectors(self) -> tuple[Tensor, Tensor]:
        """Returns vectors whose inner product is GMF product + item bias: users [U, D + 1], items [I, D + 1].

        The GMF's output weights are folded into the user's vector. The user's and the global bias, constant for a user,
        are left out: they do not change an order.
        """
        ones = self.user_gmf.new_ones(self.num_users, 1)
        user_vectors = torch.cat([self.user_gmf * self.gmf_output, ones], dim=1)
        item_vectors = torch.cat([self.item_gmf, self.item_bias.unsqueeze(1)], dim=1)
        return user_vectors.detach(), item_vectors.detach()
