"""What is registered for a GPU of the mixed edge group, with its formulas for the CPU, and partial channels in every face."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

from engine.kernels.mixed_edge import Norm, mixed_edge, mixed_sum
from engine.kernels.mixed_edge.arguments import factors
from engine.kernels.mixed_edge.edge_operators import DeviceEdge
from engine.kernels.mixed_edge.group import group_on_cpu
from engine.kernels.mixed_edge.reference import Setting, group_reference, sum_reference
from engine.kernels.mixed_edge.sum_operators import DeviceSum
from engine.kernels.mixed_edge.weighted_sum import sum_on_cpu
from engine.runs.streams import stream
from engine.spaces.partial import shuffled

NORMS = {"batch": (Norm("batch"), 1), "rows": (Norm("batch", 2), 2), "group": (Norm("group", 2), 4), "none": (Norm("none"), 2)}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DILATIONS = (1, 2)


def noise(*shape: int, address: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-mixed-edge-operators", address), dtype=torch.float64)


def state(shape: tuple[int, ...], layout: str, address: int = 0) -> Tensor:
    return noise(*shape, address=address).contiguous(memory_format=LAYOUTS[layout])


def group_leaves(rows: int, parts: int, stride: int, layout: str, channels: int = 4) -> list[Tensor]:
    """x, mixture, passing (one number without parts) and two filters; one edge lacks an operation."""
    mixture = noise(rows, 2, 3, address=1).softmax(-1)
    mixture[-1, 0, 1] = 0
    if stride == 2:
        mixture[..., 2] = 0
    passing = noise(rows, 2, address=2) if parts > 1 else noise(1, address=2)
    filters = [noise(channels, 1, *kernel, address=3 + j) for j, kernel in enumerate(((3, 3), (1, 5)))]
    return [leaf.requires_grad_() for leaf in (state((4, parts * channels, 5, 4), layout), mixture, passing, *filters)]


def of_group(face: Callable[..., Any], norm: Norm, parts: int, stride: int) -> Callable[..., list[Tensor]]:
    def run(x: Tensor, mixture: Tensor, passing: Tensor, *filters: Tensor) -> list[Tensor]:
        alive, scaled, _ = factors(mixture, None, None, filters[0].shape[0])
        setting = Setting(norm, stride, DILATIONS, parts)
        return list(face(setting, alive, x, scaled, None, passing if parts > 1 else None, *filters))

    return run


def close(found: list[Any], wanted: list[Any]) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def gradients(function: Callable[..., Any], leaves: list[Tensor]) -> list[Any]:
    """Values, and the gradients of all leaves (zeros where nothing reads one)."""
    values = function(*leaves)
    cotangents = [noise(*y.shape, address=30 + i) for i, y in enumerate(values)]
    return [*values, *torch.autograd.grad(values, leaves, cotangents, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("face", [group_on_cpu, DeviceEdge.apply], ids=["cpu", "operator"])
@pytest.mark.parametrize("norm", NORMS)
def test_groups_are_the_reference(norm: str, face: Callable[..., Any], layout: str) -> None:
    rule, rows = NORMS[norm]
    for parts, stride in product((1, 2), (1, 2)):
        leaves = group_leaves(rows, parts, stride, layout)
        ours, reference = of_group(face, rule, parts, stride), of_group(group_reference, rule, parts, stride)
        close(gradients(ours, leaves), gradients(reference, leaves))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "face", [sum_on_cpu, lambda *given, parts: DeviceSum.apply(given[0], parts, *given[1:])], ids=["cpu", "operator"]
)
@pytest.mark.parametrize("norm", NORMS)
def test_sums_are_the_reference(norm: str, face: Callable[..., Any], layout: str) -> None:
    rule, rows = NORMS[norm]
    for parts in (1, 2):
        weights = noise(rows, 3, address=1)
        weights[-1, 1] = 0
        terms = [state((4, 4, 3, 2), layout, 4 + t) for t in range(3)]
        leaves = [leaf.requires_grad_() for leaf in (weights, state((4, 4 * parts, 3, 2), layout, 2), *terms)]

        def run(face: Callable[..., Any], weights: Tensor, total: Tensor, *terms: Tensor, parts: int = parts) -> list[Tensor]:
            alive, scaled, _ = factors(weights, None, None, 4)
            return [face(rule, alive, scaled, None, total, *terms, parts=parts)]

        close(*(gradients(lambda *given, of=of: run(of, *given), leaves) for of in (face, sum_reference)))


def by_modules(x: Tensor, mixture: Tensor, passing: Tensor, norm: Norm, stride: int, parts: int) -> list[Tensor]:
    """PC-DARTS's mixed operation as it is published: operate on the first part, concatenate, shuffle; weighted by its edge."""
    width = x.shape[1] // parts
    sums, _ = mixed_edge(x[:, :width], mixture, norm=norm, stride=stride)
    rest = x[:, width:] if stride == 1 else F.max_pool2d(x[:, width:], 2, 2, ceil_mode=True)
    return [shuffled(torch.cat([y, rest * passing[e]], 1), parts) for e, y in enumerate(sums)]


