"""The mixed edge group on a GPU, at real sizes, against the plain formulation in float64. Not run yet: no GPU was at hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from engine.kernels.mixed_edge import Norm, mixed_edge, mixed_sum
from engine.kernels.mixed_edge.arguments import factors
from engine.kernels.mixed_edge.reference import Setting, group_reference, sum_reference
from engine.runs.streams import stream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]

NORMS = {"batch": (Norm("batch"), 1), "tasks": (Norm("batch", 4), 4), "group": (Norm("group", 16), 64), "none": (Norm("none"), 1)}
TOLERANCES = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-2, 1e-2)}
DILATIONS = (1, 1, 2, 2)


def noise(*shape: int, address: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-gpu-mixed-edge", address), dtype=torch.float64).cuda()


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def checked(ours: Any, exact: Any, tensors: list[Tensor], dtype: torch.dtype) -> None:
    """Values, first gradients and their repetition."""
    leaves, doubles = [t.clone().requires_grad_() for t in tensors], [t.double().requires_grad_() for t in tensors]
    found, wanted = ours(*leaves), exact(*doubles)
    assert max(error(*pair) for pair in zip(found, wanted, strict=True)) < TOLERANCES[dtype][0]
    cotangents = [noise(*y.shape, address=90 + i).to(y.dtype) for i, y in enumerate(found)]
    gradients = torch.autograd.grad(found, leaves, cotangents)
    truth = torch.autograd.grad(wanted, doubles, [g.double() for g in cotangents])
    assert max(error(*pair) for pair in zip(gradients, truth, strict=True)) < TOLERANCES[dtype][1]
    again = ours(*leaves)
    assert all(torch.equal(*pair) for pair in zip(found, again, strict=True))
    assert all(torch.equal(*pair) for pair in zip(gradients, torch.autograd.grad(again, leaves, cotangents), strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("stride", [1, 2])
def test_group(norm: str, stride: int, dtype: torch.dtype, layout: torch.memory_format) -> None:
    rule, rows = NORMS[norm]
    x = noise(64, 16, 33, 32).to(dtype).contiguous(memory_format=layout)
    mixture = noise(rows, 4, 3, address=1).float().softmax(-1)
    mixture[..., 2] *= stride == 1
    filters = [noise(16, 1, k, k, address=2 + j).to(dtype) for j, k in enumerate((3, 5, 3, 5))]

    def ours(x: Tensor, mixture: Tensor, *filters: Tensor) -> list[Tensor]:
        sums, taps = mixed_edge(x, mixture, filters, DILATIONS, norm=rule, stride=stride)
        return [*sums, *taps]

    def exact(x: Tensor, mixture: Tensor, *filters: Tensor) -> list[Tensor]:
        alive, scaled, offset = factors(mixture, None, None, 16)
        return group_reference(Setting(rule, stride, DILATIONS), alive, x, scaled, offset, None, *filters)

    checked(ours, exact, [x, mixture, *filters], dtype)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_sum(norm: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    rule, rows = NORMS[norm]
    tensors = [noise(64, 48, 16, 17, address=i).to(dtype).contiguous(memory_format=layout) for i in range(6)]
    weights = noise(rows, 5, address=9).float()

    def ours(weights: Tensor, total: Tensor, *terms: Tensor) -> list[Tensor]:
        return [mixed_sum(terms, weights, total, norm=rule)]

    def exact(weights: Tensor, total: Tensor, *terms: Tensor) -> list[Tensor]:
        alive, scaled, offset = factors(weights, None, None, 48)
        return [sum_reference(rule, alive, scaled, offset, total, *terms)]

    checked(ours, exact, [weights, *tensors], dtype)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_partial_channels(stride: int, dtype: torch.dtype) -> None:
    x = noise(32, 64, 33, 32).to(dtype).contiguous(memory_format=torch.channels_last)
    mixture, passing = noise(3, 3, address=1).float().softmax(-1), noise(3, address=2).float()
    mixture[..., 2] *= stride == 1

    def ours(x: Tensor, mixture: Tensor, passing: Tensor) -> list[Tensor]:
        sums, _ = mixed_edge(x, mixture, norm=Norm(), stride=stride, parts=4, passing=passing)
        return [mixed_sum([sums[1][:, ::4]], mixture[0, :1], sums[0], norm=Norm(), parts=4), *sums]

    def exact(x: Tensor, mixture: Tensor, passing: Tensor) -> list[Tensor]:
        alive, scaled, _ = factors(mixture[None], None, None, 16)
        sums = group_reference(Setting(Norm(), stride, (), 4), alive, x, scaled, None, passing[None])
        alive, scaled, _ = factors(mixture[None, 0, :1], None, None, 16)
        return [sum_reference(Norm(), alive, scaled, None, sums[0], sums[1][:, ::4], parts=4), *sums]

    checked(ours, exact, [x, mixture, passing], dtype)


def test_second_gradients_and_double_precision() -> None:
    x = noise(4, 4, 9, 9).requires_grad_()
    mixture = noise(2, 3, address=1).softmax(-1).requires_grad_()
    found = torch.autograd.grad(mixed_edge(x, mixture, norm=Norm())[0][0].pow(3).sum(), mixture, create_graph=True)[0]
    single = torch.autograd.grad(mixed_edge(x.float(), mixture, norm=Norm())[0][0].pow(3).sum(), mixture, create_graph=True)[0]
    ours, wanted = (torch.autograd.grad(first.square().sum(), mixture, retain_graph=True)[0] for first in (single, found))
    assert error(ours, wanted) < 1e-4


def test_a_pass_can_be_captured() -> None:
    x = noise(8, 16, 16, 16).float().contiguous(memory_format=torch.channels_last)
    mixture = noise(2, 3, address=1).float().softmax(-1)

    def step() -> Tensor:
        leaf = mixture.detach().requires_grad_()
        sums, _ = mixed_edge(x, leaf, norm=Norm())
        return torch.autograd.grad(mixed_sum(sums, leaf[0, :2], norm=Norm()).square().sum(), leaf)[0]

    wanted = step()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert torch.equal(captured, wanted)
