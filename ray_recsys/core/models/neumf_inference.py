"""The trained NeuMF: one scoring kernel for evaluation, batch jobs and requests, and fold-in of new users.

A user's factors are one row: GMF embedding with the output weights folded in, 1, the user half of the MLP's first
layer, and the user's bias. An item's are one row as well: GMF embedding, bias, item half of the first layer, so that a
candidate is one gather. The inner product of the first D + 1 columns is GMF product + item bias, which recall searches.

A trained user's recent items are the latest of the training, which the model carries. Folding in a history takes its
recent items, and the user's own embedding, or the mean user's for a new user; without recent items it fits the
embeddings and the bias (see `fold_in`).

Shapes: B users, C candidates, I items, D embedding width, H1 first hidden width, P = 2 D + 1 parameters of a user.
"""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ray_recsys.core.arrays import Float32s, Int32s, Int64s, Integers
from ray_recsys.core.executor import Executor
from ray_recsys.core.models.contract import DenseFactors, RecallSpace, UserFactors
from ray_recsys.core.models.files import Arrays, Header, save_model_files
from ray_recsys.core.models.neighbours import Neighbours, nearest_by_cosine
from ray_recsys.core.models.neumf_users import FoldIn, UserRows

if TYPE_CHECKING:
    from ray_recsys.core.models.neumf import NeuMF

# A block's first hidden layer must fit the cache: 2 MB of float32.
_BLOCK_VALUES = 512 * 1024
_LIST_ROWS = 1600  # of a block of candidates of many users, likewise
_CATALOGUE_ROWS = 1024  # items of a block where many users are scored: the fastest of 256 to 3,706 (0.5 MB of layer 1)
LATEST_ITEMS = "latest_items"
ITEM_ROWS = "item_rows"
"""Arrays of the model's file that are not weights; the rows are stored so that processes share them."""
_SHORT_LIST = 4  # candidates up to which users are scored together


