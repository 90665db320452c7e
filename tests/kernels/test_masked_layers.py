from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from engine.kernels import masked_layers
from engine.kernels.masked import mask, masked_reference, pack
from engine.kernels.masked_layers import masked_conv2d, masked_linear
from engine.runs.streams import stream


def noise(*shape: int, address: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-masked-layers", address), dtype=torch.float64).to(dtype)


# x, weight, scores, bias
LINEAR: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...] | None]] = [
    ((3, 5), (4, 5), (4, 5), (4,)),
    ((5,), (4, 5), (4, 5), None),
    ((2, 3, 5), (4, 5), (4, 5), (4,)),
    ((2, 3, 5), (2, 4, 5), (4, 5), (4,)),
    ((2, 3, 5), (2, 4, 5), (4, 5), (2, 4)),
    ((2, 3, 5), (2, 4, 5), (4, 5), None),
    ((0, 5), (4, 5), (4, 5), None),
    ((2, 0, 5), (2, 4, 5), (4, 5), (4,)),
    ((0, 3, 5), (0, 4, 5), (4, 5), None),
]
CONV = [
    ((2, 3, 5, 4), (4, 3, 3, 3), (4, 3, 3, 3), (4,), 1),
    ((2, 4, 5, 4), (6, 2, 1, 3), (6, 2, 1, 3), None, 2),
    ((2, 3, 3, 5, 4), (2, 4, 3, 3, 3), (4, 3, 3, 3), None, 1),
    ((2, 3, 4, 5, 4), (2, 4, 1, 3, 3), (4, 1, 3, 3), (2, 4), 4),
    ((2, 3, 3, 5, 4), (2, 4, 3, 3, 3), (4, 3, 3, 3), (4,), 1),
]


def check_layer(found: Tensor, wanted: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(found, wanted)
    cotangent = noise(*found.shape, address=9)
    gradients = [torch.autograd.grad(out, leaves, cotangent) for out in (found, wanted)]
    torch.testing.assert_close(*gradients)


def leaves_of(*shapes: tuple[int, ...] | None) -> list[Tensor | None]:
    drawn = [None if shape is None else noise(*shape, address=place) for place, shape in enumerate(shapes)]
    return [None if tensor is None else tensor.requires_grad_() for tensor in drawn]


@pytest.mark.parametrize("shapes", LINEAR, ids=str)
def test_linear_is_a_linear_layer_of_the_masked_weight(shapes: tuple[tuple[int, ...], ...]) -> None:
    x, weight, scores, bias = leaves = leaves_of(*shapes)
    assert x is not None
    assert weight is not None
    assert scores is not None
    w = masked_reference(weight, scores, 0.1)
    wanted = F.linear(x, w) if w.ndim == 2 else torch.einsum("tni,toi->tno", x, w)
    if bias is not None:
        wanted = wanted + (bias[:, None] if bias.ndim == 2 else bias)
    check_layer(masked_linear(x, weight, scores, 0.1, bias), wanted, [leaf for leaf in leaves if leaf is not None])


@pytest.mark.parametrize("shapes", CONV, ids=str)
def test_conv_is_a_convolution_of_the_masked_weight(shapes: Any) -> None:
    *tensors, groups = shapes
    x, weight, scores, bias = leaves = leaves_of(*tensors)
    assert x is not None
    assert weight is not None
    assert scores is not None
    w = masked_reference(weight, scores, 0.1)
    biases = [bias] * len(w) if bias is None or bias.ndim == 1 else bias
    geometry = (2, 1, 1, groups)
    if w.ndim == 5:
        wanted = torch.stack([F.conv2d(a, b, c, *geometry) for a, b, c in zip(x, w, biases, strict=True)])
    else:
        wanted = F.conv2d(x, w, bias, *geometry)
    found = masked_conv2d(x, weight, scores, 0.1, bias, stride=2, padding=1, dilation=1, groups=groups)
    check_layer(found, wanted, [leaf for leaf in leaves if leaf is not None])


def test_layouts_change_nothing() -> None:
    x, weight, scores = noise(2, 3, 5, 4), noise(4, 3, 3, 3, address=1), noise(4, 3, 3, 3, address=2)
    last = [tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight, scores)]
    torch.testing.assert_close(masked_conv2d(*last, 0.1), masked_conv2d(x, weight, scores, 0.1))
    rows, weight, scores = noise(3, 10)[:, ::2], noise(5, 4, address=1).mT, noise(8, 5, address=2)[::2]
    wanted = rows @ masked_reference(weight, scores, 0.1).mT
    torch.testing.assert_close(masked_linear(rows, weight, scores, 0.1), wanted)