@pytest.mark.parametrize("stride", [1, 2])
def test_partial_channels_are_shuffled_as_published(stride: int) -> None:
    x, mixture, passing = noise(2, 8, 5, 7), noise(3, 3, address=1), noise(3, address=2)
    leaves = [leaf.requires_grad_() for leaf in (x, mixture, passing)]

    def ours(x: Tensor, mixture: Tensor, passing: Tensor) -> list[Tensor]:
        return mixed_edge(x, mixture, norm=Norm(), stride=stride, parts=4, passing=passing)[0]

    def published(x: Tensor, mixture: Tensor, passing: Tensor) -> list[Tensor]:
        return by_modules(x, mixture, passing, Norm(), stride, 4)

    close(gradients(ours, leaves), gradients(published, leaves))
    total, term, weight = noise(2, 8, 5, 7, address=5), noise(2, 2, 5, 7, address=6), torch.ones(1, dtype=torch.float64)
    found = mixed_sum([term], weight, total, norm=Norm("none"), parts=4)
    wanted = shuffled(torch.cat([term, torch.zeros_like(total[:, 2:])], 1), 4)
    assert torch.equal(found, wanted + total)
    assert torch.equal(mixed_sum([term], weight, norm=Norm("none"), parts=4), wanted)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("face", [group_on_cpu, DeviceEdge.apply], ids=["cpu", "operator"])
def test_straight_through_choices_learn_alone(face: Callable[..., Any], parts: int) -> None:
    """PR-DARTS: the chosen operations weigh one with the gradient of their gates, and the others do not exist."""
    x, soft, passing, *filters = group_leaves(1, parts, 1, "channels_last")
    soft = soft.detach().requires_grad_()
    hard = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]], dtype=torch.float64)

    def run(face: Callable[..., Any], x: Tensor, soft: Tensor) -> list[Tensor]:
        return of_group(face, Norm(), parts, 1)(x, hard - soft.detach() + soft, passing.detach(), *(f.detach() for f in filters))

    def found(face: Callable[..., Any]) -> list[Any]:
        return gradients(lambda *given: run(face, *given), [x, soft])

    ours = found(face)
    close(ours, found(group_reference))
    assert torch.equal(ours[-1] != 0, hard != 0)


@pytest.mark.parametrize("face", [group_on_cpu, DeviceEdge.apply], ids=["cpu", "operator"])
def test_second_gradients_with_partial_channels(face: Callable[..., Any]) -> None:
    leaves = group_leaves(2, 2, 2, "channels_last", 2)

    def twice(face: Callable[..., Any]) -> list[Any]:
        run = of_group(face, Norm("batch", 2), 2, 2)
        first = torch.autograd.grad(sum(y.pow(3).sum() for y in run(*leaves)), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))

    close(twice(face), twice(group_reference))


