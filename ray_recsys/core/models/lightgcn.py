"""LightGCN: embeddings propagated over the graph of interactions, scored by inner products, trained by BPR.

Loss of a positive: the mean over its N negatives of -ln sigmoid(score - score of the negative), times its weight, plus
l2 / 2 × squared norms of the layer-0 rows of user, positive and negatives (the negatives' mean); the sum is divided by
the global batch.

A user's propagated embedding is a share of the user's own layer-0 row plus what the items of the history send,
    e_u = p_u / (K + 1) + sum_{i in history} m_i / sqrt(d_u)    m_i = sum_{k < K} q_i^(k) / ((K + 1) sqrt(d_i)),
so that folding in a history is one sum: exact for a trained user whose history has not changed. The items are left as
they are; a new user gets the mean user's own row.

When to use: large sparse logs of pairs without order, with many epochs to spend: every step propagates the whole graph.

Shapes: B positives, C = 1 + N items of each, D embedding width, K layers, U users, I items.

Source: He et al.: LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation, SIGIR 2020,
    equations 3 to 15; BPR: Rendle et al., UAI 2009.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_recsys.config import LightGCNRecipe, Recipe, TrainRecipe
from ray_recsys.core.arrays import Float32s, Int32s
from ray_recsys.core.models.contract import DenseFactors, GradientModel, TensorBatch, UserFactors
from ray_recsys.core.models.files import Arrays, Header, read_model_arrays, save_model_files
from ray_recsys.core.models.gather import gather, order_rows
from ray_recsys.core.models.inner_product import InnerProduct
from ray_recsys.core.models.propagation import Graph, propagate
from ray_recsys.core.models.training_matrix import read_training_matrix
from ray_recsys.core.prepared import PreparedSet

_ARRAYS = ("user_rows", "item_rows", "own_rows", "messages", "own_item_rows")


class LightGCN(GradientModel):
    """The model in training.

    Args:
        graph: Of the training interactions of U users with I items.
        recipe: Width, layers and the standard deviation of the initial embeddings.
        train: L2.
        generator: Source of the initial weights; None: torch's global one.
    """

    user_tables: ClassVar = ("user_vectors",)
    item_tables: ClassVar = ("item_vectors",)

    def __init__(
        self,
        graph: Graph,
        recipe: LightGCNRecipe,
        train: TrainRecipe | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.num_users, self.num_items = len(graph.of_users.begin), len(graph.of_items.begin)
        self._recipe, self._train = recipe, train or TrainRecipe()
        self._graph = graph  # no buffer: DDP would send it to all workers at every step
        self.user_vectors = nn.Parameter(torch.empty(self.num_users, recipe.embedding_dim))
        self.item_vectors = nn.Parameter(torch.empty(self.num_items, recipe.embedding_dim))
        for table in (self.user_vectors, self.item_vectors):
            nn.init.normal_(table, std=recipe.init_std, generator=generator)

    def forward(self, batch: TensorBatch) -> Tensor:
        """Returns this worker's part of the step's loss; see the module's docstring."""
        self._graph = self._graph.to(self.user_vectors.device)
        users, items = propagate(self.user_vectors, self.item_vectors, self._graph, self._recipe.num_layers)
        order = order_rows(batch.item_idx, self.num_items)
        user_BD = functional.embedding(batch.user_idx, users)
        score_BC = (gather(items, batch.item_idx, order) * user_BD.unsqueeze(1)).sum(dim=2)
        total = bayesian_personalised_ranking(score_BC, batch)
        if self._train.l2:
            item_BC = gather(self.item_vectors, batch.item_idx, order).square().sum(dim=2)
            norms = functional.embedding(batch.user_idx, self.user_vectors).square().sum() + item_BC[:, 0].sum()
            total = total + self._train.l2 / 2 * (norms + item_BC[:, 1:].mean(dim=1).sum())
        return total / batch.global_batch_size

    @torch.no_grad()
    def export(self) -> "TrainedLightGCN":
        """Returns the trained model: one more propagation, by this process alone."""
        graph, layers = self._graph.to(self.user_vectors.device), self._recipe.num_layers
        users, items = graph.mean_of_layers(self.user_vectors, self.item_vectors, layers)
        _, earlier = graph.mean_of_layers(self.user_vectors, self.item_vectors, layers - 1)
        messages = earlier * (layers / (layers + 1)) / graph.item_degrees.sqrt().unsqueeze(1)
        own, own_items = self.user_vectors / (layers + 1), self.item_vectors / (layers + 1)
        return TrainedLightGCN(*(rows.cpu().numpy() for rows in (users, items, own, messages, own_items)))

    def parameters_of(self, files: Path) -> Mapping[str, Float32s]:
        """Returns a trained model's layer-0 rows."""
        arrays, scale = read_model_arrays(files), np.float32(self._recipe.num_layers + 1)
        return {"user_vectors": arrays["own_rows"] * scale, "item_vectors": arrays["own_item_rows"] * scale}


def bayesian_personalised_ranking(score_BC: Tensor, batch: TensorBatch) -> Tensor:
    """Returns the weighted sum over positives of the mean over negatives of -ln sigmoid(positive - negative)."""
    losses_B = functional.softplus(score_BC[:, 1:] - score_BC[:, :1]).mean(dim=1)
    return (losses_B * batch.weight).sum()


class TrainedLightGCN(InnerProduct):
    """The trained model.

    Args:
        user_rows: Propagated, float32[U, D].
        item_rows: Propagated, float32[I, D].
        own_rows: The users' own share of their rows, float32[U, D].
        messages: What an item adds to the row of a user who has it, before division by sqrt(d_u), float32[I, D].
        own_item_rows: The items' own share of their rows, float32[I, D]: not for scores, but to train on from here.
    """

    def __init__(
        self, user_rows: Float32s, item_rows: Float32s, own_rows: Float32s, messages: Float32s, own_item_rows: Float32s
    ) -> None:
        super().__init__(user_rows, item_rows)
        self._own, self._messages, self._own_items = own_rows, messages, own_item_rows
        self._mean_own: Float32s = own_rows.mean(axis=0)

    def fold_in(self, history: Int32s, user_idx: int | None = None) -> UserFactors | None:
        """Returns the row of a user with this history; of an item that repeats, one counts."""
        items = np.unique(history)
        own = self._mean_own if user_idx is None else self._own[user_idx]
        row = own + self._messages[items].sum(axis=0) / np.sqrt(np.float32(len(items)))
        return DenseFactors(row.astype(np.float32)[np.newaxis])

    def save(self, directory: Path) -> None:
        """Writes the model's files."""
        arrays = dict(zip(_ARRAYS, (self._users, self._items, self._own, self._messages, self._own_items), strict=True))
        save_model_files(directory, {"name": "lightgcn"}, arrays)


def build(prepared: PreparedSet, recipe: Recipe, users: range | None = None) -> LightGCN:
    """Returns an untrained model on the graph of a prepared set's training interactions."""
    assert isinstance(recipe.model, LightGCNRecipe)
    assert users is None, "propagation reads all users"
    graph = Graph.of(read_training_matrix(prepared), prepared.manifest.num_items)
    return LightGCN(graph, recipe.model, recipe.train, generator=torch.Generator().manual_seed(recipe.seed))


def load(header: Header, arrays: Arrays) -> TrainedLightGCN:  # noqa: ARG001 - of the registry's shape
    """Reads a trained model back."""
    return TrainedLightGCN(*(arrays[name] for name in _ARRAYS))
