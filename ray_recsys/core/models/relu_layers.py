"""Layers with ReLU and an output vector; on CPUs differentiated by hand, so that every pass reuses its memory.

Autograd copies the gradient of each layer three times, as ReLU overwrites a view. The operations and their order are
autograd's, so are the bits.

Shapes: n pairs, H units of a layer, B positives with C items each.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_recsys.core.models.dropout import Ceilings, relu_and_drop


def relu_layers(
    hidden: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    output: Tensor,
    *,
    ceilings: Ceilings | None = None,
    norms: nn.ModuleList | None = None,
) -> Tensor:
    """Returns the inner products of the last layer's units with the output vector, [...].

    Args:
        hidden: Sums of the first layer, [..., H]; may be overwritten.
        layers: Weight and bias of each further layer.
        output: float32[H] of the last layer.
        ceilings: Of all layers' units, for dropout; then `hidden` is [B, C, H].
        norms: Of all layers' sums.
    """
    if ceilings is not None:  # what scales the kept units goes into the next weights, which are fewer
        layers, output = [(weight * ceilings.scale, bias) for weight, bias in layers], output * ceilings.scale
    of_layers = None if ceilings is None else ceilings.of_layers
    if norms is not None or hidden.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return _by_autograd(hidden, layers, output, of_layers, norms)
    parameters = [parameter for layer in layers for parameter in layer]
    flat = hidden.reshape(-1, hidden.shape[-1])
    products: Tensor = _ReluLayers.apply(flat, output, of_layers, *parameters)  # type: ignore[no-untyped-call]
    return products.view(hidden.shape[:-1])


def _by_autograd(
    hidden: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    output: Tensor,
    ceilings: Sequence[Tensor] | None,
    norms: nn.ModuleList | None,
) -> Tensor:
    for number in range(len(layers) + 1):
        if number:
            hidden = functional.linear(hidden, *layers[number - 1])
        if norms is not None:
            hidden = norms[number](hidden)
        hidden = functional.relu(hidden, inplace=True) if ceilings is None else relu_and_drop(hidden, ceilings[number])
    return torch.matmul(hidden, output)


class _ReluLayers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, output: Tensor, ceilings: Sequence[Tensor] | None, *layers: Tensor) -> Tensor:
        weights, biases = layers[::2], layers[1::2]
        units = [_relu(hidden, ceilings, 0)]
        for number, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
            units.append(_relu(torch.addmm(bias, units[-1], weight.t()), ceilings, number))
        ctx.save_for_backward(output, *weights, *units)
        return torch.mv(units[-1], output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        output, *saved = ctx.saved_tensors
        weights, units = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        by_output = torch.mv(units[-1].t(), gradients[0])
        by_units = _stop(torch.outer(gradients[0], output), units[-1])
        by_layers: list[Tensor] = []
        for weight, before in zip(reversed(weights), reversed(units[:-1]), strict=True):
            by_layers = [torch.mm(by_units.t(), before), by_units.sum(dim=0), *by_layers]
            by_units = _stop(torch.mm(by_units, weight), before)
        return by_units, by_output, None, *by_layers


def _relu(hidden: Tensor, ceilings: Sequence[Tensor] | None, number: int) -> Tensor:
    """Overwrites a layer's sums by its units."""
    if ceilings is None:
        return hidden.relu_()
    ceiling = ceilings[number]
    of_positives = hidden.view(len(ceiling), -1 if len(hidden) else 0, hidden.shape[1])
    torch.clamp(of_positives, hidden.new_zeros(()), ceiling, out=of_positives)
    return hidden


def _stop(gradient: Tensor, units: Tensor) -> Tensor:
    """Overwrites the gradient of units by that of their sums."""
    stopped: Tensor = torch.ops.aten.threshold_backward.grad_input(gradient, units, 0, grad_input=gradient)
    return stopped
