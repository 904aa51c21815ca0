"""Matrix factorisation with biases, and GMF, the same with a weight per dimension; trained by gradient descent.

    logit = <h * p_u, q_i> + b_u + b_i + b    h: GMF's output weights; 1 for MF

Shapes: B users or positives, C items of each, D embedding width, U users, I items. A user's factors are one row,
[h * p_u | 1 | b_u + b], an item's [q_i | b_i | 1], so that a logit is one inner product.

Source: MF: Koren, Bell, Volinsky: Matrix factorization techniques for recommender systems, IEEE Computer 2009, equation
    4; with logistic loss Rendle et al.: Neural Collaborative Filtering vs. Matrix Factorization Revisited, RecSys 2020.
    GMF: He et al.: Neural Collaborative Filtering, WWW 2017, equation 9.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_recsys.config import GMFRecipe, MFRecipe, Recipe, TrainRecipe
from ray_recsys.core.arrays import Float32s, Int32s
from ray_recsys.core.models.contract import DenseFactors, GradientModel, TensorBatch, UserFactors
from ray_recsys.core.models.files import Arrays, Header, read_model_arrays, save_model_files
from ray_recsys.core.models.fold_in import ExampleDrawer, fit_user
from ray_recsys.core.models.gather import gather, order_rows
from ray_recsys.core.models.initial_rows import draw_rows
from ray_recsys.core.models.inner_product import InnerProduct
from ray_recsys.core.models.losses import item_square_norms, pair_loss, user_square_norms
from ray_recsys.core.prepared import PreparedSet


class MF(GradientModel):
    """The model in training.

    Args:
        num_users: U.
        num_items: I.
        recipe: Width and standard deviation of the initial embeddings; GMF's has output weights.
        train: Objective and L2.
        generator: Source of the initial weights; None: torch's global one.
        first_user: The user that has row 0, if the model is to have the rows of some users only.
    """

    user_tables: ClassVar = ("user_vectors", "user_bias")
    item_tables: ClassVar = ("item_vectors", "item_bias")
    batch_tables: ClassVar = {"user_idx": user_tables, "item_idx": item_tables}

    def __init__(
        self,
        num_users: int,
        num_items: int,
        recipe: MFRecipe | GMFRecipe,
        train: TrainRecipe | None = None,
        *,
        generator: torch.Generator | None = None,
        first_user: int | None = None,
    ) -> None:
        super().__init__()
        self.num_users, self.num_items, self.recipe, self._train = num_users, num_items, recipe, train or TrainRecipe()
        self.user_vectors = nn.Parameter(torch.empty(num_users, recipe.embedding_dim))
        self.item_vectors = nn.Parameter(torch.empty(num_items, recipe.embedding_dim))
        self.user_bias = nn.Parameter(torch.zeros(num_users))
        self.item_bias = nn.Parameter(torch.zeros(num_items))
        self.global_bias = nn.Parameter(torch.zeros(()))
        self.output = nn.Parameter(torch.empty(recipe.embedding_dim)) if recipe.name == "gmf" else None
        if first_user is None:
            nn.init.normal_(self.user_vectors, std=recipe.init_std, generator=generator)
        else:
            key = (generator or torch.default_generator).initial_seed()
            draw_rows(self.user_vectors, std=recipe.init_std, key=key, first_row=first_user)
        nn.init.normal_(self.item_vectors, std=recipe.init_std, generator=generator)
        if self.output is not None:
            bound = math.sqrt(3 / recipe.embedding_dim)  # LeCun-uniform, as the paper's code
            nn.init.uniform_(self.output, -bound, bound, generator=generator)

    def forward(self, batch: TensorBatch) -> Tensor:
        """Returns this worker's part of the step's loss: pair loss + l2 / 2 × squared norms of the pairs' rows."""
        total = pair_loss(self._train)(self.logits(batch.user_idx, batch.item_idx), batch)
        if self._train.l2:
            norms = user_square_norms(self.user_vectors, batch) + item_square_norms(self.item_vectors, batch)
            total = total + self._train.l2 / 2 * norms
        return total / (batch.global_batch_size * batch.item_idx.shape[1])

    def logits(self, user_idx: Tensor, item_idx: Tensor) -> Tensor:
        """Returns the logits [B, C] of each user, int64[B], with each of its items, integers [B, C]."""
        order = order_rows(item_idx, len(self.item_vectors))
        user_BD = functional.embedding(user_idx, self.user_vectors)
        if self.output is not None:
            user_BD = user_BD * self.output
        product_BC = (gather(self.item_vectors, item_idx, order) * user_BD.unsqueeze(1)).sum(dim=2)
        item_bias_BC = gather(self.item_bias.unsqueeze(1), item_idx, order).squeeze(2)
        user_bias_B1 = functional.embedding(user_idx, self.user_bias.unsqueeze(1))
        return product_BC + item_bias_BC + (user_bias_B1 + self.global_bias)

    @torch.no_grad()
    def export(self) -> "TrainedMF":
        """Returns the trained model."""
        users = self.user_vectors if self.output is None else self.user_vectors * self.output
        ones = users.new_ones
        user_rows = [users, ones(self.num_users, 1), (self.user_bias + self.global_bias).unsqueeze(1)]
        item_rows = [self.item_vectors, self.item_bias.unsqueeze(1), ones(self.num_items, 1)]
        rows = [torch.cat(parts, dim=1).cpu().numpy() for parts in (user_rows, item_rows)]
        return TrainedMF(self.recipe.name, *rows)

    def parameters_of(self, files: Path) -> Mapping[str, Float32s]:
        """Returns a trained model's parameters; output weights and global bias are in the users' rows already."""
        arrays, width = read_model_arrays(files), self.recipe.embedding_dim
        users, items = arrays["user_rows"], arrays["item_rows"]
        found = {
            "user_vectors": users[:, :-2],
            "user_bias": users[:, -1],
            "item_vectors": items[:, :-2],
            "item_bias": items[:, -2],
            "global_bias": np.zeros((), np.float32),
        }
        return found if self.output is None else found | {"output": np.ones(width, np.float32)}


