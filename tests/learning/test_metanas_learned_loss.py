"""Learned losses against the golden numbers, and their proxies against plain automatic differentiation."""

from __future__ import annotations

from typing import Any

import metanas_golden as recipe
import pytest
import torch
from torch.nn import functional as F

from engine.learning.architecture_task import Supports, TaskRule
from engine.learning.learned_loss import (
    FeedForwardLoss,
    LossNetwork,
    RecurrentLoss,
    cosine_to_cross_entropy,
    descent_tangent,
    initial,
    inner_product_proxy,
    loss_surface,
    mse_proxy,
)
from engine.learning.task_networks import ReferenceNetwork
from engine.learning.unrolled import meta_gradient
from engine.runs.streams import stream
from engine.spaces.metanas import Architecture, metanas_supernet
from engine.spaces.supernet import initialise

CASES = sorted(recipe.golden()["lamanas_loss_nets"]["cases"])
NETWORKS: dict[str, Any] = {"NNL": FeedForwardLoss, "RNNL": RecurrentLoss}


def filled(kind: str, residual: bool) -> tuple[LossNetwork, torch.Tensor]:
    network = NETWORKS[kind](6, residual=residual)
    order = recipe.golden()["lamanas_loss_nets"]["param_order"][kind]
    assert [[name, list(shape)] for name, shape in network.layout.shapes] == order
    parts = {}
    for t, (name, shape) in enumerate(network.layout.shapes):
        scale = shape[1] ** -0.5 if len(shape) == 2 else 0.1
        parts[name] = recipe.ramp(shape, 0.7, 1.3 * (t + 1), torch.sin, scale).float()
    return network, network.layout.pack(parts)


@pytest.mark.parametrize("case", CASES)
def test_golden_losses(case: str) -> None:
    kind, residual, labels = case.split("_")
    wanted = recipe.golden()["lamanas_loss_nets"]["cases"][case]
    network, phi = filled(kind, residual == "residual")
    z = recipe.ramp((6, 6), 0.37, 0, torch.sin, 2).float().requires_grad_(True)
    y = torch.arange(6) if labels == "a" else torch.arange(6) % 2
    phi.requires_grad_(True)
    loss = network(phi, z, y)
    assert loss.item() == pytest.approx(wanted["loss"], abs=2e-6)
    assert F.cross_entropy(z, y).item() == pytest.approx(wanted["ce"], rel=1e-6)
    (slope,) = torch.autograd.grad(loss, z, retain_graph=True)
    expected = torch.tensor(wanted["dlogits"])
    torch.testing.assert_close(slope, expected, rtol=2e-4, atol=2e-6 * float(expected.abs().max()) + 1e-9)
    (gradient,) = torch.autograd.grad(mse_proxy(network, phi, z, y), phi)
    assert float(gradient.norm()) == pytest.approx(wanted["mse_phi_grad_norm"], rel=1e-4)


def test_published_sizes_and_orthogonal_layers() -> None:
    assert FeedForwardLoss(20, residual=True).layout.size == 1_473
    assert RecurrentLoss(20, residual=True).layout.size == 169_921
    network = RecurrentLoss(6, residual=False)
    parts = network.layout.views(initial(network, stream(0, "loss")))
    torch.testing.assert_close(parts["fc1.weight"] @ parts["fc1.weight"].T, torch.eye(32), rtol=0, atol=1e-5)
    assert float(parts["lstm.bias_ih_l3"].abs().max()) <= 64**-0.5


def classifier() -> tuple[ReferenceNetwork, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    reference = metanas_supernet(cells=2, channels=2, outputs=3, channels_in=1)
    initialise(reference, stream(0, "weights"))
    reference.double()
    model = ReferenceNetwork(reference, Architecture())
    alphas = 0.1 * torch.randn(model.architecture.size, generator=stream(0, "alphas"), dtype=torch.float64)
    x = torch.randn(6, 1, 6, 6, generator=stream(0, "images"), dtype=torch.float64)
    weights = model.stacked.pack(dict(reference.named_parameters()))
    return model, weights.requires_grad_(True), alphas.requires_grad_(True), x, torch.arange(6).remainder(3)


@pytest.mark.parametrize("kind", ["NNL", "RNNL"])
def test_inner_product_is_equation_8(kind: str) -> None:
    """Value and gradient to phi against inner products of gradients that are differentiated as they stand."""
    model, weights, alphas, x, y = classifier()
    network = NETWORKS[kind](3, residual=True)
    phi = initial(network, stream(3, "loss")).double().requires_grad_(True)
    logits = model(weights, alphas, x, 1.0)
    tangent = descent_tangent(logits, y, [weights, alphas], [0.3, 0.7])
    found = inner_product_proxy(network, phi, logits, y, tangent)
    logits = model(weights, alphas, x, 1.0)
    learned = torch.autograd.grad(network(phi, logits, y), [weights, alphas], create_graph=True)
    gold = torch.autograd.grad(F.cross_entropy(logits, y), [weights, alphas], retain_graph=True)
    products = sum(r * (a * b.detach()).sum() for r, a, b in zip((0.3, 0.7), learned, gold, strict=True))
    plain = F.cross_entropy(logits, y).detach() - products
    assert found.item() == pytest.approx(plain.item(), rel=1e-9)
    gradients = [torch.autograd.grad(value, phi)[0] for value in (found, plain)]
    assert float(gradients[0].abs().max()) > 0
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-12)


