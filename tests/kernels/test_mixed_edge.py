"""The mixed edge group against modules applied one after the other: modes, normalisations, precisions, layouts, transforms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacrev, jvp, vmap
from torch.nn import functional as F

from engine.kernels.mixed_edge import Norm, group, mixed_edge, mixed_sum
from engine.runs.streams import stream

# The table that the tests walk: what is differentiated, the normalisation with the mixture's rows, the precision, the layout.
MODES = {"architecture": ("mixture",), "weights": ("x", "filters"), "both": ("x", "mixture", "filters", "scale", "shift")}
NORMS = {
    "batch": (Norm("batch"), 1),
    "batch, two groups": (Norm("batch", 2), 2),
    "batch, two rows of two groups": (Norm("batch", 4), 2),
    "group": (Norm("group", 2), 1),
    "group, a row a sample": (Norm("group", 2), 4),
    "none": (Norm("none"), 1),
    "none, two rows": (Norm("none"), 2),
}
# Relative errors of values and of gradients.
TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-4),
    torch.bfloat16: (1e-2, 1e-2),
    torch.float16: (1e-2, 1e-2),
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
KERNELS, DILATIONS = ((3, 3), (5, 5), (3, 3), (5, 5), (1, 3)), (1, 1, 2, 2, 1)


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def noise(*shape: int, address: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-mixed-edge", address), dtype=torch.float64)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach().double() - wanted.detach()).norm() / wanted.detach().norm().clamp(min=1e-300))


def plain_norm(x: Tensor, norm: Norm) -> Tensor:
    """By the definition, in one line a kind."""
    if norm.kind == "none":
        return x
    parts = x.unflatten(0, (norm.groups, -1)) if norm.kind == "batch" else x.unflatten(1, (norm.groups, -1))
    axes = (1, 3, 4) if norm.kind == "batch" else (2, 3, 4)
    centred = parts - parts.mean(axes, keepdim=True)
    start = 0 if norm.kind == "batch" else 1
    return (centred / (centred.square().mean(axes, keepdim=True) + norm.eps).sqrt()).flatten(start, start + 1)


def plain_edge(
    x: Tensor, mixture: Tensor, filters: Sequence[Tensor], norm: Norm, stride: int, scale: Any, shift: Any
) -> list[Tensor]:
    """One operation after the other on one edge after the other, as modules do."""
    rows = (mixture if mixture.dim() == 3 else mixture[None]).repeat_interleave(
        x.shape[0] // (mixture.shape[0] if mixture.dim() == 3 else 1), 0
    )
    pools = [F.max_pool2d(x, 3, stride, 1), F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)]
    sums = []
    for e in range(rows.shape[1]):
        total = torch.zeros_like(pools[0])
        for o, pool in enumerate(pools):
            y = plain_norm(pool, norm)
            if scale is not None:
                y = y * scale[e, o, :, None, None] + shift[e, o, :, None, None]
            total = total + rows[:, e, o, None, None, None] * y
        sums.append(total + rows[:, e, 2, None, None, None] * x if stride == 1 else total)
    for weight, d in zip(filters, DILATIONS, strict=False):
        padding = [d * (k - 1) // 2 for k in weight.shape[2:]]
        sums.append(F.conv2d(x.relu(), weight, None, stride, padding, d, x.shape[1]))
    return sums


def inputs(rows: int, shape: tuple[int, ...], affine: bool = True, edges: int = 2) -> dict[str, Any]:
    """Arguments in float64; the first edge lacks the skip connection."""
    mixture = noise(rows, edges, 3, address=1).softmax(-1)
    mixture[:, 0, 2] = 0
    return {
        "x": noise(*shape),
        "mixture": mixture,
        "filters": [noise(shape[1], 1, *kernel, address=2 + j) for j, kernel in enumerate(KERNELS)],
        "scale": noise(edges, 2, shape[1], address=20) if affine else None,
        "shift": noise(edges, 2, shape[1], address=21) if affine else None,
    }


def flat(arguments: dict[str, Any], names: Sequence[str]) -> list[Tensor]:
    return [t for name in names for t in (arguments[name] if name == "filters" else [arguments[name]]) if t is not None]


def converted(arguments: dict[str, Any], names: Sequence[str], dtype: torch.dtype, layout: str) -> dict[str, Any]:
    """The arguments in a precision and a layout, those that are named with gradients."""
    wide = dtype if dtype == torch.float64 else torch.float32

    def one(name: str, tensor: Tensor) -> Tensor:
        made = tensor.to(dtype if name in ("x", "filters") else wide)
        made = made.contiguous(memory_format=LAYOUTS[layout]) if name == "x" else made
        return made.clone().requires_grad_(name in names)

    return {
        name: [one(name, t) for t in value] if isinstance(value, list) else None if value is None else one(name, value)
        for name, value in arguments.items()
    }


def run(arguments: dict[str, Any], norm: Norm, stride: int) -> list[Tensor]:
    sums, taps = mixed_edge(
        arguments["x"],
        arguments["mixture"],
        arguments["filters"],
        DILATIONS[: len(arguments["filters"])],
        norm=norm,
        stride=stride,
        scale=arguments["scale"],
        shift=arguments["shift"],
    )
    return [*sums, *taps]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mode", MODES)
def test_group_is_what_modules_make(mode: str, norm: str, dtype: torch.dtype, layout: str) -> None:
    (rule, rows), names = NORMS[norm], MODES[mode]
    for stride, affine in product((1, 2), (False, True)):
        given = inputs(rows, (4, 4, 7, 6), affine)
        ours = converted(given, names, dtype, layout)
        exact = {
            k: [t.detach().double() for t in v] if isinstance(v, list) else v if v is None else v.detach().double()
            for k, v in ours.items()
        }
        exact = converted(exact, names, torch.float64, layout)
        found = run(ours, rule, stride)
        wanted = plain_edge(exact["x"], exact["mixture"], exact["filters"], rule, stride, exact["scale"], exact["shift"])
        assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) < TOLERANCES[dtype][0]
        assert all(y.dtype == dtype for y in found)
        cotangents = [noise(*y.shape, address=40 + i).to(dtype) for i, y in enumerate(wanted)]
        used = [i for i, y in enumerate(wanted) if y.requires_grad]
        gradients = torch.autograd.grad([found[i] for i in used], flat(ours, names), [cotangents[i] for i in used])
        truth = torch.autograd.grad([wanted[i] for i in used], flat(exact, names), [cotangents[i].double() for i in used])
        truth = list(truth)
        if "mixture" in names:  # what does not exist has no gradient
            place = names.index("mixture")
            truth[place] = torch.where(exact["mixture"] == 0, 0, truth[place])
        assert max(error(a, b) for a, b in zip(gradients, truth, strict=True)) < TOLERANCES[dtype][1]


def sum_arguments(tensors: list[Tensor], based: bool, affine: bool) -> tuple[list[Tensor], Any, Any, Any, Any]:
    """(three terms, total or None, weights, scale or None, shift or None) out of a flat list."""
    left = tensors[3:]
    total = left.pop(0) if based else None
    return tensors[:3], total, *(left if affine else [left[0], None, None])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_sum_is_what_modules_make(norm: str, dtype: torch.dtype, layout: str) -> None:
    rule, rows = NORMS[norm]
    wide = dtype if dtype == torch.float64 else torch.float32
    for affine, based in product((False, True), (False, True)):
        terms = [(3 + noise(4, 4, 5, 3, address=i)).to(dtype).contiguous(memory_format=LAYOUTS[layout]) for i in range(3)]
        rest = [noise(rows, 3, address=5), noise(3, 4, address=6), noise(3, 4, address=7)]
        given = [
            *terms,
            *([noise(4, 4, 5, 3, address=8).to(dtype)] if based else []),
            *[t.to(wide) for t in rest[: 3 if affine else 1]],
        ]
        ours = [t.clone().requires_grad_() for t in given]
        exact = [t.detach().double().requires_grad_() for t in given]

        ys, total, weights, scale, shift = sum_arguments(ours, based, affine)
        found = mixed_sum(ys, weights, total, norm=rule, scale=scale, shift=shift)
        ys, total, weights, scale, shift = sum_arguments(exact, based, affine)
        wanted = torch.zeros_like(ys[0]) if total is None else total
        for t, y in enumerate(ys):
            y = plain_norm(y, rule)
            y = y if scale is None else y * scale[t, :, None, None] + shift[t, :, None, None]
            wanted = wanted + weights[:, t].repeat_interleave(4 // rows)[:, None, None, None] * y
        cotangent = noise(*wanted.shape, address=9).to(dtype)
        assert error(found, wanted) < TOLERANCES[dtype][0]
        gradients = torch.autograd.grad(found, ours, cotangent)
        truth = torch.autograd.grad(wanted, exact, cotangent.double())
        assert max(error(a, b) for a, b in zip(gradients, truth, strict=True)) < TOLERANCES[dtype][1]


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([1, 2]),
    st.integers(1, 3),
    st.sampled_from(["sliced", "transposed"]),
)
def test_odd_sizes_and_strides(shape: tuple[int, int, int, int], stride: int, edges: int, view: str) -> None:
    given_ = inputs(1, shape, False, edges)
    if view == "sliced":
        x = noise(shape[0], shape[1], shape[2], 2 * shape[3])[..., ::2]
    else:
        x = noise(shape[1], shape[0], shape[3], shape[2]).permute(1, 0, 3, 2)
    x.requires_grad_()
    found = run(given_ | {"x": x}, Norm("none"), stride)
    wanted = plain_edge(x, given_["mixture"], given_["filters"], Norm("none"), stride, None, None)
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) < 1e-12
    cotangents = [noise(*y.shape, address=i) for i, y in enumerate(wanted)]
    found_gradient, gradient = (torch.autograd.grad(ys, x, cotangents)[0] for ys in (found, wanted))
    assert error(found_gradient, gradient) < 1e-12


def test_half_precision_is_no_worse_than_the_same_formulation_of_modules() -> None:
    given_ = inputs(1, (4, 8, 9, 9))
    ours = converted(given_, (), torch.bfloat16, "channels_last")
    exact = plain_edge(
        *(_double(ours[k]) for k in ("x", "mixture", "filters")), Norm(), 1, *(_double(ours[k]) for k in ("scale", "shift"))
    )
    modules = plain_edge(
        ours["x"], *(_half(ours[k]) for k in ("mixture", "filters")), Norm(), 1, *(_half(ours[k]) for k in ("scale", "shift"))
    )
    for found, plain, wanted in zip(run(ours, Norm(), 1), modules, exact, strict=True):
        assert error(found, wanted) <= 2 * error(plain, wanted)


def _double(value: Any) -> Any:
    return [t.double() for t in value] if isinstance(value, list) else value.double()


def _half(value: Any) -> Any:
    return [t.bfloat16() for t in value] if isinstance(value, list) else value.bfloat16()


def test_equal_elements_of_a_window_give_the_maximums_gradient_to_the_first() -> None:
    x = noise(2, 3, 8, 8).round().requires_grad_()
    given_ = inputs(1, (2, 3, 8, 8), False) | {"x": x, "filters": []}
    found = torch.autograd.grad(run(given_, Norm("none"), 1)[0].square().sum(), x)[0]
    wanted = torch.autograd.grad(plain_edge(x, given_["mixture"], [], Norm("none"), 1, None, None)[0].square().sum(), x)[0]
    assert error(found, wanted) < 1e-12


@pytest.mark.parametrize("norm", NORMS)
def test_first_and_second_gradients_are_those_of_differences(norm: str) -> None:
    rule, rows = NORMS[norm]
    given_ = inputs(rows, (4, 2, 3, 3), True, 1)
    given_["filters"] = given_["filters"][:2]
    names = ("x", "mixture", "filters", "scale", "shift")
    given_["mixture"] = noise(rows, 1, 3, address=1).softmax(-1)
    leaves = [t.clone().requires_grad_() for t in flat(given_, names)]

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        x, mixture, first, second, scale, shift = tensors
        return tuple(run({"x": x, "mixture": mixture, "filters": [first, second], "scale": scale, "shift": shift}, rule, 1))

    assert gradcheck(function, leaves, fast_mode=True)
    assert gradgradcheck(function, leaves, fast_mode=True)

    def added(first: Tensor, second: Tensor, weights: Tensor, total: Tensor) -> Tensor:
        return mixed_sum([first, second], weights, total, norm=rule)

    leaves = [noise(4, 2, 3, 2, address=i).requires_grad_() for i in (0, 1)]
    leaves += [noise(rows, 2, address=2).requires_grad_(), noise(4, 2, 3, 2, address=3).requires_grad_()]
    assert gradcheck(added, leaves, fast_mode=True)
    assert gradgradcheck(added, leaves, fast_mode=True)


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_of_a_sum_of_every_order_are_those_of_modules(norm: str, layout: str, complete: bool) -> None:
    """Three orders in every argument, a term that one row lacks among them, or none."""
    rule, rows = NORMS[norm]
    leaves = [noise(4, 4, 4, 2, address=i).contiguous(memory_format=LAYOUTS[layout]).requires_grad_() for i in range(4)]
    weights = noise(rows, 3, address=4)
    if not complete:
        weights[-1, 1] = 0
    leaves += [t.requires_grad_() for t in (weights, noise(3, 4, address=5), noise(3, 4, address=6))]

    def own(*tensors: Tensor) -> Tensor:
        total, *terms, weights, scale, shift = tensors
        return mixed_sum(terms, weights, total, norm=rule, scale=scale, shift=shift)

    def plain(*tensors: Tensor) -> Tensor:
        total, *terms, weights, scale, shift = tensors
        each = weights.repeat_interleave(4 // rows, 0)[:, :, None, None, None]
        for t, term in enumerate(terms):
            value = scale[t, :, None, None] * plain_norm(term, rule) + shift[t, :, None, None]
            total = total + torch.where(each[:, t] != 0, each[:, t] * value, 0)
        return total

    def orders(function: Any) -> list[Tensor]:
        found, value = [], function(*leaves)
        for order in range(3):
            direction = noise(*value.shape, address=7 + order) if order == 0 else torch.ones(())
            gradients = torch.autograd.grad(value, leaves, direction, create_graph=True, allow_unused=True)
            filled = [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True)]
            found += filled
            value = sum((g * noise(*g.shape, address=20 + 10 * order + i)).sum() for i, g in enumerate(filled))
        return found

    dead = torch.where(weights != 0, 1.0, 0.0)  # a weight of zero has no gradient
    for i, (found, wanted) in enumerate(zip(orders(own), orders(plain), strict=True)):
        wanted = wanted * dead if i == 4 else wanted
        assert error(found, wanted) < 1e-9, i


def test_a_second_gradient_counts_an_input_once_that_another_was_computed_from() -> None:
    """The state depends on the mixture through an earlier cell, as in every supernet."""
    mixture = noise(1, 3, address=1).softmax(-1).requires_grad_()
    start = noise(2, 2, 4, 4)

    def loss(operator: Any) -> Tensor:
        state = start
        for _ in range(2):
            state = operator(state)
        first = torch.autograd.grad(state.pow(3).sum(), mixture, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), mixture)[0]

    found = loss(lambda x: mixed_edge(x, mixture, norm=Norm())[0][0])
    wanted = loss(lambda x: plain_edge(x, mixture, [], Norm(), 1, None, None)[0])
    assert error(found, wanted) < 1e-10


def test_transforms() -> None:
    given_ = inputs(1, (2, 2, 4, 4), False)
    weight, mixture, xs = given_["filters"][1], given_["mixture"], noise(3, 2, 2, 4, 4)

    def value(mixture: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        sums, taps = mixed_edge(x, mixture, [weight], [2], norm=Norm())
        return mixed_sum([*sums, *taps], mixture.flatten()[:3], norm=Norm("group", 2)).pow(3).sum()

    def loop(function: Any) -> Tensor:
        return torch.stack([function(mixture, weight, x) for x in xs])

    assert torch.allclose(vmap(value, (None, None, 0))(mixture, weight, xs), loop(value))
    for argument in (0, 1, 2):
        assert torch.allclose(vmap(grad(value, argument), (None, None, 0))(mixture, weight, xs), loop(grad(value, argument)))
    leaf = mixture.clone().requires_grad_()
    gradient = torch.autograd.grad(value(leaf, weight, xs[0]), leaf)[0]
    assert torch.allclose(jacrev(value)(mixture, weight, xs[0]), gradient)
    direction = noise(*mixture.shape, address=50)
    assert torch.allclose(jvp(lambda m: value(m, weight, xs[0]), (mixture,), (direction,))[1], (gradient * direction).sum())
    twice = torch.autograd.grad(torch.autograd.grad(value(leaf, weight, xs[0]), leaf, create_graph=True)[0].square().sum(), leaf)[
        0
    ]
    second = hessian(value)(mixture, weight, xs[0]).flatten(3).flatten(0, 2)
    assert torch.allclose(2 * second.flatten().unflatten(0, (leaf.numel(), -1)) @ gradient.flatten(), twice.flatten())
    compiled = torch.compile(value, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(mixture, weight, xs[0]), value(mixture, weight, xs[0]))


def test_a_weight_of_zero_lets_nothing_through() -> None:
    dead = torch.full((4, 2, 3, 3), float("nan"), dtype=torch.float64)
    alive, weights = noise(4, 2, 3, 3).requires_grad_(), torch.tensor([0.0, 0.5], dtype=torch.float64, requires_grad=True)
    out = mixed_sum([dead, alive], weights, norm=Norm())
    wanted = mixed_sum([alive], weights[1:], norm=Norm())
    assert torch.equal(out, wanted)
    gradients = torch.autograd.grad(out.square().sum(), (alive, weights))
    assert torch.equal(gradients[0], torch.autograd.grad(wanted.square().sum(), alive)[0])
    assert gradients[1][0] == 0
    assert gradients[1][1] != 0
    mixed = torch.cat([dead[:2], alive[2:].detach()])
    rows = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    half = mixed_sum([mixed, alive], rows, norm=Norm("group", 2))
    assert error(half, torch.cat([plain_norm(alive[:2], Norm("group", 2)), plain_norm(alive[2:], Norm("group", 2))])) < 1e-12


def test_operations_that_no_edge_takes_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "max_pool", None)
    hard = torch.tensor([[0.0, 1.0, 0.0]])
    soft = torch.tensor([[0.2, 0.5, 0.3]], requires_grad=True)
    x = noise(2, 2, 4, 4).float().requires_grad_()
    straight = hard - soft.detach() + soft
    (total,), _ = mixed_edge(x, straight, norm=Norm())
    assert error(total, plain_norm(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), Norm()).double()) < 1e-6
    gradient = torch.autograd.grad(total.pow(3).sum(), soft)[0]
    assert gradient[0, 1] != 0
    assert gradient[0, 0] == gradient[0, 2] == 0


def test_an_architecture_pass_forms_no_weight_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "weight_gradient", None)
    given_ = converted(inputs(1, (2, 4, 5, 5), False), ("x", "mixture"), torch.float32, "channels_last")
    outputs = run(given_, Norm(), 1)
    assert all(g is not None for g in torch.autograd.grad(sum(y.sum() for y in outputs), (given_["x"], given_["mixture"])))


def test_outputs_that_are_not_used_need_no_gradient() -> None:
    given_ = inputs(1, (2, 4, 5, 5), False)
    x, mixture = given_["x"].requires_grad_(), given_["mixture"].requires_grad_()
    outputs = run(given_, Norm(), 1)
    wanted = plain_edge(x, mixture, given_["filters"], Norm(), 1, None, None)
    for used in ([1], [3], [0, 4]):
        leaves = [x, mixture] if used[0] < 2 else [x]
        pairs = [
            torch.autograd.grad(sum(ys[i].pow(2).sum() for i in used), leaves, retain_graph=True) for ys in (outputs, wanted)
        ]
        assert error(pairs[0][0], pairs[1][0]) < 1e-12
    only = torch.autograd.grad(run(given_ | {"x": x.detach()}, Norm(), 1)[1].pow(2).sum(), mixture)[0]
    assert error(only, torch.autograd.grad(wanted[1].pow(2).sum(), mixture)[0]) < 1e-12


def test_a_batch_of_no_samples() -> None:
    given_ = inputs(1, (0, 4, 5, 5), False) | {"filters": []}
    x, mixture = given_["x"].requires_grad_(), given_["mixture"].requires_grad_()
    sums, _ = mixed_edge(x, mixture, norm=Norm())
    total = mixed_sum(sums, mixture[0, 0, :2], norm=Norm("group", 2))
    assert total.shape == (0, 4, 5, 5)
    assert torch.autograd.grad(total.sum(), mixture)[0].abs().sum() == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"x": torch.ones(2, 4, 5, 5, dtype=torch.int64)}, r"x: expected torch.float32.* got torch.int64 \(2, 4, 5, 5\)"),
        ({"x": torch.ones(4, 5, 5)}, r"x: expected \(B, C, H, W\), got \(4, 5, 5\)"),
        ({"mixture": torch.ones(2, 4)}, r"mixture: expected \(E, 3\) or \(R, E, 3\), got \(2, 4\)"),
        ({"mixture": torch.ones(3, 2, 3)}, r"mixture: expected rows that divide the 4 samples, got \(3, 2, 3\)"),
        ({"mixture": torch.ones(2, 3, dtype=torch.int32)}, "mixture: expected a floating-point dtype, got torch.int32"),
        ({"stride": 3}, "stride: expected 1 or 2, got 3"),
        ({"dilations": (1,)}, "dilations: expected a positive one for each of the 0 filters"),
        ({"filters": [torch.ones(4, 1, 2, 2)], "dilations": (1,)}, r"filters\[0\]: expected \(4, 1, kh, kw\), both odd, got"),
        ({"filters": [torch.ones(4, 1, 3, 3).double()], "dilations": (1,)}, r"filters\[0\]: expected torch.float32"),
        ({"norm": Norm("batch", 3)}, "norm: expected groups of samples that divide the batch of 4"),
        ({"norm": Norm("group", 3)}, "norm: expected groups that divide the 4 channels, got 3"),
        ({"scale": torch.ones(2, 4)}, r"scale: expected \(2, 2, 4\), got \(2, 4\)"),
        ({"mixture": torch.ones(2, 3, device="meta")}, r"mixture: expected on cpu, got \(2, 3\) on meta"),
    ],
)
def test_bad_arguments_of_a_group_are_named(change: dict[str, Any], problem: str) -> None:
    arguments: dict[str, Any] = {"x": torch.ones(4, 4, 5, 5), "mixture": torch.ones(2, 3), "norm": Norm()} | change
    with pytest.raises((TypeError, ValueError), match=problem):
        mixed_edge(arguments.pop("x"), arguments.pop("mixture"), **arguments)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"terms": []}, "terms: expected at least one"),
        ({"terms": [torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 5)]}, r"terms\[1\]: expected \(2, 3, 4, 4\) as the first term"),
        ({"weights": torch.ones(2)}, r"weights: expected \(1\) or \(R, 1\), got \(2,\)"),
        ({"total": torch.ones(2, 3, 4, 4).double()}, "total: expected torch.float32 as the terms, got torch.float64"),
        ({"shift": torch.ones(3)}, r"shift: expected \(1, 3\), got \(3,\)"),
    ],
)
def test_bad_arguments_of_a_sum_are_named(change: dict[str, Any], problem: str) -> None:
    arguments: dict[str, Any] = {"terms": [torch.ones(2, 3, 4, 4)], "weights": torch.ones(1), "norm": Norm()} | change
    with pytest.raises((TypeError, ValueError), match=problem):
        mixed_sum(arguments.pop("terms"), arguments.pop("weights"), **arguments)


@pytest.mark.parametrize("kind", [{"kind": "layer"}, {"groups": 0}, {"eps": -1.0}])
def test_bad_norms_are_named(kind: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="norm: expected"):
        Norm(**kind)
