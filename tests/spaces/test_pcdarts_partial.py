"""Partial channels against the published mixed operation, one edge at a time, in float64."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import ConfigurationError
from engine.spaces.cells import Cell
from engine.spaces.darts import searched_space
from engine.spaces.darts_supernet import DartsSupernet
from engine.spaces.mixture import Mixture
from engine.spaces.operations import operation
from engine.spaces.partial import PartialCell, PartialLane, PartialRelaxation, shuffled
from engine.spaces.space import DARTS
from engine.spaces.supernet import make_lane


def published_shuffle(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, -1, height, width)


def published_edge(cell: PartialCell, e: int, x: Tensor, weights: Tensor) -> Tensor:
    """The mixed operation of PC-DARTS (note, section 3), each operation evaluated for itself."""
    k, stride = cell.partial, cell.space.stride(cell.plan.kind, e)
    active, rest = x[:, : x.shape[1] // k], x[:, x.shape[1] // k :]
    total = torch.zeros((), dtype=x.dtype)
    for o, name in enumerate(cell.space.operations):
        if name != "none":
            source = active.relu() if operation(name).reads_relu(stride) else active
            total = total + weights[o] * cell.module(e, name)(source)
    passed = rest if stride == 1 else F.max_pool2d(rest, 2, 2)
    return published_shuffle(torch.cat([total, passed], 1), k)


def published_cell(cell: PartialCell, s0: Tensor, s1: Tensor, weights: Tensor, edges: Tensor) -> Tensor:
    states = [cell.preprocess0(s0), cell.preprocess1(s1)]
    for node in range(4):
        offset = sum(2 + i for i in range(node))
        states.append(
            sum(
                (edges[offset + j] * published_edge(cell, offset + j, h, weights[offset + j]) for j, h in enumerate(states)),
                torch.zeros((), dtype=s0.dtype),
            )
        )
    return torch.cat(states[2:], 1)


@pytest.mark.parametrize("partial", [2, 4])
@pytest.mark.parametrize("index", [0, 1])
def test_cell_is_the_published_one(partial: int, index: int) -> None:
    model = DartsSupernet(DARTS, cells=3, channels=8, outputs=3, partial=partial).double()
    cell = cast(PartialCell, model.cells[index])
    relaxation, generator = PartialRelaxation(DARTS), torch.Generator().manual_seed(partial)
    a = torch.randn(relaxation.shape, generator=generator, dtype=torch.float64).requires_grad_()
    s0, s1 = (
        torch.randn(2, channels, 8, 8, generator=generator, dtype=torch.float64).relu() for channels in cell.plan.channels_in
    )
    mixture, kind = relaxation(a), DARTS.kinds.index(cell.plan.kind)
    assert mixture.edges is not None
    found = cell(s0, s1, PartialLane.of(make_lane(mixture, model.space, kind, 2), mixture, kind, 2))
    wanted = published_cell(cell, s0, s1, mixture.weights[kind], mixture.edges[kind])
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    leaves = [a, *cell.parameters()]
    gradients = [torch.autograd.grad((y**3).sum(), leaves, retain_graph=True) for y in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_shuffle_is_the_published_one(groups: int, each: int, side: int) -> None:
    x = torch.randn(2, groups * each, side, side).contiguous(memory_format=torch.channels_last)
    assert torch.equal(shuffled(x, groups), published_shuffle(x.contiguous(), groups))


def test_one_part_is_a_plain_cell_with_edge_weights() -> None:
    model = DartsSupernet(DARTS, cells=3, channels=4, outputs=3, partial=1)
    assert all(type(cell) is Cell for cell in model.cells)
    a = torch.randn(PartialRelaxation(DARTS).shape)
    mixture = PartialRelaxation(DARTS)(a)
    assert mixture.edges is not None
    folded = Mixture(mixture.weights * mixture.edges[..., None], mixture.alive)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(x, mixture), model(x, folded))


def test_several_architectures_in_one_batch() -> None:
    """With one architecture a row, a batch of two groups gives what each group gives alone."""
    model = DartsSupernet(DARTS, cells=2, channels=4, outputs=3, partial=2).double()
    relaxation = PartialRelaxation(DARTS)
    one, two = (relaxation(torch.randn(relaxation.shape, dtype=torch.float64)) for _ in range(2))
    both = Mixture(*(torch.stack([getattr(m, key) for m in (one, two)]) for key in ("weights", "alive", "edges")))
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    alone = torch.cat([model(x[:2], one), model(x[2:], two)])
    torch.testing.assert_close(model(x, both), alone, rtol=1e-9, atol=1e-9)


def test_strengths_multiply_and_nodes_share() -> None:
    relaxation = PartialRelaxation(searched_space("darts-s2"))
    mixture = relaxation(torch.randn(relaxation.shape))
    assert mixture.edges is not None
    for start, count in ((0, 2), (2, 3), (5, 4), (9, 5)):
        torch.testing.assert_close(mixture.edges[:, start : start + count].sum(-1), torch.ones(2))
    a = torch.zeros(relaxation.shape)
    a[0, 4, 8] = a[0, 2, 8] = 1.0  # edges 2->3 and 0->3 weigh more than 1->3
    assert [c.source for c in relaxation.genotype(a)["normal"].connections if c.target == 3] == [0, 2]
    torch.testing.assert_close(relaxation.strengths(a).sum(-1), relaxation(a).edges)


def test_imagenet_stem_divides_by_eight() -> None:
    model = DartsSupernet(DARTS, cells=3, channels=4, outputs=5, partial=2, imagenet=True)
    assert [type(m) for m in model.stem.children()] == [nn.ModuleList, nn.ModuleList]
    assert [tuple(c.weight.shape[:2]) for c in model.stem.convs] == [(6, 3), (12, 6), (12, 12)]
    assert "FactorizedReduce" in type(model.cells[0].preprocess0).__name__
    relaxation = PartialRelaxation(DARTS)
    assert model(torch.randn(2, 3, 64, 64), relaxation(torch.zeros(relaxation.shape))).shape == (2, 5)


def test_channels_that_do_not_divide() -> None:
    with pytest.raises(ConfigurationError, match="multiple of 8"):
        DartsSupernet(DARTS, cells=3, channels=4, outputs=3, partial=4)
    model = DartsSupernet(DARTS, cells=3, channels=4, outputs=3, partial=2)
    with pytest.raises(ValueError, match="edge weights"):
        model(torch.zeros(2, 3, 8, 8), Mixture(torch.zeros(2, 14, 8), torch.ones(2, 14, 8, dtype=torch.bool)))
