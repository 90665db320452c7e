"""The masked convolution as a GPU computes it, with its operators' formulas for the CPU in place of kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.kernels.masked import mask, masked_reference, pack
from engine.kernels.masked_convolution import Geometry, MaskedConvolution, by_task
from engine.kernels.masked_layers import masked_conv2d
from engine.runs.streams import stream

# (T, N, C, H, W), (O, C / groups, kh, kw) and the geometry: strides, paddings and dilations that differ along the axes.
CASES: list[tuple[tuple[int, ...], tuple[int, ...], Geometry]] = [
    ((2, 3, 3, 5, 4), (4, 3, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 1)),
    ((2, 2, 4, 7, 6), (6, 2, 3, 2), Geometry((2, 1), (1, 0), (1, 2), 2)),
    ((1, 2, 3, 6, 5), (3, 1, 1, 3), Geometry((2, 2), (0, 1), (1, 1), 3)),
    ((3, 1, 1, 3, 3), (1, 1, 1, 1), Geometry((1, 1), (0, 0), (1, 1), 1)),
]


def noise(*shape: int, address: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-masked-convolution", address), dtype=torch.float64)


def operands(case: tuple[tuple[int, ...], tuple[int, ...], Geometry]) -> list[Tensor]:
    """x, weight and scores that require gradients."""
    x, weight, _ = case
    return [
        noise(*x).requires_grad_(),
        noise(x[0], *weight, address=1).requires_grad_(),
        noise(*weight, address=2).requires_grad_(),
    ]


def by_function(bits: bool, geometry: Geometry, x: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    sigma = torch.tensor(0.1, dtype=scores.dtype)
    return MaskedConvolution.apply(x, weight, scores, sigma, pack(mask(scores, sigma)) if bits else None, geometry)


@pytest.mark.parametrize("bits", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case: Any, bits: bool) -> None:
    leaves, geometry = operands(case), case[2]
    found = by_function(bits, geometry, *leaves)
    wanted = by_task(leaves[0], masked_reference(*leaves[1:], 0.1), geometry)
    torch.testing.assert_close(found, wanted)
    cotangent = noise(*wanted.shape, address=3)
    torch.testing.assert_close(*(torch.autograd.grad(y, leaves, cotangent) for y in (found, wanted)))


def test_gradients_of_both_orders_are_those_of_differences() -> None:
    geometry, (x, weight, scores) = CASES[1][2], operands(CASES[1])

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return by_function(False, geometry, x, weight, scores.detach()).sin()

    assert torch.autograd.gradcheck(function, (x, weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, weight), fast_mode=True)


def test_the_outer_loop_goes_through_adapted_weights() -> None:
    geometry, leaves = CASES[1][2], operands(CASES[1])

    def outer(layer: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        x, weight, scores = leaves
        (step,) = torch.autograd.grad(layer(x, weight, scores).tanh().square().sum(), weight, create_graph=True)
        return torch.autograd.grad(layer(x, weight - 0.3 * step, scores).tanh().sum(), leaves)

    def public(x: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
        stride, padding, dilation, groups = geometry
        return masked_conv2d(x, weight, scores, 0.1, stride=stride, padding=padding, dilation=dilation, groups=groups)

    torch.testing.assert_close(outer(lambda *given: by_function(True, geometry, *given)), outer(public))


def test_operators_are_registered_soundly() -> None:
    for shape, kernel, geometry in CASES[:2]:
        x, weight, scores = noise(*shape).float(), noise(shape[0], *kernel, address=1).float(), noise(*kernel, address=2).float()
        sigma, numbers = torch.tensor(0.1), geometry.numbers
        bits = pack(mask(scores, sigma))
        cotangent = noise(*shape[:2], kernel[0], *geometry.sizes(shape[3:], kernel[2:]), address=3).float()
        operators = torch.ops.engine
        torch.library.opcheck(operators.masked_convolution.default, (x, weight, scores, sigma, bits, numbers))
        given = (cotangent, weight, scores, sigma, None, shape[3:], numbers)
        torch.library.opcheck(operators.masked_convolution_input.default, given)
        torch.library.opcheck(operators.masked_convolution_products.default, (cotangent, x, kernel[2:], numbers))
