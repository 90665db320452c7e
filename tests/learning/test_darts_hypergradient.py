"""Hypergradients against the golden numbers, a closed form, and the definition of the derivative."""

from __future__ import annotations

from typing import Any

import darts_recipe as recipe
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.learning.bilevel import Adam, Bilevel, FlatNetwork, Sgd, cosine
from engine.learning.hypergradient import Loss, Step, finite_difference, first_order, mixed_product, second_order
from engine.spaces import operations
from engine.spaces.darts_supernet import SoftmaxRelaxation, darts_supernet
from engine.spaces.space import DARTS

TINY = "darts_tiny_C4_L5_B4_S16"
SMOOTH = "darts_mini_smooth_C4_L3_B2_S8"


def golden_losses(name: str) -> tuple[dict[str, Any], FlatNetwork, Loss, Loss]:
    case = recipe.golden()["cases"][name]
    model = darts_supernet(DARTS, cells=case["layers"], channels=case["C"], outputs=10).double()
    recipe.fill(model)
    network, relaxation = FlatNetwork(model), SoftmaxRelaxation(DARTS)

    def loss(offset: int) -> Loss:
        x, y = recipe.batch(case["B"], case["S"], offset)
        x = x.contiguous(memory_format=torch.channels_last)
        return lambda w, a: F.cross_entropy(network(w, x, relaxation(a)), y)

    return case, network, loss(1), loss(2)


@pytest.fixture
def smooth(monkeypatch: pytest.MonkeyPatch) -> None:
    """SiLU for ReLU and average for maximum pooling, as the golden smooth cases have it."""
    for place in ("engine.spaces.operations", "engine.spaces.cells", "engine.spaces.macro"):
        monkeypatch.setattr(f"{place}.gated_relu", lambda x, *_: F.silu(x))

    class Average(operations.Pool):
        def __init__(self, kind: str, *rest: Any) -> None:
            super().__init__("average", *rest)

    monkeypatch.setattr(operations, "Pool", Average)


def close(found: Tensor, wanted: dict[str, Any], tolerance: float = 1e-7) -> None:
    expected = torch.tensor([wanted["normal"], wanted["reduce"]], dtype=torch.float64)
    assert float((found - expected).norm() / expected.norm()) < tolerance


def test_golden_exact_second_order() -> None:
    case, network, training, validation = golden_losses(TINY)
    found = second_order(training, validation, network.start, recipe.alphas(), Step(0.025, 3e-4))
    close(found.gradient, case["second_order_exact_nomomentum"])
    assert found.training is not None
    assert float(found.training) == pytest.approx(case["loss_train"], rel=1e-11)
    assert float(found.validation) == pytest.approx(case["unrolled_val_loss_nomomentum"], rel=1e-9)


@pytest.mark.parametrize("momentum", [False, True])
def test_golden_finite_difference(momentum: bool) -> None:
    case, network, training, validation = golden_losses(TINY)
    inertia = 0.9 * 0.05 * network.start if momentum else None
    step = Step(0.025, 3e-4, inertia)
    found = second_order(training, validation, network.start, recipe.alphas(), step, hessian="finite-difference")
    key = "second_order_fd_momentum" if momentum else "second_order_fd_nomomentum"
    close(found.gradient, case[key], 1e-6)


@pytest.mark.usefixtures("smooth")
def test_smooth_network_in_which_both_forms_agree() -> None:
    case, network, training, validation = golden_losses(SMOOTH)
    a, step = recipe.alphas(), Step(0.025, 3e-4)
    exact = second_order(training, validation, network.start, a, step).gradient
    close(exact, case["second_order_exact_nomomentum"])
    published = second_order(training, validation, network.start, a, step, hessian="finite-difference")
    close(published.gradient, case["second_order_fd_nomomentum"])
    close(first_order(validation, network.start, a).gradient, case["first_order"])
    fine = second_order(training, validation, network.start, a, step, hessian="finite-difference", width=1e-4).gradient
    assert float((fine - exact).norm() / exact.norm()) < 1e-6


def quadratic() -> tuple[Loss, Loss, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    w, a = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (5, 3))
    m = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    return (lambda w, a: w @ m @ a + (w * w).sum()), (lambda w, a: ((w - 1) ** 2).sum() + a.sum()), w, a, m


@pytest.mark.parametrize("hessian", ["exact", "finite-difference"])
def test_closed_form(hessian: Any) -> None:
    training, validation, w, a, m = quadratic()
    moved = w - 0.1 * (m @ a + 2 * w + 0.01 * w)
    wanted = torch.ones(3, dtype=torch.float64) - 0.1 * m.T @ (2 * (moved - 1))
    found = second_order(training, validation, w, a, Step(0.1, 0.01), hessian=hessian)
    torch.testing.assert_close(found.gradient, wanted)
    v = torch.arange(5.0, dtype=torch.float64)
    torch.testing.assert_close(mixed_product(training, w, a, v, hessian=hessian), m.T @ v)


def test_difference_along_nothing_is_nothing() -> None:
    training, _, w, a, _ = quadratic()
    assert finite_difference(training, w, a, torch.zeros_like(w)).tolist() == [0, 0, 0]


def test_architecture_passes_form_no_weight_gradients() -> None:
    asked: list[bool] = []

    def loss(w: Tensor, a: Tensor) -> Tensor:
        asked.append(w.requires_grad)
        return (w.sum() * a).sum()

    first_order(loss, torch.ones(3), torch.ones(2))
    finite_difference(loss, torch.ones(3), torch.ones(2), torch.ones(3))
    assert asked == [False] * 3


def test_optimisers_are_torchs() -> None:
    generator = torch.Generator().manual_seed(1)
    w, a = torch.randn(7, generator=generator), torch.randn(2, 3, generator=generator)
    mine = Bilevel(w.clone(), a.clone(), Sgd(torch.zeros(7), clip=1.0), Adam(torch.zeros(2, 3), torch.zeros(2, 3)))
    p, q = nn.Parameter(w.clone()), nn.Parameter(a.clone())
    sgd = torch.optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=3e-4)
    adam = torch.optim.Adam([q], lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    for _ in range(4):
        p.grad, q.grad = torch.randn(7, generator=generator), torch.randn(2, 3, generator=generator)
        mine.sgd.step(mine.w, p.grad.clone(), 0.1)
        mine.adam.step(mine.a, q.grad.clone())
        torch.nn.utils.clip_grad_norm_([p], 1.0)
        sgd.step()
        adam.step()
    torch.testing.assert_close(mine.w, p.detach())
    torch.testing.assert_close(mine.a, q.detach())


def test_cosine_is_torchs() -> None:
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.025)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 50, 0.001)
    for epoch in range(50):
        assert cosine(0.025, 0.001, epoch, 50) == pytest.approx(scheduler.get_last_lr()[0])
        optimiser.step()
        scheduler.step()


def test_flat_network_needs_a_pure_function() -> None:
    with pytest.raises(ValueError, match="buffers"):
        FlatNetwork(nn.BatchNorm2d(3))
