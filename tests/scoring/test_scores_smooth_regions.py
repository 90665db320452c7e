"""The smooth surrogate of linear regions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.scoring import smooth_regions as module
from engine.scoring.ablations import RegionScorer
from engine.scoring.regions import linear_regions
from engine.scoring.smooth_regions import smooth_regions
from engine.spaces.mixture import Mixture, full, uniform
from engine.spaces.space import FEW_SHOT

DRAWN = torch.Generator().manual_seed(0)
NET = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU6())
X = torch.randn(40, 2, generator=DRAWN)


def test_sharpened_it_is_the_count(monkeypatch):
    monkeypatch.setattr(module, "WIDTH", 1e-7)
    monkeypatch.setattr(module, "SHARPNESS", 60.0)
    exact = linear_regions(NET, [X[:25], X[25:]])
    assert 1 < exact.value < 40
    assert float(smooth_regions(NET, [X[:25], X[25:]]).detach()) == pytest.approx(exact.value, abs=1e-4)


def test_copies_count_once_and_strangers_each():
    same = float(smooth_regions(NET, [X[:1].repeat(6, 1)]).detach())
    assert same == pytest.approx(1.0)
    assert same < float(smooth_regions(NET, [X]).detach()) < 40


def test_slopes_are_those_of_the_surrogate():
    scorer = RegionScorer(FEW_SHOT, seed=0)
    scorer.draw((0,))
    patches = [torch.randn(12, 1, 3, 3, generator=DRAWN)]
    alive = full(FEW_SHOT)
    found = scorer.slopes(alive, patches)
    assert found.score == scorer.scores(alive.unsqueeze(0), patches)[0]
    scorer.model.double()
    weights, patches = uniform(alive, dtype=torch.float64).weights, [patches[0].double()]
    step = 1e-6 * torch.randn(weights.shape, generator=DRAWN, dtype=torch.float64) * alive

    def surrogate(w):
        return float(smooth_regions(lambda x: scorer.model(x, Mixture(w, alive)), patches).detach().log())

    numeric = surrogate(weights + step) - surrogate(weights - step)
    assert float((found.gradient * step).sum()) * 2 == pytest.approx(numeric, rel=1e-2)