class TrainedNeuMF:
    """A trained NeuMF; the number of torch threads is the caller's choice.

    Args:
        network: Its weights, which are shared and not changed.
        item_rows: The items' rows of a saved model; None: they are computed.
    """

    user_arrays: ClassVar = ("user_gmf", "user_mlp", "user_bias", LATEST_ITEMS)

    def __init__(self, network: "NeuMF", item_rows: Tensor | None = None) -> None:
        self._network = network.eval()
        self.num_users, self.num_items = network.num_users, network.num_items
        self._width = network.recipe.gmf_dim
        self._items = _item_rows(network) if item_rows is None else item_rows
        self._block = max(1, _BLOCK_VALUES // network.recipe.mlp_layers[0])
        self._user_rows = UserRows(network)

    def users(self, user_idx: Int64s) -> UserFactors:
        """Returns the factors of trained users, float32[B, D + H1 + 2]."""
        return DenseFactors(self._user_rows.factors(user_idx))

    def fold_in(self, history: Int32s, user_idx: int | None = None) -> UserFactors | None:
        """Returns the factors of a user with this history; see the module's docstring."""
        if self._network.recent is not None:
            return DenseFactors(self._user_rows.with_recent(history, user_idx))
        return DenseFactors(self._fold_in.factors(history, user_idx))

    @torch.inference_mode()
    def scores(self, users: UserFactors, item_idx: Integers | None = None) -> Float32s:
        """Returns the logits of each user's items, float32[B, C]; working memory is one block of items."""
        assert isinstance(users, DenseFactors)
        factors = torch.from_numpy(np.ascontiguousarray(users.values))
        candidates = None if item_idx is None else torch.from_numpy(np.ascontiguousarray(item_idx, np.int64))
        num_columns = self.num_items if candidates is None else candidates.shape[1]
        if candidates is not None and num_columns <= _SHORT_LIST:
            return self._score_short_lists(factors, candidates)
        if len(users) > 1 and self._network.norms is None:
            return self._score_catalogue(factors) if candidates is None else self._score_lists(factors, candidates)
        if len(users) == 1 and num_columns <= self._block:
            items = self._items if candidates is None else self._rows(candidates[0])
            only: Float32s = self._score(factors[0], items).numpy()[np.newaxis]
            return only
        scores = torch.empty(len(users), num_columns)
        for row, user in enumerate(factors):
            for start in range(0, num_columns, self._block):
                block = slice(start, start + self._block)
                items = self._items[block] if candidates is None else self._rows(candidates[row, block])
                scores[row, block] = self._score(user, items)
        array: Float32s = scores.numpy()
        return array

    def _rows(self, item_idx: Tensor) -> Tensor:
        """Returns the rows of items, [n, W]; indexing the table would take four times as long."""
        return torch.index_select(self._items, 0, item_idx)

    @cached_property
    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        """The hidden layers' weights, transposed, and biases."""
        hidden = [layer for layer in self._network.hidden if isinstance(layer, nn.Linear)]
        return [(layer.weight.detach().T, layer.bias.detach()) for layer in hidden]

    @cached_property
    def _mlp_output(self) -> Tensor:
        return self._network.mlp_output.detach()

    def _score(self, user: Tensor, items: Tensor) -> Tensor:
        """Returns the logits of one user with items given by their rows, [C]."""
        query = self._width + 1
        scores = torch.mv(items[:, :query], user[:query])
        hidden = items[:, query:] + user[query:-1]
        if self._network.norms is None:
            hidden.relu_()
            for weight, bias in self._layers:
                hidden = torch.addmm(bias, hidden, weight).relu_()
            scores.addmv_(hidden, self._mlp_output)
        else:
            scores += self._network.mlp_head(hidden)
        return scores.add_(user[-1])

    def _thresholds(self, users: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns what makes a layer for many users one product and one comparison.

        relu(x + c) = max(x, -c) + c: what a layer adds to every item, c, is one vector per user. So it passes through
        the layers once per user instead of once per item. One user's logits come from `_score`, so that their bits
        stay. Dropout is no part of a trained model.

        Returns:
            -c of each layer, [B, H] each, and what all layers add to a user's logits, [B].
        """
        constants = [users[:, self._width + 1 : -1]]
        for weight, bias in self._layers:
            constants.append(torch.addmm(bias, constants[-1], weight))
        return [-constant for constant in constants], users[:, -1] + constants[-1] @ self._mlp_output

    def _score_lists(self, users: Tensor, candidates: Tensor) -> Float32s:
        """Returns the logits of many users with their own items, [B, C]; the layers' outputs reuse their memory."""
        query, num_columns = self._width + 1, candidates.shape[1]
        thresholds, constant = self._thresholds(users)
        scores, num_users = torch.empty(len(users), num_columns), max(1, _LIST_ROWS // num_columns)
        widths = self._network.recipe.mlp_layers
        buffers = [
            torch.empty(min(num_users, len(users)), num_columns, width) for width in (self._items.shape[1], *widths)
        ]
        for start in range(0, len(users), num_users):
            block = slice(start, start + num_users)
            part = scores[block]
            rows, *outputs = (buffer[: len(part)] for buffer in buffers)
            torch.index_select(self._items, 0, candidates[block].view(-1), out=rows.view(-1, rows.shape[2]))
            # a product with a row, which is four times as quick as with a column
            torch.bmm(users[block, None, :query], rows[..., :query].transpose(1, 2), out=part[:, None])
            hidden = torch.maximum(rows[..., query:], thresholds[0][block, None], out=outputs[0])
            for (weight, _), threshold, output in zip(self._layers, thresholds[1:], outputs[1:], strict=True):
                torch.mm(hidden.flatten(0, 1), weight, out=output.view(-1, output.shape[2]))
                hidden = torch.maximum(output, threshold[block, None], out=output)
            part.view(-1).addmv_(hidden.flatten(0, 1), self._mlp_output)
        scores += constant.unsqueeze(1)
        array: Float32s = scores.numpy()
        return array

    def _score_catalogue(self, users: Tensor) -> Float32s:
        """Returns the logits of many users with the catalogue, [B, I]; the layers' outputs reuse their memory."""
        query, network = self._width + 1, self._network
        thresholds, constant = self._thresholds(users)
        weights = [weight.contiguous() for weight, _ in self._layers]
        scores = users[:, :query] @ self._items[:, :query].T
        scores += constant.unsqueeze(1)
        by_user = list(zip(*(threshold.unbind() for threshold in thresholds), strict=True))
        blocks = (
            torch.split(values, _CATALOGUE_ROWS, dim) for values, dim in ((self._items[:, query:], 0), (scores, 1))
        )
        for items, block in zip(*blocks, strict=True):
            first_layer = items.contiguous()
            outputs = [torch.empty(len(items), width) for width in network.recipe.mlp_layers]
            logits = torch.empty(len(items))
            for row, (first, *others) in zip(block.unbind(), by_user, strict=True):
                hidden = torch.maximum(first_layer, first, out=outputs[0])
                for weight, threshold, output in zip(weights, others, outputs[1:], strict=True):
                    hidden = torch.maximum(torch.mm(hidden, weight, out=output), threshold, out=output)
                row.add_(torch.mv(hidden, self._mlp_output, out=logits))
        array: Float32s = scores.numpy()
        return array

    def _score_short_lists(self, users: Tensor, candidates: Tensor) -> Float32s:
        """Returns the logits of many users with a few items each, [B, C], without a call per user."""
        query = self._width + 1
        items_BCW = self._rows(candidates.view(-1)).view(*candidates.shape, self._items.shape[1])
        scores = (items_BCW[..., :query] * users[:, None, :query]).sum(dim=2)
        scores += self._network.mlp_head(items_BCW[..., query:] + users[:, None, query:-1])
        scores += users[:, -1:]
        array: Float32s = scores.numpy()
        return array

    def recall_space(self) -> RecallSpace | None:
        """Returns GMF embeddings with item biases; biases that are constant for a user do not change an order."""
        if not self._width:
            return None  # the MLP alone
        return RecallSpace(self._items[:, : self._width + 1].contiguous().numpy())

    def neighbours(self, num_neighbours: int, executor: Executor) -> Neighbours | None:
        """Returns the items most similar by the cosine of their GMF and MLP embeddings side by side."""
        with torch.inference_mode():
            embeddings = torch.cat([self._network.item_gmf, self._network.item_mlp], dim=1).cpu().numpy()
        return nearest_by_cosine(embeddings, num_neighbours, executor)

    def save(self, directory: Path) -> None:
        """Writes the model's files."""
        save_model_files(directory, *self.files())

    def files(self) -> tuple[Header, Arrays]:
        """Returns what `save` writes."""
        network = self._network
        header = {
            "name": network.recipe.name,
            "num_users": self.num_users,
            "num_items": self.num_items,
            "recipe": network.recipe.model_dump(mode="json"),
        }
        arrays = {name: weights.detach().cpu().numpy() for name, weights in network.state_dict().items()}
        if network.latest_items is not None:
            arrays[LATEST_ITEMS] = network.latest_items
        arrays[ITEM_ROWS] = self._items.numpy()
        return header, arrays

    @cached_property
    def _fold_in(self) -> FoldIn:
        return FoldIn(self._network, self._user_rows)


@torch.inference_mode()
def _item_rows(network: "NeuMF") -> Tensor:
    return torch.cat([network.item_gmf, network.item_bias.unsqueeze(1), network.item_hidden()], dim=1).cpu()
