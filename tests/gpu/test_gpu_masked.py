"""Masked layers, the score gradient and the updates on a GPU, at real sizes, against the same references.

Not run yet: no GPU was at hand.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.kernels.masked import mask, masked, pack, threshold
from engine.kernels.masked_layers import masked_conv2d, masked_linear
from engine.kernels.score_gradient import score_gradient, score_gradient_reference, update_scores_
from engine.kernels.updates import AdamRule, adam, adam_, reptile, reptile_, sgd, sgd_
from engine.runs.streams import stream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]

# (T, N, O, I): the layers of the colour 5-MLP, a batch of one task, odd ones.
SHAPES = [(4, 25, 1024, 3072), (4, 25, 128, 256), (1, 100, 512, 1024), (3, 17, 123, 65), (1, 1, 1, 1)]
# (T, N, O, C, side, groups, stride): layers of a ResNet-12, depthwise, odd.
CONVOLUTIONS = [(4, 25, 64, 64, 21, 1, 1), (1, 25, 128, 64, 10, 1, 2), (2, 8, 32, 32, 14, 32, 1), (1, 3, 5, 7, 9, 1, 1)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def noise(*shape: int, address: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-gpu-masked", address)).to(dtype).cuda()


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("by_bits", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_equals_float64(shape: tuple[int, ...], dtype: torch.dtype, by_bits: bool) -> None:
    tasks, rows, outputs, inputs = shape
    leaves = [noise(tasks, rows, inputs, dtype=dtype), noise(tasks, outputs, inputs, address=1, dtype=dtype)]
    leaves = [leaf.requires_grad_() for leaf in [*leaves, noise(outputs, inputs, address=2)]]
    cotangent = noise(tasks, rows, outputs, address=3, dtype=dtype)
    sigma = threshold(leaves[2], 0.4)
    bits = pack(mask(leaves[2], sigma)) if by_bits else None

    def gradients(*given: Tensor, bits: Tensor | None) -> list[Tensor]:
        y = masked_linear(*given, sigma, bits=bits)
        return [y.detach(), *torch.autograd.grad(y, given, cotangent.to(y.dtype))]

    found = gradients(*leaves, bits=bits)
    wanted = gradients(*(leaf.detach().double().requires_grad_() for leaf in leaves), bits=None)
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) < TOLERANCE[dtype]
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(*leaves, bits=bits), strict=True))


@pytest.mark.parametrize("by_bits", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
def test_convolution_equals_float64(shape: tuple[int, ...], dtype: torch.dtype, by_bits: bool) -> None:
    tasks, samples, outputs, inputs, side, groups, stride = shape
    x = noise(tasks, samples, inputs, side, side, dtype=dtype)
    leaves = [x, noise(tasks, outputs, inputs // groups, 3, 3, address=1, dtype=dtype)]
    leaves = [leaf.requires_grad_() for leaf in [*leaves, noise(outputs, inputs // groups, 3, 3, address=2)]]
    sigma = threshold(leaves[2], 0.4)
    bits = pack(mask(leaves[2], sigma)) if by_bits else None

    def gradients(*given: Tensor, bits: Tensor | None) -> list[Tensor]:
        y = masked_conv2d(*given, sigma, stride=stride, padding=1, groups=groups, bits=bits)
        return [y.detach(), *torch.autograd.grad(y, given, noise(*y.shape, address=3, dtype=dtype).to(y.dtype))]

    found = gradients(*leaves, bits=bits)
    wanted = gradients(*(leaf.detach().double().requires_grad_() for leaf in leaves), bits=None)
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) < TOLERANCE[dtype]
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(*leaves, bits=bits), strict=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_second_order_equals_float64(shape: tuple[int, ...]) -> None:
    tasks, rows, outputs, inputs = shape
    x, weight, scores = noise(tasks, rows, inputs), noise(tasks, outputs, inputs, address=1), noise(outputs, inputs, address=2)

    def outer(dtype: torch.dtype) -> Tensor:
        w, s = weight.to(dtype).requires_grad_(), scores.to(dtype).requires_grad_()
        (step,) = torch.autograd.grad(masked_linear(x.to(dtype), w, s, 0.1).tanh().square().mean(), w, create_graph=True)
        return torch.autograd.grad(masked_linear(x.to(dtype), w - 0.3 * step, s, 0.1).tanh().square().mean(), s)[0]

    assert error(outer(torch.float32), outer(torch.float64)) < 1e-4


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_score_gradient_equals_float64(shape: tuple[int, ...], second_order: bool) -> None:
    tasks, rows, outputs, inputs = shape
    weight, scores = noise(outputs, inputs), noise(outputs, inputs, address=1)
    query, support, curvature = (
        (noise(*lead, outputs, address=place), noise(*lead, inputs, address=place + 1))
        for place, lead in ((2, (tasks, rows)), (4, (2, tasks, rows)), (6, (2, tasks, 2 * rows)))
    )
    bent = curvature if second_order else None
    found = score_gradient(weight, scores, 0.1, query, support, bent, rate=0.03)
    dense = [left.double().mT @ right.double() for left, right in (query, support, curvature)]
    wide_bent = dense[2] if second_order else None
    wanted = score_gradient_reference(weight.double(), mask(scores, 0.1), dense[0], dense[1], wide_bent, 0.03)
    assert error(found, wanted) < 1e-5
    assert torch.equal(found, score_gradient(weight, scores, 0.1, query, support, bent, rate=0.03))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ["number", "scalar", "parameter", "task"])
def test_updates_equal_the_functions(kind: str, dtype: torch.dtype) -> None:
    shape = (3, 1_000_003)
    rates = {"number": 0.1, "scalar": torch.tensor(0.1).cuda(), "parameter": noise(shape[1]).abs(), "task": noise(3, 1).abs()}
    rate = rates[kind]
    buffers = [noise(*shape, address=place, dtype=dtype) for place in range(4)]
    buffers[3] = buffers[3].abs()
    wide = [buffer.double() for buffer in buffers]
    rule = AdamRule(weight_decay=0.1, decoupled=True)
    wanted = adam(*wide, 3, rate=rate, rule=rule)
    adam_(*buffers, torch.tensor(3).cuda(), rate=rate, rule=rule)
    assert error(buffers[0], wanted[0]) < TOLERANCE[dtype]
    wide = [buffer.double() for buffer in buffers]
    after, velocity = sgd(*wide[:3], rate=rate, momentum=0.9, weight_decay=0.1)
    sgd_(*buffers[:3], rate=rate, momentum=0.9, weight_decay=0.1)
    assert velocity is not None
    assert max(error(buffers[0], after), error(buffers[2], velocity)) < TOLERANCE[dtype]
    if kind != "task":
        meta = buffers[1][0].clone()
        moved = reptile(meta.double(), buffers[0].double(), rate)
        reptile_(meta, buffers[0], rate)
        assert error(meta, moved) < TOLERANCE[dtype]


def test_scores_step_gives_the_mask_and_the_first_weights() -> None:
    scores, gradient, velocity, weight = (noise(1024, 3071, address=place) for place in range(4))
    wanted = scores.double() - 0.3 * (0.9 * velocity.double() + gradient.double())
    bits, first = update_scores_(scores, gradient, velocity, weight, 0.1, rate=0.3, momentum=0.9)
    assert error(scores, wanted) < 1e-6
    assert torch.equal(bits, pack(mask(scores, 0.1)))
    assert torch.equal(first, masked(weight, scores, 0.1))


def test_an_outer_step_can_be_captured() -> None:
    """No synchronisation: a CUDA graph records an update with its count and rate on the device, and replays it."""
    buffers = [noise(4, 1000, address=place) for place in range(4)]
    buffers[3] = buffers[3].abs()
    step, rate = torch.ones((), device="cuda"), torch.tensor(0.1, device="cuda")
    adam_(*buffers, step, rate=rate)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step += 1
        adam_(*buffers, step, rate=rate)
    wanted = adam(*(buffer.double() for buffer in buffers), int(step) + 1, rate=0.1)[0]
    graph.replay()
    assert error(buffers[0], wanted) < 1e-5
