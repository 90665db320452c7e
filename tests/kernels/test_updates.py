from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from engine.kernels.masked import mask, unpack
from engine.kernels.score_gradient import update_scores_
from engine.kernels.updates import DTYPES, AdamRule, adam, adam_, reptile, reptile_, sgd, sgd_
from engine.runs.streams import stream

RULES = [
    AdamRule(),
    AdamRule((0.0, 0.999)),
    AdamRule(weight_decay=0.1),
    AdamRule((0.5, 0.9), 1e-3, 0.1, decoupled=True),
    AdamRule(decoupled=True),
]


def noise(*shape: int, address: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-updates", address), dtype=torch.float64).to(dtype)


def rates(shape: tuple[int, ...], kind: str) -> float | Tensor:
    """A float, a 0-dim tensor, one a parameter (some 0), or one a task."""
    if kind == "float":
        return 0.1
    if kind == "scalar":
        return torch.tensor(0.1, dtype=torch.float64)
    if kind == "parameter":
        return torch.linspace(0, 0.3, shape[-1], dtype=torch.float64)
    return torch.linspace(0.1, 0.3, shape[0], dtype=torch.float64)[:, None]


KINDS = [((7,), kind) for kind in ("float", "scalar", "parameter")] + [
    ((3, 5), kind) for kind in ("float", "scalar", "parameter", "task")
]


@pytest.mark.parametrize(("shape", "kind"), KINDS, ids=str)
@pytest.mark.parametrize(("momentum", "decay"), [(None, 0.0), (None, 0.2), (0.9, 0.0), (0.9, 0.2)])
def test_sgd_in_place_is_the_function(shape: tuple[int, ...], kind: str, momentum: float | None, decay: float) -> None:
    parameters = expected = noise(*shape)
    parameters = parameters.clone()
    velocity = wanted = None if momentum is None else torch.zeros(shape, dtype=torch.float64)
    velocity = None if velocity is None else velocity.clone()
    settings = {"rate": rates(shape, kind), "momentum": momentum or 0.0, "weight_decay": decay}
    for step in range(3):
        gradient = noise(*shape, address=1 + step)
        before = gradient.clone()
        expected, wanted = sgd(expected, gradient, wanted, **settings)
        sgd_(parameters, gradient, velocity, **settings)
        torch.testing.assert_close(parameters, expected, rtol=1e-13, atol=1e-14)
        assert torch.equal(gradient, before)
        if velocity is not None:
            torch.testing.assert_close(velocity, wanted, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("shape", "kind"), KINDS, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_adam_in_place_is_the_function(shape: tuple[int, ...], kind: str, rule: AdamRule) -> None:
    expected, first, second = noise(*shape), *torch.zeros(2, *shape, dtype=torch.float64)
    found = [expected.clone(), first.clone(), second.clone()]
    rate = rates(shape, kind)
    for step in range(1, 4):
        gradient = noise(*shape, address=step)
        before = gradient.clone()
        expected, first, second = adam(expected, gradient, first, second, step, rate=rate, rule=rule)
        adam_(found[0], gradient, *found[1:], step if step < 3 else torch.tensor(3), rate=rate, rule=rule)
        torch.testing.assert_close(found, [expected, first, second], rtol=1e-12, atol=1e-13)
        assert torch.equal(gradient, before)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_adam_is_torchs(rule: AdamRule) -> None:
    leaf = torch.nn.Parameter(noise(6))
    kind = torch.optim.AdamW if rule.decoupled else torch.optim.Adam
    optimiser = kind([leaf], lr=0.1, betas=rule.betas, eps=rule.eps, weight_decay=rule.weight_decay, foreach=False)
    found = [noise(6), *torch.zeros(2, 6, dtype=torch.float64)]
    for step in range(1, 4):
        leaf.grad = noise(6, address=step)
        optimiser.step()
        adam_(found[0], noise(6, address=step), *found[1:], step, rate=0.1, rule=rule)
    torch.testing.assert_close(found[0], leaf.detach(), rtol=1e-12, atol=1e-13)


def test_sgd_is_torchs() -> None:
    leaf, found = torch.nn.Parameter(noise(6)), [noise(6), torch.zeros(6, dtype=torch.float64)]
    optimiser = torch.optim.SGD([leaf], lr=0.1, momentum=0.9, weight_decay=0.01, foreach=False)
    for step in range(3):
        leaf.grad = noise(6, address=1 + step)
        optimiser.step()
        sgd_(found[0], noise(6, address=1 + step), found[1], rate=0.1, momentum=0.9, weight_decay=0.01)
    torch.testing.assert_close(found[0], leaf.detach(), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_a_row_does_not_feel_the_rows_before_it(rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    parameters, gradient, first, second = (torch.randn(99, 15, generator=generator) for _ in range(4))

    def moved(rows: slice) -> torch.Tensor:
        p, g, m, v = (t[rows].clone() for t in (parameters, gradient, first, second.abs()))
        if rule == "sgd":
            sgd_(p, g, rate=0.1, velocity=m, momentum=0.9, weight_decay=0.01)
        else:
            adam_(p, g, m, v, 3, rate=0.1)
        return p

    assert torch.equal(moved(slice(None)), torch.cat([moved(slice(k, k + 1)) for k in range(99)]))


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(0, 9), st.sampled_from(["float", "scalar", "parameter"]))
def test_reptile_moves_towards_the_mean(tasks: int, size: int, kind: str) -> None:
    meta, adapted, rate = noise(size), noise(tasks, size, address=1), rates((size,), kind)
    expected = (1 - rate) * meta + rate * adapted.sum(0) / tasks
    torch.testing.assert_close(reptile(meta, adapted, rate), expected)
    reptile_(meta, adapted, rate)
    torch.testing.assert_close(meta, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_half_precision_is_as_exact_as_torchs(dtype: torch.dtype) -> None:
    """Relative error after one step, against float64 on the same rounded inputs: not above twice that of separate operations."""
    given = [noise(400, address=place, dtype=dtype) for place in range(4)]
    given[3] = given[3].abs()
    wanted = adam(*(tensor.double() for tensor in given), 3, rate=0.1)[0]
    plain = adam(*given, 3, rate=0.1)[0]
    adam_(*given, 3, rate=0.1)
    errors = [float((tensor.double() - wanted).norm() / wanted.norm()) for tensor in (given[0], plain)]
    assert errors[0] <= max(2 * errors[1], 1e-15)
    assert errors[0] < {torch.float64: 1e-14, torch.float32: 1e-6}.get(dtype, 1e-2)


def inner(rule: str, parameters: Tensor) -> Tensor:
    """The loss after two differentiable inner steps; the last parameter has no gradient at all."""
    moments = [torch.zeros_like(parameters), torch.zeros_like(parameters)]
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.0], dtype=parameters.dtype)

    def loss(parameters: Tensor) -> Tensor:
        return (parameters * parameters * weights).sum()

    start = parameters
    for step in (1, 2):
        gradient = grad(loss)(parameters)
        if rule == "sgd":
            parameters, velocity = sgd(parameters, gradient, moments[0], rate=0.1, momentum=0.5)
            assert velocity is not None
            moments[0] = velocity
        else:
            parameters, *moments = adam(parameters, gradient, *moments, step, rate=0.1)
    return (parameters * start).sin().sum()


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_inner_steps_are_differentiable(rule: str) -> None:
    parameters = noise(5).requires_grad_()
    function = partial(inner, rule)
    assert torch.autograd.gradcheck(function, parameters)
    tasks = noise(3, 5, address=1)
    torch.testing.assert_close(vmap(grad(function))(tasks), torch.stack([grad(function)(task) for task in tasks]))


@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 3, 3), (0, 4), (1,)], ids=str)
def test_scores_step_gives_the_mask_and_the_first_weights(shape: tuple[int, ...]) -> None:
    scores, gradient, velocity, weight = (noise(*shape, address=place) for place in range(4))
    wanted_velocity = 0.9 * velocity + gradient
    wanted = scores - 0.3 * wanted_velocity
    bits, first = update_scores_(scores, gradient, velocity, weight, 0.1, rate=0.3, momentum=0.9)
    torch.testing.assert_close([scores, velocity], [wanted, wanted_velocity], rtol=1e-13, atol=1e-14)
    assert torch.equal(unpack(bits, shape), mask(scores, 0.1))
    assert torch.equal(first, weight * mask(scores, 0.1))


