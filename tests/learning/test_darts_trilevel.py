"""The three-level hypergradient against the golden blocks, a scalar closed form, and the definition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import darts_recipe as recipe
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.errors import ConfigurationError
from engine.learning.bilevel import FlatNetwork
from engine.learning.hypergradient import Step
from engine.learning.similarity import draw_quadruples, quadruple_similarity
from engine.learning.trilevel import Trilevel, hypergradient
from engine.spaces import operations
from engine.spaces.darts_supernet import SoftmaxRelaxation, darts_encoder
from engine.spaces.space import DARTS

CASE = recipe.golden()["cases"]["tetlo_smooth_C4_L3_E3_B6_S8"]


@pytest.fixture
def smooth(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("engine.spaces.operations", "engine.spaces.cells", "engine.spaces.macro"):
        monkeypatch.setattr(f"{place}.gated_relu", lambda x, *_: F.silu(x))

    class Average(operations.Pool):
        def __init__(self, kind: str, *rest: Any) -> None:
            super().__init__("average", *rest)

    monkeypatch.setattr(operations, "Pool", Average)


def golden_levels(gamma: float) -> tuple[Trilevel, Tensor, Tensor]:
    networks = []
    for shift_from in (None, 2):
        encoder = darts_encoder(DARTS, cells=3, of=3, channels=4, outputs=10).double()
        recipe.fill(encoder.supernet, shift_from)
        networks.append(FlatNetwork(encoder))
    main, auxiliary = networks
    relaxation = SoftmaxRelaxation(DARTS)
    quadruples = torch.tensor(CASE["quadruples"])
    data = [recipe.batch(6, 8, offset) for offset in (1, 2, 3, 4)]  # main train, main val, auxiliary train, auxiliary val
    assert [y.tolist() for _, y in data] == CASE["labels"]

    def cross_entropy(network: Any, which: int) -> Any:
        x, y = data[which]
        return lambda w, a: F.cross_entropy(network(w, x, relaxation(a))[1], y)

    def transfer(w: Tensor, a: Tensor, f: Tensor) -> Tensor:
        features, logits = auxiliary(w, data[2][0], relaxation(a))
        return F.cross_entropy(logits, data[2][1]) + 0.1 * quadruple_similarity(f, features, quadruples)

    levels = Trilevel(
        cross_entropy(main, 0),
        lambda w, a: main(w, data[2][0], relaxation(a))[0],
        transfer,
        cross_entropy(main, 1),
        cross_entropy(auxiliary, 3),
        gamma,
    )
    return levels, main.start, auxiliary.start


def close(found: Tensor, wanted: dict[str, Any], tolerance: float) -> None:
    expected = torch.tensor([wanted["normal"], wanted["reduce"]], dtype=torch.float64)
    assert float((found - expected).norm() / expected.norm()) < tolerance


@pytest.mark.usefixtures("smooth")
def test_golden_blocks() -> None:
    levels, w_m, w_a = golden_levels(1.0)
    alphas, step = recipe.alphas(), Step(0.025)
    found = hypergradient(levels, (w_m, alphas, step), (w_a, alphas, step))
    without = hypergradient(replace(levels, gamma=0.0), (w_m, alphas, step), (w_a, alphas, step))
    close(without.main, CASE["dLm_dM"], 1e-7)
    close(found.main - without.main, CASE["gamma_dLa_dM"], 1e-6)
    close(found.auxiliary, CASE["gamma_dLa_dA"], 1e-7)
    close(found.main + found.auxiliary, CASE["total_tied"], 1e-7)
    assert float(found.main_validation) == pytest.approx(CASE["L_m_val"], rel=1e-9)
    assert float(found.auxiliary_validation) == pytest.approx(CASE["L_a_val"], rel=1e-9)
    assert float(found.transfer) == pytest.approx(CASE["O"], rel=1e-9)
    chain = hypergradient(levels, (w_m, alphas, step), (w_a, alphas, step), hessian="finite-difference")
    close(chain.main + chain.auxiliary, CASE["fd_chain_r=0.01_total"], 1e-7)
    levels = replace(levels, through_step=False)
    held = hypergradient(levels, (w_m, alphas, step), (w_a, alphas, step))
    none = hypergradient(replace(levels, gamma=0.0), (w_m, alphas, step), (w_a, alphas, step))
    torch.testing.assert_close(held.main - none.main, found.main - without.main)
    torch.testing.assert_close(held.auxiliary, found.auxiliary)


def toy(matrix: Tensor) -> Trilevel:
    return Trilevel(
        lambda w, a: (w @ matrix @ a).sin() + (w * w).sum(),
        lambda w, a: torch.outer(w, a).sin(),
        lambda w, a, f: (w @ matrix @ a).cos() + (f.sum(1) * w).sum() ** 2,
        lambda w, a: ((w - 1) ** 3).sum() + (a * a).sum(),
        lambda w, a: (w**3).sum() + a.sum() ** 2,
        gamma=0.7,
    )


@pytest.mark.parametrize("hessian", ["exact", "finite-difference"])
def test_is_the_derivative_of_the_third_level(hessian: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    w_m, w_a = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2))
    m, a = (torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    levels, step_m, step_a = toy(matrix), Step(0.1, 0.01), Step(0.2, 0.02)
    p, q = w_m.clone().requires_grad_(), w_a.clone().requires_grad_()
    moved_m = p - 0.1 * (torch.autograd.grad(levels.main_training(p, m), p, create_graph=True)[0] + 0.01 * p)
    o = levels.transfer(q, a, levels.main_features(moved_m, m))
    moved_a = q - 0.2 * (torch.autograd.grad(o, q, create_graph=True)[0] + 0.02 * q)
    third = levels.main_validation(moved_m, m) + 0.7 * levels.auxiliary_validation(moved_a, a)
    wanted = torch.autograd.grad(third, (m, a))
    found = hypergradient(levels, (w_m, m.detach(), step_m), (w_a, a.detach(), step_a), hessian=hessian, width=1e-4)
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if hessian == "exact" else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(found[:2], wanted, **tolerance)


def test_similarity_counts_disagreements_only() -> None:
    main = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, -1.0]])
    quadruples = torch.tensor([[0], [1], [0], [2]])  # 0 is more like 1 than like 2
    assert float(quadruple_similarity(main, 3 * main, quadruples)) == 0
    turned = main[[0, 2, 1, 3]]
    expected = (0.995037 - 0) ** 2
    assert float(quadruple_similarity(main, turned, quadruples)) == pytest.approx(expected, rel=1e-4)
    twice = quadruples.repeat(1, 2)
    assert float(quadruple_similarity(main, turned, twice)) == pytest.approx(2 * expected, rel=1e-4)
    assert float(quadruple_similarity(main, turned, twice, mean=True)) == pytest.approx(expected, rel=1e-4)


def test_golden_similarity() -> None:
    quadruples = torch.tensor(CASE["quadruples"])
    assert quadruples.shape == (4, CASE["config"]["K"])
    assert bool((quadruples[0] != quadruples[1]).all())


def test_quadruples_are_pairs_of_different_images() -> None:
    found = draw_quadruples(5, 10, torch.Generator().manual_seed(0))
    assert found.shape == (4, 10)
    many = torch.cat([draw_quadruples(5, 10, torch.Generator().manual_seed(s)) for s in range(60)], 1)
    assert bool((many[0] != many[1]).all())
    assert bool((many[2] != many[3]).all())
    assert {*many[1].tolist()} == {0, 1, 2, 3, 4}
    with pytest.raises(ConfigurationError, match="10 pairs, fewer than 300"):
        draw_quadruples(5, 300, torch.Generator())
