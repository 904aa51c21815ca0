"""NeuMF in training: a GMF and an MLP branch, concatenated into one logit, with user, item and global biases.

The first MLP layer is split into a user half and an item half, `W·[u;i] + b = (W_u·u + b) + W_i·i`: the same function,
but the user half is computed once per positive instead of 1 + N times, and the item half once per item of a catalogue
that is smaller than the batch's pairs. The trained model is in `neumf_inference`.

Loss, as a sum over this worker's pairs divided by the pairs of the global batch:
    implicit  BCE with logits, a positive's term times its weight (negatives weigh 1)
    explicit  weighted squared error of the ratings
    both      + gmf_loss_weight × the same on the GMF logits
              + l2 / 2 × squared norms of the pair's embedding rows, so that a row's gradient is l2 × row per pair

Shapes: B users or positives, C items of each (1 + N in training), D embedding width, H1 width of the first hidden
layer, U users, I items.

Source: He et al.: Neural Collaborative Filtering, WWW 2017, equations 7 to 12. L2 per pair: Rendle et al.: Neural
    Collaborative Filtering vs. Matrix Factorization Revisited, RecSys 2020, section 3.2.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_recsys.config import NeuMFRecipe, Recipe, TrainRecipe
from ray_recsys.core.models.contract import GradientModel, TensorBatch
from ray_recsys.core.models.files import Arrays, Header
from ray_recsys.core.models.losses import item_square_norms, pair_loss, user_square_norms
from ray_recsys.core.models.neumf_inference import TrainedNeuMF
from ray_recsys.core.prepared import PreparedSet


class NeuMF(GradientModel):
    """Scores (user, item) pairs.

    Args:
        num_users: U.
        num_items: I.
        recipe: Widths, dropout, LayerNorm and the standard deviation of the initial embeddings.
        train: Objective and L2.
        generator: Source of the initial weights; None: torch's global one.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        recipe: NeuMFRecipe,
        train: TrainRecipe | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.num_users, self.num_items = num_users, num_items
        self.recipe, self._train = recipe, train or TrainRecipe()
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

    def forward(self, batch: TensorBatch) -> Tensor:
        """Returns this worker's part of the step's loss; see the module's docstring."""
        user_idx, item_idx = batch.user_idx, batch.item_idx
        loss = pair_loss(self._train)
        gmf_BC = self.gmf_logits(user_idx, item_idx)
        logits_BC = gmf_BC + self.mlp_logits(user_idx, item_idx)
        total = loss(logits_BC, batch)
        if self.recipe.gmf_loss_weight:
            total = total + self.recipe.gmf_loss_weight * loss(gmf_BC, batch)
        if self._train.l2:
            total = total + self._train.l2 / 2 * self._square_norms(batch)
        return total / (batch.global_batch_size * item_idx.shape[1])

    def export(self) -> TrainedNeuMF:
        """Returns the trained model; it shares this module's weights."""
        return TrainedNeuMF(self)

    def logits(self, user_idx: Tensor, item_idx: Tensor) -> Tensor:
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
        for number in range(len(self.recipe.mlp_layers)):
            if number:
                hidden = self.hidden[number - 1](hidden)
            if self.norms is not None:
                hidden = self.norms[number](hidden)
            hidden = functional.relu(hidden, inplace=True)
            if self.recipe.dropout:
                hidden = functional.dropout(hidden, self.recipe.dropout, self.training)
        return torch.matmul(hidden, self.mlp_output)

    def _square_norms(self, batch: TensorBatch) -> Tensor:
        """Returns the sum over pairs of the squared norms of their four embedding rows."""
        users = user_square_norms(self.user_gmf, batch) + user_square_norms(self.user_mlp, batch)
        return users + item_square_norms(self.item_gmf, batch) + item_square_norms(self.item_mlp, batch)


def build(prepared: PreparedSet, recipe: Recipe) -> NeuMF:
    """Returns an untrained NeuMF for a prepared set."""
    assert isinstance(recipe.model, NeuMFRecipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    shape = prepared.manifest
    return NeuMF(shape.num_users, shape.num_items, recipe.model, recipe.train, generator=generator)


def load(header: Header, arrays: Arrays) -> TrainedNeuMF:
    """Reads a trained NeuMF back."""
    with torch.device("meta"):
        recipe = NeuMFRecipe.model_validate(header["recipe"])
        network = NeuMF(int(header["num_users"]), int(header["num_items"]), recipe)
    network.load_state_dict({name: torch.from_numpy(values) for name, values in arrays.items()}, assign=True)
    return TrainedNeuMF(network)
