"""Convolutions of an edge group on a GPU, at real sizes, against the same reference. Not run yet: no GPU was at hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.kernels.pointwise import convolution_reference, grouped_pair, grouped_pointwise
from engine.runs.streams import stream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]

# (B, N, I, O, H, W), groups: a DARTS cell's edges, a meta-batch of MetaNAS, odd ones.
SHAPES = [((8, 64, 16, 16, 32, 32), 1), ((4, 200, 14, 28, 28, 28), 10), ((3, 5, 17, 33, 13, 7), 5), ((1, 1, 1, 1, 1, 1), 1)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def noise(*shape: int, address: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-gpu-pointwise", address)).to(dtype).cuda()


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=1e-3))


def gradients(parts: tuple[Tensor, ...], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    loss = sum((part * noise(*part.shape, address=7 + k).to(part.dtype)).sum() for k, part in enumerate(parts))
    assert isinstance(loss, Tensor)
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_pointwise_equals_float64(shape: tuple[int, ...], groups: int, dtype: torch.dtype) -> None:
    b, n, i, o, h, w = shape
    leaves = [
        noise(b, n, h, w, i, dtype=dtype).movedim(-1, 2).requires_grad_(),
        noise(b, o, i, address=1, dtype=dtype).requires_grad_(),
    ]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found, wanted = grouped_pointwise(*leaves, groups=groups), convolution_reference(wide[0], wide[1][..., None, None], 1, groups)
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) < TOLERANCE[dtype]
    pairs = zip(gradients(found, leaves), gradients(wanted, wide), strict=True)
    assert max(error(a, b) for a, b in pairs) < 10 * TOLERANCE[dtype]
    assert all(torch.equal(a, b) for a, b in zip(found, grouped_pointwise(*leaves, groups=groups), strict=True))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_pair_equals_float64(shape: tuple[int, ...], groups: int, stride: int) -> None:
    b, n, i, o, h, w = shape
    x, first, second = noise(b, n, i, h, w), noise(b, o, i, 1, 5, address=1), noise(b, i, o, 5, 1, address=2)
    middle = convolution_reference(x.double(), first.double(), stride, 1).y
    wanted = convolution_reference(middle, second.double(), 1, groups)
    found = grouped_pair(x, first, second, stride=stride, groups=groups)
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) < 1e-5
