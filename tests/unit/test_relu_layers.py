"""Layers that are differentiated by hand, against autograd: the same bits."""

import pytest
import torch
from torch import Tensor

from ray_recsys.core.models import relu_layers as module
from ray_recsys.core.models.dropout import draw_ceilings

WIDTHS = (6, 5, 3)


def outputs_and_gradients(num_positives: int, *, drops: bool, fuses: bool) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    shapes = [(num_positives, 4, 6), (5, 6), (5,), (3, 5), (3,), (3,)]
    leaves = [torch.randn(shape, generator=rng).requires_grad_() for shape in shapes]
    first, *parameters, output = leaves
    torch.manual_seed(1)
    ceilings = draw_ceilings(first, WIDTHS, 0.5) if drops else None
    layers = list(zip(parameters[::2], parameters[1::2], strict=True))
    norms = None if fuses else torch.nn.ModuleList(torch.nn.Identity() for _ in WIDTHS)
    products = module.relu_layers(first + 0.25, layers, output, ceilings=ceilings, norms=norms)
    gradients = torch.autograd.grad(products, leaves, torch.randn(products.shape, generator=rng))
    return [products.detach(), *gradients]


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("num_positives", [7, 0])
def test_products_and_gradients_are_autograds(num_positives: int, *, drops: bool) -> None:
    ours, expected = (outputs_and_gradients(num_positives, drops=drops, fuses=fuses) for fuses in (True, False))
    assert [tensor.shape for tensor in ours] == [tensor.shape for tensor in expected]
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert num_positives == 0 or all(tensor.any() for tensor in ours)
