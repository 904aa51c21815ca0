"""NeuMF in training: a GMF and an MLP branch, concatenated into one logit, with user, item and global biases.

The first MLP layer is split into a user half and an item half, `W·[u;i] + b = (W_u·u + b) + W_i·i`: the same function,
but the user half is computed once per positive instead of 1 + N times, and the item half once per item of a catalogue
that is smaller than the batch's pairs. The trained model is in `neumf_inference`.

With `recent_items`, the user's latest L items before the one to be predicted add to both branches. They enter as K
weighted means of rows of one more item table, r_k = sum_l 2^(-l / half_life_k) S[item_l] / sum_l 2^(-l / half_life_k):
    GMF vector of the user  p_u + sum_k gate_k * r_k
    user half of layer 1    W_u·u + b + W_r·[r_1; ..; r_K]
(the sum of embeddings is FISM's, in addition to the user's own vector SVD++'s; fixed weights instead of learned ones).

Loss, as a sum over this worker's pairs divided by the pairs of the global batch:
    implicit  BCE with logits, a positive's term times its weight (negatives weigh 1)
    explicit  weighted squared error of the ratings
    both      + gmf_loss_weight × the same on the GMF logits
              + l2 / 2 × squared norms of the pair's embedding rows, so that a row's gradient is l2 × row per pair

When to use: where the order of a history matters (recent items) and there is time to train; recall searches the GMF
branch, the whole reranks.

Shapes: B users or positives, C items of each (1 + N in training), D embedding width, H1 width of the first hidden
layer, L recent items, K means of them, U users, I items.

Source: He et al.: Neural Collaborative Filtering, WWW 2017, equations 7 to 12. L2 per pair: Rendle et al.: Neural
    Collaborative Filtering vs. Matrix Factorization Revisited, RecSys 2020, section 3.2. Recent items: Koren:
    Factorization meets the neighborhood, KDD 2008, section 4 (SVD++); Kabbur et al.: FISM, KDD 2013.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_recsys.config import MLPRecipe, NeuMFRecipe, Recipe, TrainRecipe
from ray_recsys.core.arrays import Float32s, Int32s
from ray_recsys.core.counter_random import derive_key
from ray_recsys.core.models.contract import GradientModel, TensorBatch
from ray_recsys.core.models.dropout import draw_ceilings
from ray_recsys.core.models.files import Arrays, Header, read_model_arrays
from ray_recsys.core.models.gather import gather, order_rows, weighted_sums
from ray_recsys.core.models.initial_rows import draw_rows
from ray_recsys.core.models.losses import item_square_norms, pair_loss, user_square_norms
from ray_recsys.core.models.neumf_inference import ITEM_ROWS, LATEST_ITEMS, TrainedNeuMF
from ray_recsys.core.models.relu_layers import relu_layers
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.positives import ItemsBefore


class NeuMF(GradientModel):
    """Scores (user, item) pairs.

    Args:
        num_users: U.
        num_items: I.
        recipe: Widths, dropout, LayerNorm and the standard deviation of the initial embeddings.
        train: Objective and L2.
        generator: Source of the initial weights; None: torch's global one.
        first_user: The user that has row 0, if the model is to have the rows of some users only.
    """

    user_tables: ClassVar = ("user_gmf", "user_mlp", "user_bias")
    item_tables: ClassVar = ("item_gmf", "item_mlp", "item_bias", "recent.items")
    batch_tables: ClassVar = {"user_idx": user_tables, "item_idx": item_tables[:3], "recent": item_tables[3:]}

    def __init__(
        self,
        num_users: int,
        num_items: int,
        recipe: NeuMFRecipe | MLPRecipe,
        train: TrainRecipe | None = None,
        *,
        generator: torch.Generator | None = None,
        first_user: int | None = None,
    ) -> None:
        super().__init__()
        self.num_users, self.num_items = num_users, num_items
        self.latest_items: Int32s | None = None
        """The latest training items of each user, int32[U, L]; only with `recent_items`."""
        self.recipe, self._train = recipe, train or TrainRecipe()
        width, gmf_width = recipe.embedding_dim, recipe.gmf_dim
        first, *others = recipe.mlp_layers
        self.user_gmf = nn.Parameter(torch.empty(num_users, gmf_width))
        self.item_gmf = nn.Parameter(torch.empty(num_items, gmf_width))
        self.user_mlp = nn.Parameter(torch.empty(num_users, width))
        self.item_mlp = nn.Parameter(torch.empty(num_items, width))
        self.user_bias = nn.Parameter(torch.zeros(num_users))
        self.item_bias = nn.Parameter(torch.zeros(num_items))
        self.global_bias = nn.Parameter(torch.zeros(()))
        self.user_half = nn.Linear(width, first)
        self.item_half = nn.Linear(width, first, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(recipe.mlp_layers, others, strict=False))
        self.norms = nn.ModuleList(nn.LayerNorm(w) for w in recipe.mlp_layers) if recipe.layer_norm else None
        self.gmf_output = nn.Parameter(torch.empty(gmf_width)) if recipe.gmf_output else None
        self.mlp_output = nn.Parameter(torch.empty(recipe.mlp_layers[-1]))
        self.recent = _recent_items(num_items, recipe)
        self._initialise(generator, first_user)

    def _initialise(self, generator: torch.Generator | None, first_user: int | None) -> None:
        """Embeddings N(0, init_std), layers Glorot-uniform (1 as one), output LeCun-uniform: the paper's code."""
        key = (generator or torch.default_generator).initial_seed()
        for number, name in enumerate(("user_gmf", "item_gmf", "user_mlp", "item_mlp")):
            table = self.get_parameter(name)
            if first_user is None or name not in self.user_tables:
                nn.init.normal_(table, std=self.recipe.init_std, generator=generator)
            else:
                draw_rows(table, std=self.recipe.init_std, key=derive_key(key, number), first_row=first_user)
        width, first = self.recipe.embedding_dim, self.recipe.mlp_layers[0]
        bound = math.sqrt(6 / (2 * width + first))
        nn.init.uniform_(self.user_half.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.item_half.weight, -bound, bound, generator=generator)
        nn.init.zeros_(self.user_half.bias)
        for layer in self.hidden:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        bound = math.sqrt(3 / (self.recipe.gmf_dim + self.recipe.mlp_layers[-1]))
        if self.gmf_output is not None:
            nn.init.uniform_(self.gmf_output, -bound, bound, generator=generator)
        nn.init.uniform_(self.mlp_output, -bound, bound, generator=generator)
        if self.recent is not None:
            self.recent.initialise(generator)

    def forward(self, batch: TensorBatch) -> Tensor:
        """Returns this worker's part of the step's loss; see the module's docstring."""
        loss = pair_loss(self._train)
        gmf_BC, mlp_BC = self.branches(batch.user_idx, batch.item_idx, batch.recent)
        total = loss(gmf_BC + mlp_BC, batch)
        if self.recipe.gmf_loss_weight:
            total = total + self.recipe.gmf_loss_weight * loss(gmf_BC, batch)
        if self._train.l2:
            total = total + self._train.l2 / 2 * self._square_norms(batch)
        return total / (batch.global_batch_size * batch.item_idx.shape[1])

    def keep_users(self, users: range) -> None:
        """Drops the rows of all other users."""
        super().keep_users(users)
        if self.latest_items is not None:
            self.latest_items = self.latest_items[users.start : users.stop].copy()

    def export(self) -> TrainedNeuMF:
        """Returns the trained model; it shares this module's weights."""
        return TrainedNeuMF(self)

    def parameters_of(self, files: Path) -> Mapping[str, Float32s]:
        """Returns a trained model's parameters: all that is in its files but the users' latest items."""
        return {name: values for name, values in read_model_arrays(files).items() if name != LATEST_ITEMS}

    def branches(self, user_idx: Tensor, item_idx: Tensor, recent: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the GMF branch's part of the logits, all biases included, and the MLP branch's, [B, C] each.

        Args:
            user_idx: int64[B].
            item_idx: int64 or int32 [B, C].
            recent: The users' recent items, latest first, integers [B, L], -1 for none; None without `recent_items`.
        """
        num_rows = len(self.item_gmf)  # those of the batch's items only, where the optimizer is sparse
        order = order_rows(item_idx, num_rows)
        user_BD, hidden_BH = self.user_vectors(user_idx, recent)
        # A sum of products: the backward pass of a batched product with one column is slower.
        product_BC = (gather(self.item_gmf, item_idx, order) * user_BD.unsqueeze(1)).sum(dim=2)
        item_bias_BC = gather(self.item_bias.unsqueeze(1), item_idx, order).squeeze(2)
        user_bias_B1 = functional.embedding(user_idx, self.user_bias.unsqueeze(1))
        gmf_BC = product_BC + item_bias_BC + (user_bias_B1 + self.global_bias)
        if item_idx.numel() >= num_rows:
            item_BCH = gather(self.item_hidden(), item_idx, order)
        else:
            item_BCH = self.item_half(gather(self.item_mlp, item_idx, order))
        return gmf_BC, self.mlp_head(item_BCH.add_(hidden_BH.unsqueeze(1)))

    def user_vectors(self, user_idx: Tensor, recent: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the users' GMF vectors, output weights included, [B, D], and halves of layer 1, [B, H1]."""
        gmf_BD = functional.embedding(user_idx, self.user_gmf)
        mlp_BD = functional.embedding(user_idx, self.user_mlp)
        return self.compose_user(gmf_BD, mlp_BD, recent)

    def compose_user(self, gmf_BD: Tensor, mlp_BD: Tensor, recent: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns what `user_vectors` does, from the users' own embeddings."""
        hidden_BH = self.user_half(mlp_BD)
        if self.recent is not None:
            assert recent is not None
            to_gmf, to_hidden = self.recent(recent)
            gmf_BD, hidden_BH = gmf_BD + to_gmf, hidden_BH + to_hidden
        return gmf_BD if self.gmf_output is None else gmf_BD * self.gmf_output, hidden_BH

    def item_hidden(self) -> Tensor:
        """Returns the item half of the first MLP layer for the whole catalogue, [I, H1]."""
        hidden: Tensor = self.item_half(self.item_mlp)
        return hidden

    def mlp_head(self, hidden: Tensor) -> Tensor:
        """Returns the MLP branch's part of the logits from layer 1's sums, [..., H1] → [...]; may overwrite them."""
        linear = [layer for layer in self.hidden if isinstance(layer, nn.Linear)]
        layers = [(layer.weight, layer.bias) for layer in linear]
        ceilings = None
        if self.recipe.dropout and self.training:
            ceilings = draw_ceilings(hidden, self.recipe.mlp_layers, self.recipe.dropout)
        return relu_layers(hidden, layers, self.mlp_output, ceilings=ceilings, norms=self.norms)

    def _square_norms(self, batch: TensorBatch) -> Tensor:
        """Returns the sum over pairs of the squared norms of their four embedding rows."""
        users = user_square_norms(self.user_gmf, batch) + user_square_norms(self.user_mlp, batch)
        return users + item_square_norms(self.item_gmf, batch) + item_square_norms(self.item_mlp, batch)


class RecentItems(nn.Module):
    """Contribution of users' recent items to their vectors.

    Args:
        num_items: I.
        first_layer: H1.
        recipe: D, L and the K half-lives.
    """

    def __init__(self, num_items: int, first_layer: int, recipe: NeuMFRecipe) -> None:
        super().__init__()
        width, half_lives = recipe.embedding_dim, recipe.recent_half_lives
        self._bound, self._init_std = math.sqrt(6 / (2 * width + first_layer)), recipe.init_std
        self.items = nn.Parameter(torch.empty(num_items, width))
        self.gate = nn.Parameter(torch.full((len(half_lives), width), 1 / len(half_lives)))
        self.layer = nn.Linear(width * len(half_lives), first_layer, bias=False)
        self.register_buffer("_weights", _mean_weights(recipe.recent_items, half_lives), persistent=False)

    def initialise(self, generator: torch.Generator | None) -> None:
        """Items N(0, init_std), layer uniform as the other halves of the first layer."""
        nn.init.normal_(self.items, std=self._init_std, generator=generator)
        nn.init.uniform_(self.layer.weight, -self._bound, self._bound, generator=generator)

    def forward(self, recent: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what is added to GMF vectors, [B, D], and to halves of layer 1, [B, H1].

        Args:
            recent: Integers [B, L], latest first, then -1.
        """
        num_known = (recent >= 0).sum(dim=1)
        weights_BKL = self.get_buffer("_weights")[num_known]
        means_BKD = weighted_sums(self.items, recent.clamp(min=0), weights_BKL)
        to_hidden: Tensor = self.layer(means_BKD.flatten(1))
        return (means_BKD * self.gate).sum(dim=1), to_hidden


def _recent_items(num_items: int, recipe: NeuMFRecipe | MLPRecipe) -> RecentItems | None:
    if isinstance(recipe, MLPRecipe) or not recipe.recent_items:
        return None
    return RecentItems(num_items, recipe.mlp_layers[0], recipe)


def _mean_weights(length: int, half_lives: Sequence[float]) -> Tensor:
    """Returns the weights of n known items, n = 0..L, float32[L + 1, K, L]: they sum to 1, or are 0 where n = 0."""
    ages = torch.arange(length)
    decays = torch.stack([torch.exp2(-ages / half_life) for half_life in half_lives])
    is_known = ages < torch.arange(length + 1)[:, None]
    weights = decays * is_known[:, None, :]
    return weights / weights.sum(dim=2, keepdim=True).clamp(min=1e-30)


def build(prepared: PreparedSet, recipe: Recipe, users: range | None = None) -> NeuMF:
    """Returns an untrained NeuMF for a prepared set, with the rows of all users or of some."""
    assert isinstance(recipe.model, NeuMFRecipe | MLPRecipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    shape = prepared.manifest
    own, first_user = (range(shape.num_users), None) if users is None else (users, users.start)
    model = NeuMF(len(own), shape.num_items, recipe.model, recipe.train, generator=generator, first_user=first_user)
    if recipe.model.recent_items:
        model.latest_items = _read_latest_items(prepared, recipe.model.recent_items, own)
    return model


def _read_latest_items(prepared: PreparedSet, length: int, users: range) -> Int32s:
    """Returns the latest training items of some users, latest first, int32[U, L]; -1 where there are fewer."""
    latest = np.full((len(users), length), -1, np.int32)
    for partition in prepared.partitions_of(users):
        histories = prepared.read_partition(partition)
        before, rows = ItemsBefore.of(histories.training, length), np.arange(len(histories.user_idx))
        assert before is not None
        found = before.latest(rows, histories.training.lengths)
        is_own = (histories.user_idx >= users.start) & (histories.user_idx < users.stop)
        latest[histories.user_idx[is_own] - users.start] = found[is_own]
    return latest


def load(header: Header, arrays: Arrays) -> TrainedNeuMF:
    """Reads a trained NeuMF back."""
    weights = {name: torch.from_numpy(values) for name, values in arrays.items() if name != LATEST_ITEMS}
    item_rows = weights.pop(ITEM_ROWS, None)
    recipe = (MLPRecipe if header["name"] == "mlp" else NeuMFRecipe).model_validate(header["recipe"])
    with torch.device("meta"):
        network = NeuMF(int(header["num_users"]), int(header["num_items"]), recipe)
    if network.recent is not None:
        network.recent = _recent_items(network.num_items, recipe)  # its buffer is not in the file
        network.latest_items = arrays[LATEST_ITEMS]
    network.load_state_dict(weights, assign=True)
    return TrainedNeuMF(network, item_rows)
