from __future__ import annotations

import pytest
import torch

from engine.spaces.mixture import Mixture, full, uniform, without
from engine.spaces.space import FEW_SHOT

ALIVE = torch.tensor([[[False, True, True, False], [False, False, False, False]]])


def test_uniform_is_the_softmax_of_equal_logits():
    mixture = uniform(full(FEW_SHOT), dtype=torch.float64)
    logits = torch.zeros(2, 9, 8, dtype=torch.float64)
    logits[..., 0] = -1000
    torch.testing.assert_close(mixture.weights, logits.softmax(-1))
    assert mixture.groups == 1


def test_uniform_of_an_empty_edge_is_zero():
    assert uniform(ALIVE).weights.tolist() == [[[0, 0.5, 0.5, 0], [0, 0, 0, 0]]]


def test_without_removes_one_operation_a_row():
    whole = full(FEW_SHOT)
    rows = without(whole, [(0, 0, 1), (1, 8, 7)])
    mixture = uniform(rows)
    assert mixture.groups == 2
    assert (whole & ~rows).nonzero().tolist() == [[0, 0, 0, 1], [1, 1, 8, 7]]
    assert mixture.weights[0, 0, 0].tolist() == pytest.approx([0, 0, *[1 / 6] * 6])
    assert whole.sum() == 126


def test_weights_of_what_is_not_alive_are_zero():
    weights = torch.full(ALIVE.shape, torch.nan).masked_fill(ALIVE, 2).requires_grad_()
    mixture = Mixture(weights, ALIVE)
    assert mixture.weights.tolist() == [[[0, 2, 2, 0], [0, 0, 0, 0]]]
    assert torch.autograd.grad(mixture.weights.sum(), weights)[0].tolist() == [[[0, 1, 1, 0], [0, 0, 0, 0]]]


def test_to_moves_weights_only():
    moved = Mixture(torch.ones(1, 2, 4), ALIVE, torch.ones(1, 2)).to("cpu", torch.float64)
    assert (moved.weights.dtype, moved.edges.dtype, moved.alive.dtype) == (torch.float64, torch.float64, torch.bool)


@pytest.mark.parametrize(
    ("weights", "alive", "edges", "message"),
    [
        (torch.ones(2, 4), torch.ones(2, 4, dtype=torch.bool), None, r"^weights: expected \(T, E, O\) or \(G, T, E, O\)"),
        (torch.ones(1, 2, 4), torch.ones(1, 2, 3, dtype=torch.bool), None, r"^alive: .*\(1, 2, 4\), got \(1, 2, 3\)"),
        (torch.ones(1, 2, 4), torch.ones(1, 2, 4), None, "^alive: expected a bool"),
        (torch.ones(1, 2, 4), torch.ones(1, 2, 4, dtype=torch.bool, device="meta"), None, "^alive: expected a bool CPU"),
        (torch.ones(1, 2, 4), ALIVE, torch.ones(1, 3), r"^edges: expected \(1, 2\), got \(1, 3\)"),
        (torch.ones(0, 1, 2, 4), torch.ones(0, 1, 2, 4, dtype=torch.bool), None, "^weights: nothing in"),
    ],
)
def test_wrong_shapes_are_named(weights, alive, edges, message):
    with pytest.raises(ValueError, match=message):
        Mixture(weights, alive, edges)