def test_meta_parameters_that_require_gradients_are_updated_and_their_use_is_noticed() -> None:
    parameters = noise(3).requires_grad_()
    for update in (
        lambda: sgd_(parameters, noise(3), rate=0.1),
        lambda: adam_(parameters, noise(3), noise(3), noise(3).abs(), 1, rate=0.1),
        lambda: reptile_(parameters, noise(2, 3), 0.1),
    ):
        loss = (parameters * parameters).sum()
        update()
        assert not parameters.grad_fn
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_nothing_to_update() -> None:
    empty = torch.zeros(0)
    sgd_(empty, empty, rate=0.1)
    adam_(empty, empty, empty, empty, 1, rate=0.1)
    reptile_(torch.zeros(0), torch.zeros(2, 0), 0.1)


p = torch.zeros(4)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: sgd_(p.long(), p, rate=1.0), TypeError, "parameters: expected torch.float32"),
        (
            lambda: sgd_(p, p.double(), rate=1.0),
            TypeError,
            "gradient: expected torch.float32 as parameters are, got torch.float64",
        ),
        (lambda: sgd_(p, p[:3], rate=1.0), ValueError, "gradient: expected (4,) as parameters are, got (3,)"),
        (
            lambda: sgd_(p[::2], p[:2], rate=1.0),
            ValueError,
            "parameters: expected contiguous (P,) or (T, P), got (2,), strides (2,)",
        ),
        (lambda: sgd_(p.view(2, 2, 1), p.view(2, 2, 1), rate=1.0), ValueError, "parameters: expected contiguous (P,) or (T, P)"),
        (lambda: sgd_(p, p.to("meta"), rate=1.0), ValueError, "gradient: expected on cpu, got (4,) on meta"),
        (lambda: sgd_(p, p, momentum=0.9, rate=1.0), ValueError, "velocity: expected a tensor, since momentum is 0.9, got None"),
        (lambda: sgd_(p, p, rate=torch.zeros(3)), ValueError, "rate: expected a shape that broadcasts to (4,), got (3,)"),
        (lambda: sgd_(p, p, rate=torch.zeros(2, 4)), ValueError, "rate: expected a shape that broadcasts to (4,), got (2, 4)"),
        (lambda: sgd_(p, p, rate=p.long()), TypeError, "rate: expected floating on cpu, got torch.int64 on cpu"),
        (lambda: adam_(p, p, p, p[:1], 1, rate=1.0), ValueError, "second: expected (4,) as parameters are, got (1,)"),
        (lambda: adam_(p, p, p, p, 0, rate=1.0), ValueError, "step: expected at least 1, got 0"),
        (lambda: adam_(p, p, p, p, torch.ones(1), rate=1.0), ValueError, "step: expected 0-dim on cpu, got (1,) on cpu"),
        (lambda: AdamRule((0.9, 1.0)), ValueError, "betas: expected two numbers of at least 0 and below 1, got (0.9, 1.0)"),
        (lambda: AdamRule(eps=-1.0), ValueError, "eps: expected at least 0, got -1.0"),
        (lambda: reptile_(p, p, 0.1), ValueError, "adapted: expected (T, P) with meta's P, T >= 1, got (4,), meta (4,)"),
        (lambda: reptile_(p, p[:0].view(0, 4), 0.1), ValueError, "adapted: expected (T, P)"),
        (
            lambda: update_scores_(p, p, p, p[:2], 0.0, rate=0.1, momentum=0.9),
            ValueError,
            "weight: expected contiguous (4,) as scores are, got (2,), strides (1,)",
        ),
        (
            lambda: update_scores_(p, p, p, p, 0.0, rate=p, momentum=0.9),
            ValueError,
            "rate: expected a float or a 0-dim tensor, got (4,)",
        ),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()
