from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import ConfigurationError
from engine.scoring.ablations import KernelPair, KernelScorer, removal_slopes
from engine.scoring.first_order import slope
from engine.scoring.kernels import gram
from engine.scoring.meta import metantk
from engine.spaces import cells, macro, operations
from engine.spaces.mixture import Mixture, full, uniform, without
from engine.spaces.space import FEW_SHOT, NAS_BENCH_201
from engine.spaces.supernet import Supernet, initialise

TASKS, QUERY, SUPPORT = 2, 3, 3


def smooth(x: Tensor, alive: Tensor | None = None, readers: int = 1) -> Tensor:
    return F.softplus(4 * x) / 4


@pytest.fixture
def without_kinks(monkeypatch):
    for module in (cells, macro, operations):
        monkeypatch.setattr(module, "gated_relu", smooth)


def meta(pair: KernelPair, kernel: str = "maml") -> Tensor:
    nngp = pair.nngp if kernel == "anil" else None
    shape = {"tasks": TASKS, "query": QUERY, "support": SUPPORT}
    return metantk(pair.theta, **shape, kernel=kernel, nngp=nngp, time=0.02, reg=1e-2)


def scorer(space, condition, **options) -> KernelScorer:
    found = KernelScorer(
        space, cells=2, channels=8, outputs=3, channels_in=1, seed=0, condition=condition, dtype=torch.float64, **options
    )
    found.draw((0,), (0,))
    return found


def images(size: int = 5) -> Tensor:
    return torch.randn(TASKS * (QUERY + SUPPORT), 1, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("space", "kernel"), [(FEW_SHOT, "maml"), *((NAS_BENCH_201, kernel) for kernel in ("maml", "anil", "ntk"))]
)
def test_slopes_are_finite_differences(without_kinks, space, kernel):
    """Along random directions and along removals, of a smooth network in float64."""
    found = scorer(space, (lambda pair: pair.theta) if kernel == "ntk" else lambda pair: meta(pair, kernel))
    alive, x = full(space), images()
    weights = uniform(alive, dtype=torch.float64).weights

    def log_condition(w: Tensor) -> float:
        model = found.model
        mixture = Mixture(w.unsqueeze(0), alive.unsqueeze(0))
        parts = gram(
            model, (x, mixture), lambda name, _: {"classifier.weight": "head", "classifier.bias": None}.get(name, "body")
        )
        pair = KernelPair((parts["body"] + parts["head"]).unsqueeze(0), parts["head"].unsqueeze(0))
        eigenvalues = torch.linalg.eigvalsh(found.condition(pair))[0]
        return float((eigenvalues[-1] / eigenvalues[0]).log())

    result = found.slopes(alive, x)
    assert result.score.value == pytest.approx(math.exp(log_condition(weights)), rel=1e-9)
    assert result.gradient is not None
    generator, step = torch.Generator().manual_seed(1), 1e-6
    directions = [torch.randn(weights.shape, generator=generator, dtype=torch.float64) * alive for _ in range(2)]
    removed = [(0, 0, 1), (len(alive) - 1, 3, 2)]
    directions += [uniform(without(alive, [c])[0], dtype=torch.float64).weights - weights for c in removed]
    exact = [float((result.gradient * d).sum()) for d in directions]
    numeric = [(log_condition(weights + step * d) - log_condition(weights - step * d)) / (2 * step) for d in directions]
    assert exact == pytest.approx(numeric, rel=1e-4, abs=1e-6)
    assert removal_slopes(result.gradient, alive, removed) == pytest.approx(exact[2:], rel=1e-9)


def test_kernels_are_those_of_the_streamed_pass():
    found = scorer(FEW_SHOT, meta)
    alive, x = full(FEW_SHOT), images()
    assert found.slopes(alive, x).score.value == pytest.approx(found.scores(found.kernels(alive.unsqueeze(0), x))[0].value)


def test_layers_that_nothing_reads_do_not_count():
    """An edge into a node that no edge leaves: its convolution is computed, and has no gradient."""
    found = scorer(NAS_BENCH_201, lambda pair: pair.theta)
    alive = full(NAS_BENCH_201)
    alive[0] = False
    alive[0, 0, 3] = alive[0, 3, 1] = True  # 0->1 by a convolution, 0->3 by a skip
    result = found.slopes(alive, images())
    assert result.score.value == pytest.approx(found.scores(found.kernels(alive.unsqueeze(0), images()))[0].value)
    assert result.gradient is not None
    assert float(result.gradient[0, 0, 3]) == 0.0
    assert float(result.gradient[0, 3, 1]) != 0.0


def test_an_edge_with_one_operation_loses_all():
    gradient = torch.arange(6.0, dtype=torch.float64).view(1, 2, 3)
    alive = torch.tensor([[[True, False, True], [False, True, False]]])
    # two operations: one goes to zero and the other from a half to one; one operation: it goes to zero
    assert removal_slopes(gradient, alive, [(0, 0, 0), (0, 0, 2), (0, 1, 1)]) == [(2 - 0) / 2, (0 - 2) / 2, -4.0]


def test_a_broken_score_has_no_slope():
    found = scorer(FEW_SHOT, lambda pair: pair.theta * 0)
    result = found.slopes(full(FEW_SHOT), images())
    assert (result.score.status, result.gradient) == ("singular", None)


class Scaled(nn.Module):
    """Its scale is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 2, bias=False), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


@pytest.mark.parametrize(("model", "name"), [(Scaled(), "scale"), (Twice(), "layer.weight")])
def test_what_the_pass_does_not_know_is_refused(model, name):
    weight = torch.ones(1, requires_grad=True)
    with pytest.raises(ConfigurationError, match=f"--screen: {name} is used more than once, or by something else"):
        slope(model, lambda: model(torch.ones(3, 4) * weight), weight, lambda *_: "all", lambda kernels: kernels["all"].sum())


def test_the_model_is_not_touched():
    net = Supernet(FEW_SHOT, cells=1, channels=2, outputs=2)
    initialise(net, torch.Generator().manual_seed(0))
    before = {name: p.clone() for name, p in net.named_parameters()}
    weights = uniform(full(FEW_SHOT)).weights.requires_grad_()
    x = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    names: list[str] = []

    def assign(name: str, parameter: nn.Parameter) -> str | None:
        names.append(name)
        return None if name == "classifier.bias" else "all"

    found = slope(net, lambda: net(x, Mixture(weights, full(FEW_SHOT))), weights, assign, lambda k: k["all"].trace())
    assert bool(found.gradient[full(FEW_SHOT)].any())
    assert not bool(found.gradient[~full(FEW_SHOT)].any())
    assert all(torch.equal(before[name], p) and p.grad is None and p.requires_grad for name, p in net.named_parameters())
    assert names == list(before)
