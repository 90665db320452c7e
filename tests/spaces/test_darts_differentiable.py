"""Convolution and batch normalisation with gradients of their own, against torch's and by finite differences."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn import functional as F

from engine.spaces.differentiable import Convolution, batch_norm, differentiable, weights_held
from engine.spaces.norms import NoNorm
from engine.spaces.operations import FactorizedReduce

SHAPES: list[dict[str, Any]] = [
    {"groups": 3, "kernel_size": 5, "padding": 4, "dilation": 2},
    {"groups": 3, "kernel_size": 3, "padding": 1, "stride": 2},
    {"groups": 3, "kernel_size": 5, "padding": 4, "dilation": 2, "stride": 2},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "padding": 1},
]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolution(shape: dict[str, Any]) -> None:
    plain = nn.Conv2d(3, 3, bias=False, **shape).double()
    own = Convolution.of(plain)
    assert own.weight is plain.weight

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return functional_call(own, {"weight": weight}, (x,))

    x, weight = draw(2, 3, 5, 6), plain.weight.detach().clone().requires_grad_()
    torch.testing.assert_close(run(x, weight), plain(x))
    assert gradcheck(run, (x, weight))
    assert gradgradcheck(run, (x, weight))


def test_normalisation() -> None:
    x = draw(3, 2, 4, 5)
    torch.testing.assert_close(batch_norm(x), F.batch_norm(x, None, None, training=True))
    assert gradcheck(batch_norm, x)
    assert gradgradcheck(batch_norm, x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("size", [(4, 6), (5, 4)])
def test_a_reduction_reads_what_its_modules_read(size: tuple[int, int], layout: torch.memory_format) -> None:
    plain = FactorizedReduce(2, 3, NoNorm).double()
    own = differentiable(copy.deepcopy(plain))
    names = [name for name, _ in plain.named_parameters()]
    leaves = [draw(2, 2, *size).detach().contiguous(memory_format=layout).requires_grad_()]
    leaves += [weight.detach().clone().requires_grad_() for weight in plain.parameters()]

    def run(module: nn.Module, x: Tensor, *weights: Tensor) -> Tensor:
        return functional_call(module, dict(zip(names, weights, strict=True)), (x,))

    torch.testing.assert_close(run(own, *leaves), run(plain, *leaves))
    first, second = (torch.autograd.grad(run(m, *leaves).pow(3).sum(), leaves, create_graph=True) for m in (own, plain))
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(*(torch.autograd.grad(sum(g.sin().sum() for g in found), leaves) for found in (first, second)))
    assert gradgradcheck(lambda *given: run(own, *given), leaves, fast_mode=True)


def test_third_derivative_of_the_normalisation() -> None:
    def second(x: Tensor) -> Tensor:
        (g,) = torch.autograd.grad((batch_norm(x) ** 3).sum(), x, create_graph=True)
        return torch.autograd.grad((g**2).sum(), x, create_graph=True)[0]

    assert gradcheck(second, draw(3, 1, 2, 2))


def test_under_transforms_they_are_the_librarys() -> None:
    x = draw(3, 2, 4, 5).detach()
    (_, tangent) = torch.func.jvp(batch_norm, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, torch.zeros_like(x), atol=1e-9, rtol=0)
    own = Convolution.of(nn.Conv2d(2, 2, 1, bias=False).double())
    torch.testing.assert_close(torch.vmap(own)(x[None])[0], own(x))


def test_images_of_one_channel_make_maps_with_channels_innermost() -> None:
    own, x = Convolution.of(nn.Conv2d(1, 3, 3, padding=1, bias=False).double()), draw(2, 1, 4, 5)
    assert own(x).is_contiguous(memory_format=torch.channels_last)
    assert own(x.detach().mT.contiguous().mT).is_contiguous(memory_format=torch.channels_last)
    assert gradgradcheck(lambda x, w: functional_call(own, {"weight": w}, (x,)), (x, own.weight.detach().requires_grad_()))


def test_held_weights_get_no_gradient() -> None:
    own = Convolution.of(nn.Conv2d(2, 2, 3, groups=2, bias=False).double())
    x = draw(1, 2, 5, 5)
    with weights_held():
        gradients = torch.autograd.grad(own(x).sum(), (x, own.weight), allow_unused=True)
    assert gradients[0] is not None
    assert gradients[1] is None
    assert torch.autograd.grad(own(x).sum(), own.weight)[0].abs().sum() > 0


def test_replaces_convolutions_without_bias_only() -> None:
    model = differentiable(nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 2, 1)))
    assert [type(layer) for layer in model] == [Convolution, nn.Conv2d]