class TrainedMF(InnerProduct):
    """The trained model.

    Args:
        name: `mf` or `gmf`.
        user_rows: float32[U, D + 2].
        item_rows: float32[I, D + 2].
    """

    user_arrays: ClassVar = ("user_rows",)

    def __init__(self, name: str, user_rows: Float32s, item_rows: Float32s) -> None:
        super().__init__(user_rows, item_rows, num_constants=2)
        self._name = name

    def fold_in(self, history: Int32s, user_idx: int | None = None) -> UserFactors | None:
        """Returns the row of a user with this history; only the latest 500 items count."""
        examples = self._drawer.examples(history)
        width = self._items.shape[1] - 2
        features = np.concatenate([self._items[examples.items, :width], np.ones((len(examples.items), 1))], axis=1)
        item_bias = self._items[examples.items, width]
        prior = np.delete(self._mean_user if user_idx is None else self._users[user_idx], width)
        user = fit_user(prior, examples, lambda user: (features @ user + item_bias, features))
        return DenseFactors(np.insert(user, width, 1).astype(np.float32)[np.newaxis])

    def files(self) -> tuple[Header, Arrays]:
        """Returns what `save` writes."""
        return {"name": self._name}, {"user_rows": self._users, "item_rows": self._items}

    def save(self, directory: Path) -> None:
        """Writes the model's files."""
        save_model_files(directory, *self.files())

    @cached_property
    def _drawer(self) -> ExampleDrawer:
        return ExampleDrawer(self.num_items)

    @cached_property
    def _mean_user(self) -> Float32s:
        mean: Float32s = self._users.mean(axis=0)
        return mean


def build(prepared: PreparedSet, recipe: Recipe, users: range | None = None) -> MF:
    """Returns an untrained model for a prepared set, with the rows of all users or of some."""
    assert isinstance(recipe.model, MFRecipe | GMFRecipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    shape = prepared.manifest
    num_users, first_user = (shape.num_users, None) if users is None else (len(users), users.start)
    return MF(num_users, shape.num_items, recipe.model, recipe.train, generator=generator, first_user=first_user)


def load(header: Header, arrays: Arrays) -> TrainedMF:
    """Reads a trained model back."""
    return TrainedMF(header["name"], arrays["user_rows"], arrays["item_rows"])