def test_transforms_with_partial_channels() -> None:
    mixture, passing, xs = noise(2, 3).softmax(-1), noise(2, address=1), noise(3, 2, 4, 3, 3, address=2)

    def value(passing: Tensor, x: Tensor) -> Tensor:
        sums, _ = mixed_edge(x, mixture, norm=Norm(), parts=2, passing=passing)
        return mixed_sum([s[:, ::2] for s in sums], mixture[0, :2], sums[0], norm=Norm(), parts=2).pow(3).sum()

    found = vmap(grad(value), (None, 0))(passing, xs)
    torch.testing.assert_close(found, torch.stack([grad(value)(passing, x) for x in xs]))
    leaf = passing.clone().requires_grad_()
    torch.testing.assert_close(found[0], torch.autograd.grad(value(leaf, xs[0]), leaf)[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("parts", "stride"), [(1, 1), (2, 2)])
def test_registrations_are_sound(parts: int, stride: int, layout: str) -> None:
    operators, norm = torch.ops.engine, Norm("group", 2)
    x, mixture, passing, *filters = (leaf.detach().float() for leaf in group_leaves(2, parts, stride, layout))
    passes = passing if parts > 1 else None
    alive, scaled, _ = factors(mixture, None, None, 4)
    setting, scaled = Setting(norm, stride, DILATIONS, parts).text, scaled.contiguous()
    given = setting, alive, x, scaled, None, passes, filters
    torch.library.opcheck(operators.mixed_edge.default, given)
    sums, taps, mean, rstd = operators.mixed_edge(*given)
    cotangents = [torch.ones_like(sums[0]), None], [None, torch.ones_like(taps[1])]
    backward = setting, alive, x, scaled, passes, mean, rstd, *cotangents, filters
    torch.library.opcheck(operators.mixed_edge_gradients.default, (*backward, True, True))
    torch.library.opcheck(operators.mixed_edge_gradients.default, (*backward, False, False))
    alive, scaled, _ = factors(noise(2, 3).float(), None, None, 4)
    terms, total = [state((4, 4, 3, 2), layout, t).float() for t in range(3)], state((4, 4 * parts, 3, 2), layout).float()
    setting, scaled = Setting(norm, 1, (), parts).text, scaled.contiguous()
    torch.library.opcheck(operators.mixed_sum.default, (setting, alive, scaled, None, total, terms))
    out, mean, rstd = operators.mixed_sum(setting, alive, scaled, None, total, terms)
    for wanted in (True, False):
        backward = setting, alive, scaled, mean, rstd, torch.ones_like(out), terms, wanted
        torch.library.opcheck(operators.mixed_sum_gradients.default, backward)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"parts": 3}, "parts: expected a positive divisor of the 4 channels of x, got 3"),
        ({"parts": 2}, "passing: expected weights exactly where parts is above 1, got parts=2 and NoneType"),
        ({"passing": torch.ones(2)}, "passing: expected weights exactly where parts is above 1, got parts=1 and Tensor"),
        ({"parts": 2, "passing": torch.ones(3)}, r"passing: expected \(2,\) or \(2,\) as mixture has, got \(3,\)"),
        ({"parts": 2, "passing": torch.ones(2, dtype=torch.int32)}, "passing: expected a floating-point dtype"),
    ],
)
def test_bad_parts_are_named(change: dict[str, Any], problem: str) -> None:
    with pytest.raises((TypeError, ValueError), match=problem):
        mixed_edge(torch.ones(4, 4, 5, 5), torch.ones(2, 3), norm=Norm(), **change)


def test_a_total_without_all_parts_is_named() -> None:
    with pytest.raises(ValueError, match=r"total: expected \(2, 6, 4, 4\) as the terms, got \(2, 3, 4, 4\)"):
        mixed_sum([torch.ones(2, 3, 4, 4)], torch.ones(1), torch.ones(2, 3, 4, 4), norm=Norm(), parts=2)
