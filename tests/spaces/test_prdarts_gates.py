"""PR-DARTS's gates: their distribution, the contest for active places, regularisers in closed form, pruning."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.spaces.darts import searched_space
from engine.spaces.darts_supernet import DartsSupernet
from engine.spaces.gates import GateDraw, GateGroups, GateRelaxation
from engine.spaces.mixture import Mixture
from engine.spaces.space import DARTS

NONE, MAX, AVERAGE, SKIP, SEP3, SEP5, DIL3, DIL5 = range(8)


def draw(seed: int, chance: float = 0.0) -> GateDraw:
    return GateDraw.of((2, 14, 8), chance, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_gates_open_with_their_activation_probability(tau: float) -> None:
    relaxation, beta = GateRelaxation(DARTS), torch.linspace(-2, 2, 2 * 14 * 8, dtype=torch.float64).view(2, 14, 8)
    open_gates = sum((relaxation.gates(beta, tau, draw(seed).uniform) > 0).double() for seed in range(400)) / 400
    assert float((open_gates - relaxation.probabilities(beta, tau)).abs().mean()) < 0.03


@given(st.integers(0, 10_000), st.integers(1, 8), st.floats(0, 0.9))
@settings(max_examples=30, deadline=None)
def test_so_many_operations_are_chosen(seed: int, active: int, chance: float) -> None:
    relaxation = GateRelaxation(DARTS, active=active)
    beta = torch.randn(2, 14, 8, generator=torch.Generator().manual_seed(seed))
    drawn = draw(seed, chance)
    gates = relaxation.gates(beta, 0.5, drawn.uniform)
    chosen = relaxation.chosen(gates, drawn)
    assert chosen.sum(-1).unique().tolist() == [active]
    contest = gates.double() - drawn.dropped.double()
    least = torch.where(chosen, contest, torch.inf).amin(-1)
    most = torch.where(chosen, -torch.inf, contest).amax(-1)
    assert bool((least >= most).all())


def test_ties_are_broken_at_random_by_address() -> None:
    relaxation, ones = GateRelaxation(DARTS), torch.ones(2, 14, 8)
    chosen = torch.stack([relaxation.chosen(ones, draw(seed)) for seed in range(400)]).double().mean((0, 1, 2))
    assert chosen.tolist() == pytest.approx([0.25] * 8, abs=0.03)
    assert torch.equal(relaxation.chosen(ones, draw(3)), relaxation.chosen(ones, draw(3)))


def test_chosen_operations_weigh_exactly_one_and_have_the_gates_gradient() -> None:
    relaxation, drawn = GateRelaxation(DARTS), draw(5, 0.4)
    beta = torch.randn(2, 14, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    mixture = relaxation(beta, 2.0, drawn)
    assert mixture.weights.unique().tolist() == [0, 1]
    assert torch.equal(mixture.weights == 1, mixture.alive)
    cotangent = torch.randn(2, 14, 8, dtype=torch.float64)
    (found,) = torch.autograd.grad(mixture.weights, beta, cotangent)
    gates = relaxation.gates(beta, 2.0, drawn.uniform)
    (wanted,) = torch.autograd.grad(gates, beta, torch.where(mixture.alive, cotangent, 0))
    torch.testing.assert_close(found, wanted)
    assert bool((found != 0).any())


def test_restricted_spaces_choose_among_what_edges_carry() -> None:
    space = searched_space("darts-s2")
    relaxation = GateRelaxation(space, active=3)
    chosen = relaxation.chosen(torch.ones(2, 14, 8), draw(0, 0.9))
    assert torch.equal(chosen, relaxation.alive)
    model = DartsSupernet(space, cells=3, channels=2, outputs=3, pool_norms=False, tail=True)
    assert model(torch.randn(2, 3, 8, 8), relaxation(torch.zeros(2, 14, 8), 1.0, draw(0))).shape == (2, 3)


def test_supernet_has_no_norms_behind_pools_but_an_affine_tail() -> None:
    model = DartsSupernet(DARTS, cells=6, channels=4, outputs=10, pool_norms=False, tail=True)
    assert model.space.operations == DARTS.operations
    assert [plan.plan.channels for plan in model.cells] == [4, 4, 8, 8, 16, 16]  # type: ignore[union-attr]
    assert model.tail_norm.weight.shape == (64,)
    only = torch.zeros(2, 14, 8, dtype=torch.bool)
    only[..., AVERAGE] = True
    x = torch.randn(2, 3, 8, 8)
    assert model(x, Mixture(only.float(), only)).shape == (2, 10)


def closed_form() -> tuple[torch.Tensor, GateGroups]:
    p = torch.zeros(2, 14, 8)
    p[0, :, SKIP] = 0.5
    p[1, :, SKIP] = 0.3
    p[:, :, MAX] = 0.9
    p[:, :, NONE] = 0.7
    p[:, :, SEP3] = 0.4
    p[:, :, DIL5] = 0.2
    return p, GateGroups(DARTS)


def test_regularisers_of_the_paper() -> None:
    p, groups = closed_form()
    assert float(groups.skip_sparsity(p)) == pytest.approx(0.4)
    assert float(groups.group_sparsity(p)) == pytest.approx((0.9 + 0.7 + 0.4 + 0.2) / 7)
    assert [DARTS.edges[e] for e in groups.chain] == [(1, 2), (2, 3), (3, 4), (4, 5)]
    assert float(groups.path_depth(p)) == pytest.approx(0.6**4)


def test_regularisers_as_released() -> None:
    p, groups = closed_form()
    chosen = torch.zeros(2, 14, 8, dtype=torch.bool)
    chosen[0, 0, SKIP] = chosen[1, 3, SKIP] = True
    chosen[:, 1, MAX] = chosen[:, 1, SEP3] = chosen[:, 4, DIL5] = chosen[:, 4, NONE] = True
    skip, others, path = groups.released(p, chosen)
    assert float(skip) == pytest.approx(0.4 - 0.2)
    assert float(others) == pytest.approx((0.4 + 0.2 + 0.7) / 3 - 0.2 + 0.9 - 0.2)
    # Edges 1 (1 -> 2) and 4 (2 -> 3) are on the chain; the other two have no chosen convolution.
    assert float(path) == pytest.approx(0.4 * 0.2)
    nothing = torch.zeros_like(chosen)
    assert [float(value) for value in groups.released(p, nothing)] == [0, 0, 1]


def test_pruning_takes_pairs_which_may_share_an_edge() -> None:
    beta = torch.zeros(2, 14, 8)
    beta[0, 3, SEP3], beta[0, 3, DIL3], beta[0, 2, SKIP] = 3.0, 2.0, 1.0
    beta[0, :, NONE] = 9.0
    relaxation = GateRelaxation(DARTS, tau=0.5)
    found = relaxation.genotype(beta)
    into_three = [c for c in found["normal"].connections if c.target == 3]
    assert into_three == [(1, 3, "dil_conv_3x3"), (1, 3, "sep_conv_3x3")]
    DARTS.check(found)
    assert float(relaxation.strengths(beta)[0, 3, SEP3]) == pytest.approx(
        1 / (1 + math.exp(-3 + 0.5 * math.log(0.1 / 1.1))), rel=1e-5
    )


def test_released_ranking_is_a_softmax_over_each_edge() -> None:
    """An edge whose "none" is strong loses by the softmax, and not by the activation probability."""
    beta = torch.full((2, 14, 8), -3.0)
    beta[0, 2, SEP3], beta[0, 2, NONE] = 2.0, 6.0
    beta[0, 3, SEP5] = beta[0, 4, SEP5] = 1.0
    by = {
        released: [
            c.source for c in GateRelaxation(DARTS, released=released).genotype(beta)["normal"].connections if c.target == 3
        ]
        for released in (False, True)
    }
    assert by == {False: [0, 1], True: [1, 2]}
