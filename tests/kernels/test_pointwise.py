from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

from engine.kernels import pointwise
from engine.kernels.pointwise import DTYPES, convolution_reference, grouped_pair, grouped_pointwise
from engine.runs.streams import stream

# (B, N, I, O, H, W), groups; one of everything, odd sizes, no branches, no samples.
SHAPES = [
    ((1, 1, 1, 1, 3, 3), 1),
    ((2, 4, 3, 5, 5, 7), 2),
    ((3, 5, 17, 6, 4, 1), 5),
    ((0, 2, 3, 4, 3, 3), 1),
]


def noise(*shape: int, address: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-pointwise", address), dtype=torch.float64).to(dtype)


def operands(shape: tuple[int, ...]) -> list[Tensor]:
    """x, and weights of a 1x1, a 1x5 and a 5x1 convolution, that require gradients."""
    b, n, i, o, h, w = shape
    drawn = [noise(b, n, i, h, w), noise(b, o, i, address=1), noise(b, o, i, 1, 5, address=2), noise(b, i, o, 5, 1, address=3)]
    return [tensor.requires_grad_() for tensor in drawn]


def gradients(parts: tuple[Tensor, ...], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    loss = sum(((part * noise(*part.shape, address=7 + place)).sum() for place, part in enumerate(parts)), torch.zeros(()))
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_pointwise_equals_the_reference(shape: tuple[int, ...], groups: int) -> None:
    x, weight, _, _ = operands(shape)
    found = grouped_pointwise(x, weight, groups=groups)
    if not shape[0]:
        assert [part.numel() for part in found] == [0, 0, 0]
        return
    wanted = convolution_reference(x, weight[..., None, None], 1, groups)
    torch.testing.assert_close(tuple(found), tuple(wanted))
    torch.testing.assert_close(gradients(found, [x, weight]), gradients(wanted, [x, weight]))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("shape", "groups"), SHAPES[:3], ids=str)
def test_pair_equals_two_convolutions(shape: tuple[int, ...], groups: int, stride: int) -> None:
    x, _, first, second = operands(shape)
    found = grouped_pair(x, first, second, stride=stride, groups=groups)
    middle = torch.stack([F.conv2d(image, kernel, None, stride, (0, 2)) for image, kernel in zip(x, first, strict=True)])
    wanted = convolution_reference(middle, second, 1, groups)
    torch.testing.assert_close(tuple(found), tuple(wanted))
    leaves = [x, first, second]
    torch.testing.assert_close(gradients(found, leaves), gradients(wanted, leaves))


def test_no_samples_and_no_groups_of_none() -> None:
    found = grouped_pointwise(torch.zeros(2, 0, 3, 4, 4), torch.zeros(2, 5, 3))
    assert found.y.shape == (2, 0, 5, 4, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_precision(dtype: torch.dtype) -> None:
    x, weight = noise(2, 6, 16, 5, 5, dtype=dtype), noise(2, 8, 16, address=1, dtype=dtype)
    wanted = convolution_reference(x.double(), weight.double()[..., None, None], 1, 3)
    bound = {torch.float64: 1e-13, torch.float32: 1e-5}.get(dtype, 1e-2)
    for found, expected in zip(grouped_pointwise(x, weight, groups=3), wanted, strict=True):
        assert float((found.double() - expected).norm() / expected.norm()) < bound


def test_a_variance_survives_a_large_mean() -> None:
    x = noise(1, 4, 3, 5, 5, dtype=torch.float32) + 1000
    weight = torch.ones(1, 1, 3)
    wanted = convolution_reference(x.double(), weight.double()[..., None, None], 1, 1)
    torch.testing.assert_close(grouped_pointwise(x, weight).variance.double(), wanted.variance, rtol=1e-3, atol=0)


def test_statistics_of_samples_give_those_of_group_normalisation() -> None:
    x, weight = noise(2, 3, 4, 5, 5), noise(2, 6, 4, address=1)
    found = grouped_pointwise(x, weight, groups=3)
    means, variances = (part.unflatten(2, (2, 3)) for part in (found.mean, found.variance))
    mean, variance = means.mean(3, keepdim=True), (variances + means.var(3, correction=0, keepdim=True)).mean(3, keepdim=True)
    normal = (found.y.unflatten(2, (2, 3)) - mean[..., None, None]) / (variance[..., None, None] + 1e-5).sqrt()
    wanted = F.group_norm(found.y.flatten(0, 1), 2).view_as(found.y)
    torch.testing.assert_close(normal.flatten(2, 3), wanted)


def test_shared_inputs_and_layouts() -> None:
    x, weight = noise(4, 3, 5, 6), noise(2, 7, 3, address=1)
    wanted = grouped_pointwise(torch.stack([x, x]), weight, groups=2)
    for layout in (x, x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT):
        found = grouped_pointwise(layout.expand(2, *x.shape), weight, groups=2)
        torch.testing.assert_close(tuple(found), tuple(wanted))
        assert found.y[0].is_contiguous(memory_format=torch.channels_last)


def by_function(x: Tensor, weight: Tensor, stride: int, groups: int) -> tuple[Tensor, ...]:
    """The convolution as a GPU computes it, with the operator's formula for the CPU in place of the kernel."""
    return pointwise._Convolution.apply(x, weight, stride, groups)


@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize(("kernel", "stride"), [((1, 1), 1), ((1, 3), 2), ((3, 1), 1)])
def test_gradients_of_the_function(kernel: tuple[int, int], stride: int, groups: int) -> None:
    x, weight = noise(2, 2, 2, 3, 4).requires_grad_(), noise(2, 3, 2, *kernel, address=1).requires_grad_()

    def function(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return by_function(x, weight, stride, groups)[: 3 if groups else 1]

    assert torch.autograd.gradcheck(function, (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, weight: [part.sin() for part in function(x, weight)], (x, weight))
    only = by_function(x.detach(), weight, stride, groups)[0]
    assert torch.autograd.grad(only.sum(), weight)[0].shape == weight.shape


def test_transforms_take_the_formula() -> None:
    x, weight = noise(3, 2, 2, 3, 3, 3), noise(2, 4, 3, address=1)

    def loss(weight: Tensor, x: Tensor) -> Tensor:
        found = grouped_pointwise(x, weight, groups=2)
        return (found.y.sin().sum() + found.variance.sum()).square()

    found = vmap(grad(loss), (None, 0))(weight, x)
    torch.testing.assert_close(found, torch.stack([grad(loss)(weight, one) for one in x]))


@pytest.mark.parametrize("groups", [0, 2])
def test_operator_is_registered_soundly(groups: int) -> None:
    for weight in (noise(2, 3, 2, 1, 1), noise(2, 3, 2, 1, 3)):
        torch.library.opcheck(torch.ops.engine.convolution_statistics.default, (noise(2, 2, 2, 3, 4), weight, 1, groups))


x, w = torch.zeros(2, 4, 3, 5, 5), torch.zeros(2, 6, 3)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: grouped_pointwise(x.long(), w), TypeError, "x: expected torch.float32"),
        (lambda: grouped_pointwise(x, w.double()), TypeError, "weight: expected torch.float32 as x is, got torch.float64"),
        (lambda: grouped_pointwise(x[0], w), ValueError, "x: expected strided (B, N, I, H, W), got torch.strided (4, 3, 5, 5)"),
        (lambda: grouped_pointwise(x, w[0]), ValueError, "weight: expected (B, O, I), got (6, 3)"),
        (
            lambda: grouped_pointwise(x, w[:1]),
            ValueError,
            "weight: expected 2 branches and 3 channels in, got (1, 6, 3, 1, 1)",
        ),
        (lambda: grouped_pointwise(x, w.to("meta")), ValueError, "weight: expected strided on cpu, got torch.strided"),
        (lambda: grouped_pointwise(x, w, groups=3), ValueError, "groups: expected a positive divisor of the 4 samples of x"),
        (lambda: grouped_pair(x, w, w), ValueError, "first: expected (B, M, I, 1, k) with an odd k, got (2, 6, 3)"),
        (
            lambda: grouped_pair(x, torch.zeros(2, 6, 3, 1, 5), torch.zeros(2, 4, 6, 4, 1)),
            ValueError,
            "second: expected (B, O, M, k, 1) with an odd k, got (2, 4, 6, 4, 1)",
        ),
        (
            lambda: grouped_pair(x, torch.zeros(2, 6, 3, 1, 5), torch.zeros(2, 4, 5, 5, 1)),
            ValueError,
            "weight: expected 2 branches and 6 channels in, got (2, 4, 5, 5, 1)",
        ),
        (
            lambda: grouped_pair(x, torch.zeros(2, 6, 3, 1, 5), torch.zeros(2, 4, 6, 5, 1), stride=0),
            ValueError,
            "stride: expected at least 1, got 0",
        ),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()
