"""The Triton kernels of the mixed edge group, run element by element on the CPU, in a process of its own (see aot.py)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec

import pytest
import torch
from aot import interpreted
from torch import Tensor

from engine.kernels.mixed_edge.arguments import factors
from engine.kernels.mixed_edge.norm import Norm
from engine.kernels.mixed_edge.reference import Setting, group_reference, sum_reference
from engine.runs.streams import stream

# (normalisation, rows of the mixture, stride, precision, channels innermost, shape, parts): every value of each occurs.
GROUPS: dict[str, tuple[Norm, int, int, torch.dtype, bool, tuple[int, int, int, int], int]] = {
    "batch": (Norm("batch"), 1, 1, torch.float32, True, (2, 4, 5, 6), 1),
    "batch, rows, strided": (Norm("batch", 2), 2, 2, torch.float32, True, (2, 4, 5, 6), 1),
    "group, half precision": (Norm("group", 2), 2, 1, torch.bfloat16, True, (2, 2, 3, 3), 1),
    "group, planar, strided": (Norm("group", 2), 1, 2, torch.float32, False, (2, 2, 4, 3), 1),
    "none, planar, single position": (Norm("none"), 1, 1, torch.float32, False, (1, 2, 1, 1), 1),
    "several blocks": (Norm("batch"), 1, 1, torch.float32, True, (1, 18, 7, 9), 1),
    "partial": (Norm("batch", 2), 2, 1, torch.float32, True, (2, 8, 3, 4), 4),
    "partial, planar, strided": (Norm("group", 1), 1, 2, torch.float32, False, (2, 4, 5, 3), 2),
    "partial, half precision, strided": (Norm("batch"), 1, 2, torch.bfloat16, True, (2, 6, 3, 5), 3),
}
SUMS: dict[str, tuple[Norm, int, torch.dtype, bool, int, int]] = {
    "batch": (Norm("batch"), 1, torch.float32, True, 3, 1),
    "batch, rows, six terms": (Norm("batch", 2), 2, torch.float32, True, 6, 1),
    "group, half precision": (Norm("group", 2), 1, torch.bfloat16, True, 2, 1),
    "none, planar": (Norm("none"), 2, torch.float32, False, 4, 1),
    "partial, six terms": (Norm("batch"), 1, torch.float32, True, 6, 4),
    "partial, planar": (Norm("group", 2), 2, torch.float32, False, 2, 2),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    if find_spec("triton") is None:
        pytest.skip("triton, whose interpreter runs the kernels, is not installed")
    return interpreted(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("case", GROUPS)
def test_group(found: dict[str, list[float]], case: str) -> None:
    value, gradient = found[f"group {case}"]
    assert (value, gradient) < ((1e-2, 1e-2) if GROUPS[case][3] == torch.bfloat16 else (1e-5, 1e-4))
    assert gradient < (1e-2 if GROUPS[case][3] == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("case", SUMS)
def test_sum(found: dict[str, list[float]], case: str) -> None:
    value, gradient = found[f"sum {case}"]
    assert value < (1e-2 if SUMS[case][2] == torch.bfloat16 else 1e-5)
    assert gradient < (1e-2 if SUMS[case][2] == torch.bfloat16 else 1e-4)


def test_a_weight_of_zero_lets_nothing_through(found: dict[str, list[float]]) -> None:
    assert found["zero"] == [0.0, 0.0]


def noise(*shape: int, address: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-mixed-edge-interpreter", address), dtype=torch.float64)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach().double() - wanted.detach()).norm() / wanted.detach().norm().clamp(min=1e-12))


def interpret_group(case: str) -> list[float]:
    """The largest errors of values and of first gradients, which second gradients are made of as well."""
    from engine.kernels.mixed_edge.device import edge_forward, edge_gradients

    norm, rows, stride, dtype, last, shape, parts = GROUPS[case]
    channels, edges = shape[1] // parts, 2
    x = noise(*shape).to(dtype).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    mixture = noise(rows, edges, 3, address=1).float().softmax(-1)
    mixture[0, 1, 0] = 0
    if stride == 2:
        mixture[..., 2] = 0
    affine = [noise(edges, 3, channels, address=a).float() for a in (2, 3)]
    alive, scaled, offset = factors(mixture, *affine, channels)
    passing = noise(rows, edges, address=10).float() if parts > 1 else None
    filters = [noise(channels, 1, *kernel, address=4 + j).to(dtype) for j, kernel in enumerate(((3, 3), (1, 5), (3, 3)))]
    setting = Setting(norm, stride, (1, 2, 1), parts)
    sums, taps, mean, rstd = edge_forward(setting, alive, x, scaled, offset, passing, filters)

    exact = [None if t is None else t.double().requires_grad_() for t in (x, scaled, offset, passing, *filters)]
    wanted = group_reference(setting, alive, *exact)  # type: ignore[arg-type]
    cotangents = [noise(*y.shape, address=70 + i).to(dtype) for i, y in enumerate(wanted)]
    leaves = [t for t in exact if t is not None]
    truth = torch.autograd.grad(wanted, leaves, [g.double() for g in cotangents])
    given = alive, x, scaled, passing, mean, rstd, cotangents[:edges], cotangents[edges:], filters
    dx, *of_weights, dpassing, dfilters = edge_gradients(setting, *given, True, True)
    found = [dx, *of_weights, *([] if passing is None else [dpassing]), *dfilters]
    return [largest([*sums, *taps], wanted), largest(found, truth)]


def largest(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    return max(error(*pair) for pair in zip(found, wanted, strict=True))


def interpret_sum(case: str) -> list[float]:
    from engine.kernels.mixed_edge.device import sum_forward, sum_gradients

    norm, rows, dtype, last, count, parts = SUMS[case]
    layout = torch.channels_last if last else torch.contiguous_format
    terms = [noise(2, 4, 5, 3, address=i).to(dtype).contiguous(memory_format=layout) for i in range(count)]
    total = noise(2, 4 * parts, 5, 3, address=count).to(dtype).contiguous(memory_format=layout)
    alive, scaled, offset = factors(noise(rows, count, address=20).float(), None, noise(count, 4, address=21).float(), 4)
    setting = Setting(norm, 1, (), parts)
    found, mean, rstd = sum_forward(setting, alive, scaled, offset, total, terms)
    assert offset is not None
    leaves = [t.double().requires_grad_() for t in (scaled, offset, *terms)]
    wanted = sum_reference(norm, alive, leaves[0], leaves[1], total.double(), *leaves[2:], parts=parts)
    g = noise(*wanted.shape, address=70).to(dtype)
    truth = torch.autograd.grad(wanted, leaves, g.double())
    dfactors, doffset, dterms = sum_gradients(setting, alive, scaled, mean, rstd, g, terms, True)
    return [error(found, wanted), largest([dfactors, doffset, *dterms], truth)]


def interpret_zero() -> list[float]:
    """Differences between a sum with a term of NaN and weight zero, and one without it."""
    from engine.kernels.mixed_edge.device import sum_forward, sum_gradients

    setting, term, g = Setting(Norm(), 1, ()), noise(2, 4, 3, 3).float(), noise(2, 4, 3, 3, address=1).float()
    differences = []
    for weights, terms in (
        (torch.tensor([[0.0, 0.5]]), [torch.full_like(term, float("nan")), term]),
        (torch.tensor([[0.5]]), [term]),
    ):
        alive, scaled, _ = factors(weights, None, None, 4)
        value, mean, rstd = sum_forward(setting, alive, scaled, None, None, terms)
        gradient = sum_gradients(setting, alive, scaled, mean, rstd, g, terms, True)[2][-1]
        differences.append((value, gradient))
    return [float((a - b).abs().max()) for a, b in zip(*differences, strict=True)]


def interpret() -> dict[str, list[float]]:
    torch.utils.deterministic.fill_uninitialized_memory = True  # NaN in what torch.empty returns
    torch.use_deterministic_algorithms(True)
    found = {f"group {case}": interpret_group(case) for case in GROUPS}
    return found | {f"sum {case}": interpret_sum(case) for case in SUMS} | {"zero": interpret_zero()}


if __name__ == "__main__":
    print(json.dumps(interpret()))