def test_vmap_of_a_layer_is_its_task_axis() -> None:
    x, weight, scores = noise(2, 3, 5), noise(2, 4, 5, address=1), noise(4, 5, address=2)
    found = vmap(lambda x, weight: masked_linear(x, weight, scores, 0.1))(x, weight)
    torch.testing.assert_close(found, masked_linear(x, weight, scores, 0.1))


def operands(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x (2, 3, 5), weight (2, 4, 5) and scores (4, 5) that require gradients, and the threshold."""
    drawn = [noise(*shape, address=place, dtype=dtype) for place, shape in enumerate([(2, 3, 5), (2, 4, 5), (4, 5)])]
    return [*(tensor.requires_grad_() for tensor in drawn), torch.tensor(0.1, dtype=dtype)]


def by_function(x: Tensor, weight: Tensor, scores: Tensor, sigma: Tensor) -> Tensor:
    """The layer as a GPU computes it, with the operators' formulas for the CPU in place of kernels."""
    return masked_layers._Linear.apply(x, weight, scores, sigma, pack(mask(scores, sigma)))


def test_gradients_of_the_function() -> None:
    *leaves, sigma = operands()
    found, wanted = by_function(*leaves, sigma), masked_linear(*leaves, sigma)
    torch.testing.assert_close(found, wanted)
    cotangent = noise(2, 3, 4, address=9)
    gradients = [torch.autograd.grad(out, leaves, cotangent) for out in (found, wanted)]
    torch.testing.assert_close(*gradients)
    x, weight, scores = leaves
    assert torch.autograd.gradcheck(lambda x, weight: by_function(x, weight, scores.detach(), sigma), (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, weight: by_function(x, weight, scores.detach(), sigma).sin(), (x, weight))


def test_second_derivatives_of_the_function() -> None:
    *leaves, sigma = operands()

    def outer(layer: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        x, weight, scores = leaves
        (step,) = torch.autograd.grad(layer(x, weight, scores, sigma).tanh().square().sum(), weight, create_graph=True)
        return torch.autograd.grad(layer(x, weight - 0.3 * step, scores, sigma).tanh().sum(), leaves)

    torch.testing.assert_close(outer(by_function), outer(masked_linear))


def test_operators_are_registered_soundly() -> None:
    x, weight, scores, sigma = (tensor.detach() for tensor in operands(torch.float32))
    bits = pack(mask(scores, sigma))
    torch.library.opcheck(torch.ops.engine.masked_gemm.default, (x, weight, scores, sigma, bits, False))
    torch.library.opcheck(torch.ops.engine.masked_gradients.default, (noise(2, 3, 4).float(), x, weight, scores, sigma, None))


def test_compiles_whole() -> None:
    x, weight, scores, sigma = (tensor.detach() for tensor in operands(torch.float32))
    compiled = torch.compile(lambda *given: 2 * masked_linear(*given), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, scores, sigma), 2 * masked_linear(x, weight, scores, sigma))


w, s = torch.zeros(4, 5), torch.zeros(4, 5)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: masked_linear(w, w[None], s, 0.0), ValueError, "x: expected (T, N, I) with 5 channels"),
        (lambda: masked_linear(w[None].expand(3, 4, 5), w.expand(2, 4, 5), s, 0.0), ValueError, "x: expected (T, N, I)"),
        (lambda: masked_linear(w, w[None, None], s, 0.0), ValueError, "weight: expected 2 axes as scores have, or a task axis"),
        (
            lambda: masked_linear(w, w, s, 0.0, w[0]),
            ValueError,
            "bias: expected one element an output of weight (4, 5), got (5,)",
        ),
        (lambda: masked_linear(w, w, s, 0.0, bits=s), TypeError, "bits: expected torch.uint8, got torch.float32 (4, 5)"),
        (
            lambda: masked_linear(w.double(), w, s, 0.0),
            TypeError,
            "x: expected torch.float32 on cpu as weight is, got torch.float64",
        ),
        (
            lambda: masked_linear(w.mT, w, s, 0.0),
            ValueError,
            "x: expected (..., I) with 5 channels for weight (4, 5), got (5, 4)",
        ),
        (
            lambda: masked_linear(w, w, s, 0.0, bits=pack(s > 0)[:2]),
            ValueError,
            "bits: expected contiguous (3,) on cpu for scores (4, 5), got (2,), strides (1,), on cpu",
        ),
        (lambda: masked_conv2d(w, w, s, 0.0), ValueError, "weight: expected 4 axes as scores have"),
        (
            lambda: masked_conv2d(torch.zeros(1, 3, 5, 5), torch.zeros(4, 2, 3, 3), torch.zeros(4, 2, 3, 3), 0.0, groups=2),
            ValueError,
            "x: expected (N, C, H, W) with 4 channels for weight (4, 2, 3, 3), got (1, 3, 5, 5)",
        ),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()