def test_tangent_of_a_settled_network_needs_its_living_operations_only() -> None:
    model, weights, alphas, x, y = classifier()
    model = ReferenceNetwork(model.module, Architecture(threshold=0.05))
    settled = (100 * alphas.detach()).requires_grad_(True)
    alive = model.active(settled, 1.0)
    assert int(alive.sum()) < alive.numel() / 3
    tangents = [
        descent_tangent(model(weights, settled, x, 1.0, alive=only), y, [weights, settled], [0.3, 0.7]) for only in (None, alive)
    ]
    torch.testing.assert_close(*tangents, rtol=1e-9, atol=1e-12)


def test_equation_6_is_the_first_order_of_equation_5() -> None:
    """L_val after a step is H - lambda <..> - xi <..> up to terms of second order in the rates."""
    model, weights, alphas, x, y = classifier()
    network = FeedForwardLoss(3, residual=True)
    phi = initial(network, stream(3, "loss")).double()
    errors = []
    for scale in (1e-3, 1e-4):
        rates = (0.3 * scale, 0.7 * scale)
        logits = model(weights, alphas, x, 1.0)
        tangent = descent_tangent(logits, y, [weights, alphas], rates)
        first_order = inner_product_proxy(network, phi, logits, y, tangent)
        step = torch.autograd.grad(network(phi, model(weights, alphas, x, 1.0), y), [weights, alphas])
        moved = model(weights - rates[0] * step[0], alphas - rates[1] * step[1], x, 1.0)
        errors.append(abs(float(F.cross_entropy(moved, y).detach() - first_order.detach())))
    assert errors[1] < 2e-2 * errors[0]


def test_algorithm_1_reaches_the_loss_network() -> None:
    """The meta-gradient to phi through the inner steps, along one direction, against a finite difference."""
    model, weights, alphas, x, y = classifier()
    network = FeedForwardLoss(3, residual=True)
    phi = initial(network, stream(3, "loss")).double().requires_grad_(True)
    rule = TaskRule(steps=2, architecture_steps=2, rate=0.05, architecture_rate=0.5)
    supports = Supports(x[None], y[None], lambda *_: None, lambda *_: stream(0, "unused"))
    query = torch.randn(1, 6, 1, 6, 6, generator=stream(1, "images"), dtype=torch.float64), y[None]

    def run(value: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        return meta_gradient(
            model, (weights, alphas), supports, query, rule, others=[value], loss=lambda z, t: network(value, z, t)
        )

    gradients, _ = run(phi)
    direction = torch.randn(phi.shape, generator=stream(1, "direction"), dtype=torch.float64)
    ends = [float(run((phi.detach() + sign * 1e-6 * direction).requires_grad_(True))[1]) for sign in (1, -1)]
    assert float((gradients[2] * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-3)


def test_random_recurrent_losses_are_cross_entropy_up_to_sign() -> None:
    """What the note measured of the published code: the cosine is +-1, and the seed decides which."""
    z = torch.randn(20, 20, generator=stream(0, "logits"))
    y = torch.arange(20)
    network = RecurrentLoss(20, residual=True)
    cosines = [float(cosine_to_cross_entropy(network, initial(network, stream(s, "loss")), z, y)) for s in range(20)]
    assert all(abs(c) > 0.95 for c in cosines)
    assert 0 < sum(c > 0 for c in cosines) < 20


def test_inner_product_turns_a_loss_that_ascends_cross_entropy() -> None:
    """A random network whose gradient points the wrong way is mended by steps on the proxy of Eq. 8."""
    z = torch.randn(20, 5, generator=stream(0, "logits"))
    y = torch.arange(20).remainder(5)
    network = FeedForwardLoss(5, residual=True)
    drawn = (initial(network, stream(seed, "loss")) for seed in range(50))
    phi = next(p for p in drawn if float(cosine_to_cross_entropy(network, p, z, y)) < 0).requires_grad_(True)
    gold = z.clone().requires_grad_(True)
    (tangent,) = torch.autograd.grad(F.cross_entropy(gold, y), gold)
    optimiser = torch.optim.Adam([phi], 0.01)
    for _ in range(40):
        optimiser.zero_grad()
        inner_product_proxy(network, phi, z, y, tangent).backward()
        optimiser.step()
    assert float(cosine_to_cross_entropy(network, phi.detach(), z, y)) > 0.5


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("residual", [True, False])
def test_the_surface_is_the_loss_of_every_point(kind: str, residual: bool) -> None:
    """One call at a time of a network of two classes whose first layer is the projected one."""
    network = NETWORKS[kind](6, residual=residual)
    phi = 0.3 * torch.randn(network.layout.size, generator=stream(0, "loss"))
    found = loss_surface(network, phi, side=4, reach=3.0)
    assert found.shape == (2, 4, 4)
    small = NETWORKS[kind](2, residual=residual)
    parts = dict(network.layout.views(phi))
    weight = parts[f"{network.first}.weight"]
    directions = torch.linalg.eigh(torch.cov(weight.double().T)).eigenvectors.flip(1)
    signs = directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    parts[f"{network.first}.weight"] = (weight.double() @ (directions * signs)[:, :3]).float()
    projected = small.layout.pack(parts)
    points = torch.linspace(-3, 3, 4)
    for label in range(2):
        for i in range(4):
            for j in range(4):
                z = torch.stack([points[j], points[i]])[None]
                assert float(small(projected, z, torch.tensor([label]))) == pytest.approx(float(found[label, i, j]), abs=1e-4)
