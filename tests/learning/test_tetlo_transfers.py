"""Knowledge transfers against their formulas, and what they draw."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.errors import ConfigurationError
from engine.learning.similarity import draw_triples
from engine.learning.transfers import TRANSFERS


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(x: Tensor, y: Tensor) -> float:
    return float(x @ y / (x.norm() * y.norm()))


def chance(c: float) -> float:
    return 1 / (1 + math.exp(-c / 0.5))


def by_hand(name: str, main: Tensor, auxiliary: Tensor, place: list[int]) -> float:
    def c(features: Tensor, i: int, j: int) -> float:
        return cosine(features[place[i]], features[place[j]])

    if name in ("qrs", "ts"):
        other = (2, 3) if name == "qrs" else (0, 2)
        by_main, by_auxiliary = (c(features, 0, 1) - c(features, *other) for features in (main, auxiliary))
        return max(0.0, -by_main * by_auxiliary)
    if name == "ps":
        wanted, own = chance(c(main, 0, 1)), chance(c(auxiliary, 0, 1))
        return -wanted * math.log(own) - (1 - wanted) * math.log(1 - own)
    m, a = main[place[0]], auxiliary[place[0]]
    if name == "pl":
        p, q = (row.exp() / row.exp().sum() for row in (m, a))
        return sum(float(x * (x / y).log()) for x, y in zip(p, q, strict=True))
    return sum((float(x) - float(y)) ** 2 for x, y in zip(m, a, strict=True))


@pytest.mark.parametrize("name", TRANSFERS)
def test_is_its_formula_and_reaches_both_models(name: str) -> None:
    transfer = TRANSFERS[name]
    main, auxiliary = noise(6, 5).requires_grad_(), noise(6, 5, seed=1).requires_grad_()
    places = transfer.draw(6, 15, torch.Generator().manual_seed(3))
    assert places.shape == (transfer.members, 6 if transfer.members == 1 else 15)
    each = [by_hand(name, main.detach(), auxiliary.detach(), place) for place in places.T.tolist()]
    total = transfer(main, auxiliary, places)
    assert float(total.detach()) == pytest.approx(sum(each), rel=1e-9)
    assert float(transfer(main, auxiliary, places, mean=True).detach()) == pytest.approx(sum(each) / len(each), rel=1e-9)
    of_main, of_auxiliary = torch.autograd.grad(total, (main, auxiliary), create_graph=True)
    assert bool(of_main.any())
    assert bool(of_auxiliary.any())
    (mixed,) = torch.autograd.grad((of_auxiliary * noise(6, 5, seed=2)).sum(), main)
    assert bool(mixed.any()), "what TETLO's third term is made of"


@pytest.mark.parametrize("name", ["qrs", "ts", "pl", "regembed"])
def test_agreement_costs_nothing(name: str) -> None:
    features = noise(6, 5)
    transfer = TRANSFERS[name]
    assert float(transfer(features, features, transfer.draw(6, 15, torch.Generator()))) == 0


@given(st.integers(3, 9), st.integers(1, 40), st.integers(0, 1000))
def test_triples_are_different_images(images: int, count: int, seed: int) -> None:
    x, y, z = draw_triples(images, count, torch.Generator().manual_seed(seed))
    assert bool((x != y).all() and (y != z).all() and (x != z).all())
    assert 0 <= int(torch.stack([x, y, z]).min()) <= int(torch.stack([x, y, z]).max()) < images


def test_triples_are_drawn_evenly() -> None:
    found = draw_triples(4, 12_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(found[0] * 16 + found[1] * 4 + found[2], minlength=64)
    assert int((counts > 0).sum()) == 24
    assert 400 < int(counts[counts > 0].min()) <= int(counts.max()) < 600


def test_batch_with_too_few_pairs() -> None:
    with pytest.raises(ConfigurationError, match="10 pairs, fewer than 11"):
        TRANSFERS["ps"].draw(5, 11, torch.Generator())
