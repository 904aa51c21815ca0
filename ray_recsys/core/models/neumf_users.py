"""Factors of NeuMF's users, trained and folded in: what `neumf_inference` scores items with.

Shapes: B users, C items, D embedding width, H1 first hidden width, P = 2 D + 1 parameters of a user.
"""

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ray_recsys.core.arrays import Float32s, Int32s, Int64s
from ray_recsys.core.models.fold_in import ExampleDrawer, fit_user

if TYPE_CHECKING:
    from ray_recsys.core.models.neumf import NeuMF


class UserRows:
    """Makes factors of trained users; without recent items by numpy, whose calls cost less for a few users."""

    def __init__(self, network: "NeuMF") -> None:
        self._network, self._width = network, network.recipe.gmf_dim
        self._tables = _tables_of(network)

    def factors(self, user_idx: Int64s) -> Float32s:
        """Returns the factors of users, float32[B, D + H1 + 2]."""
        if self._tables is None:
            return self._of_network(user_idx)
        gmf, mlp, bias = (table[user_idx] for table in self._tables)
        weight, constant = self.user_layer
        factors = np.empty((len(gmf), self._width + len(constant) + 2), np.float32)
        np.multiply(gmf, self.gmf_output, out=factors[:, : self._width])
        factors[:, self._width] = 1
        np.add(mlp @ weight, constant, out=factors[:, self._width + 1 : -1])
        factors[:, -1] = bias + self.global_bias
        return factors

    @torch.inference_mode()
    def _of_network(self, user_idx: Int64s) -> Float32s:
        network = self._network
        idx = torch.from_numpy(np.ascontiguousarray(user_idx, np.int64)).to(network.user_gmf.device)
        recent = None
        if network.latest_items is not None:
            recent = torch.from_numpy(np.asarray(network.latest_items[user_idx])).to(idx.device)
        gmf_BD, hidden_BH = network.user_vectors(idx, recent)
        bias_B1 = (network.user_bias[idx] + network.global_bias).unsqueeze(1)
        factors: Float32s = torch.cat([gmf_BD, torch.ones_like(bias_B1), hidden_BH, bias_B1], dim=1).cpu().numpy()
        return factors

    @torch.inference_mode()
    def with_recent(self, history: Int32s, user_idx: int | None) -> Float32s:
        """Returns the factors of a user with these items, oldest first, float32[1, D + H1 + 2]; None: the mean user."""
        network, length = self._network, self._network.recipe.recent_items
        recent = np.full((1, length), -1, np.int64)
        latest = history[::-1][:length]
        recent[0, : len(latest)] = latest
        gmf, mlp, bias = self.parameters(user_idx)
        gmf_BD, hidden_BH = network.compose_user(gmf[None], mlp[None], torch.from_numpy(recent))
        parts = [gmf_BD, torch.ones(1, 1), hidden_BH, (bias + network.global_bias).reshape(1, 1)]
        factors: Float32s = torch.cat(parts, dim=1).numpy()
        return factors

    def parameters(self, user_idx: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns a trained user's embeddings and bias; None: the mean user's."""
        network = self._network
        if user_idx is None:
            return self._mean
        return network.user_gmf[user_idx], network.user_mlp[user_idx], network.user_bias[user_idx]

    @cached_property
    def _mean(self) -> tuple[Tensor, Tensor, Tensor]:
        network = self._network
        return network.user_gmf.mean(0), network.user_mlp.mean(0), network.user_bias.mean()

    @cached_property
    def user_layer(self) -> tuple[Float32s, Float32s]:
        """The user half of the first layer, transposed, and its bias."""
        return self._network.user_half.weight.detach().numpy().T, self._network.user_half.bias.detach().numpy()

    @cached_property
    def global_bias(self) -> np.float32:
        """That of all logits."""
        return np.float32(self._network.global_bias.item())

    @cached_property
    def gmf_output(self) -> Float32s:
        """Output weights of the GMF branch, float32[D]."""
        output = self._network.gmf_output
        return np.ones(self._width, np.float32) if output is None else output.detach().numpy()


def _tables_of(network: "NeuMF") -> tuple[Float32s, Float32s, Float32s] | None:
    """Returns the tables that users' factors are made from, if from these alone and on the CPU."""
    if network.latest_items is not None or network.user_gmf.device.type != "cpu":
        return None
    gmf, mlp, bias = (table.detach().numpy() for table in (network.user_gmf, network.user_mlp, network.user_bias))
    return gmf, mlp, bias


class FoldIn:
    """Makes factors from histories, a few milliseconds each."""

    def __init__(self, network: "NeuMF", users: UserRows) -> None:
        self._network, self._users = network, users
        self._output, self._global_bias = users.gmf_output, users.global_bias
        weight, self._user_half_bias = users.user_layer
        self._user_half = weight.T
        self._width = network.recipe.gmf_dim
        self._drawer = ExampleDrawer(network.num_items)

    def factors(self, history: Int32s, user_idx: int | None) -> Float32s:
        """Returns the factors of a user with these items, oldest first, float32[1, D + H1 + 2]."""
        examples = self._drawer.examples(history)
        with torch.no_grad():
            item_hidden = self._network.item_half(self._network.item_mlp[torch.from_numpy(examples.items)])
        prior = self._prior(user_idx)
        user = fit_user(prior, examples, lambda user: self._linearise(user, examples.items, item_hidden))
        gmf, mlp, bias = np.split(user, [self._width, len(user) - 1])
        parts = [gmf * self._output, np.ones(1), self._hidden(mlp), bias + self._global_bias]
        return np.concatenate(parts).astype(np.float32)[np.newaxis]

    @torch.inference_mode()
    def _prior(self, user_idx: int | None) -> Float32s:
        parameters: Float32s = torch.cat([part.reshape(-1) for part in self._users.parameters(user_idx)]).numpy()
        return parameters

    def _linearise(self, user: Float32s, items: Int64s, item_hidden: Tensor) -> tuple[Float32s, Float32s]:
        """Returns the logits [C] of a user with items and their derivatives [C, P] by the user's parameters."""
        gmf, mlp, bias = np.split(user, [self._width, len(user) - 1])
        with torch.enable_grad():
            hidden = (item_hidden + torch.from_numpy(self._hidden(mlp))).requires_grad_()
            mlp_logits = self._network.mlp_head(hidden.clone())
            (by_hidden,) = torch.autograd.grad(mlp_logits.sum(), hidden)
        item_gmf = self._network.item_gmf.detach().numpy()[items] * self._output
        item_bias = self._network.item_bias.detach().numpy()[items] + self._global_bias
        logits = item_gmf @ gmf + item_bias + bias + mlp_logits.detach().numpy()
        by_bias = np.ones((len(items), 1), np.float32)
        return logits, np.concatenate([item_gmf, by_hidden.numpy() @ self._user_half, by_bias], axis=1)

    def _hidden(self, mlp: Float32s) -> Float32s:
        hidden: Float32s = self._user_half @ mlp + self._user_half_bias
        return hidden
