"""The Triton kernels of the mixed edge group, run element by element on the CPU, in a process of its own (see aot.py)."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from aot import run_apart
from torch import Tensor

from engine.kernels.mixed_edge.arguments import factors
from engine.kernels.mixed_edge.norm import Norm
from engine.kernels.mixed_edge.reference import Setting, group_reference, sum_reference
from engine.runs.streams import stream

# (normalisation, rows of the mixture, stride, precision, channels innermost, shape): every value of each occurs.
GROUPS: dict[str, tuple[Norm, int, int, torch.dtype, bool, tuple[int, int, int, int]]] = {
    "batch": (Norm("batch"), 1, 1, torch.float32, True, (2, 4, 5, 6)),
    "batch, rows, strided": (Norm("batch", 2), 2, 2, torch.float32, True, (2, 4, 5, 6)),
    "group, half precision": (Norm("group", 2), 2, 1, torch.bfloat16, True, (2, 2, 3, 3)),
    "group, planar, strided": (Norm("group", 2), 1, 2, torch.float32, False, (2, 2, 4, 3)),
    "none, planar, single position": (Norm("none"), 1, 1, torch.float32, False, (1, 2, 1, 1)),
    "several blocks": (Norm("batch"), 1, 1, torch.float32, True, (1, 18, 7, 9)),
}
SUMS: dict[str, tuple[Norm, int, torch.dtype, bool, int]] = {
    "batch": (Norm("batch"), 1, torch.float32, True, 3),
    "batch, rows, six terms": (Norm("batch", 2), 2, torch.float32, True, 6),
    "group, half precision": (Norm("group", 2), 1, torch.bfloat16, True, 2),
    "none, planar": (Norm("none"), 2, torch.float32, False, 4),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    if find_spec("triton") is None:
        pytest.skip("triton, whose interpreter runs the kernels, is not installed")
    return run_apart(__file__, tmp_path_factory.mktemp("triton"), interpret=True)


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


def compared(ours: Any, reference: Any, tensors: list[Tensor]) -> list[float]:
    """The largest errors of values and of first gradients, which second gradients are made of as well."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    exact = [tensor.double().requires_grad_() for tensor in tensors]
    found, wanted = ours(*leaves), reference(*exact)
    cotangents = [noise(*y.shape, address=70 + i).to(x.dtype) for i, (x, y) in enumerate(zip(found, wanted, strict=True))]
    gradients = torch.autograd.grad(found, leaves, cotangents)
    truth = torch.autograd.grad(wanted, exact, [g.double() for g in cotangents])
    return [max(error(*pair) for pair in zip(*pairs, strict=True)) for pairs in ((found, wanted), (gradients, truth))]


def interpret_group(case: str) -> list[float]:
    from engine.kernels.mixed_edge.device import DeviceEdge

    norm, rows, stride, dtype, last, shape = GROUPS[case]
    channels, edges = shape[1], 2
    x = noise(*shape).to(dtype).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    mixture = noise(rows, edges, 3, address=1).float().softmax(-1)
    mixture[0, 1, 0] = 0
    if stride == 2:
        mixture[..., 2] = 0
    affine = [noise(edges, 3, channels, address=a).float() for a in (2, 3)]
    filters = [noise(channels, 1, *kernel, address=4 + j).to(dtype) for j, kernel in enumerate(((3, 3), (1, 5), (3, 3)))]
    setting = Setting(norm, stride, (1, 2, 1))

    def with_(formula: Any) -> Any:
        def run(x: Tensor, mixture: Tensor, scale: Tensor, shift: Tensor, *filters: Tensor) -> Any:
            alive, scaled, offset = factors(mixture, scale, shift, channels)
            return formula(setting, alive, x, scaled, offset, *filters)

        return run

    return compared(with_(DeviceEdge.apply), with_(group_reference), [x, mixture, *affine, *filters])


def interpret_sum(case: str) -> list[float]:
    from engine.kernels.mixed_edge.device import DeviceSum

    norm, rows, dtype, last, count = SUMS[case]
    layout = torch.channels_last if last else torch.contiguous_format
    *terms, total = (noise(2, 4, 5, 3, address=i).to(dtype).contiguous(memory_format=layout) for i in range(count + 1))
    weights = noise(rows, count, address=20).float()

    def with_(formula: Any) -> Any:
        def run(weights: Tensor, total: Tensor, *terms: Tensor) -> Any:
            alive, scaled, offset = factors(weights, None, None, 4)
            return [formula(norm, alive, scaled, offset, total, *terms)]

        return run

    return compared(with_(DeviceSum.apply), with_(sum_reference), [weights, total, *terms])


def interpret_zero() -> list[float]:
    """Differences between a sum with a term of NaN and weight zero, and one without it."""
    from engine.kernels.mixed_edge.device import DeviceSum

    term = noise(2, 4, 3, 3).float().requires_grad_()
    weights = torch.tensor([[0.0, 0.5]])
    both = DeviceSum.apply(Norm(), *factors(weights, None, None, 4), None, torch.full_like(term, float("nan")), term)
    one = DeviceSum.apply(Norm(), *factors(weights[:, 1:], None, None, 4), None, term)
    gradients = [torch.autograd.grad(y.square().sum(), term)[0] for y in (both, one)]
    return [float((both - one).abs().max()), float((gradients[0] - gradients[1]).abs().max())]


def interpret() -> dict[str, list[float]]:
    torch.utils.deterministic.fill_uninitialized_memory = True  # NaN in what torch.empty returns
    torch.use_deterministic_algorithms(True)
    found = {f"group {case}": interpret_group(case) for case in GROUPS}
    return found | {f"sum {case}": interpret_sum(case) for case in SUMS} | {"zero": interpret_zero()}


if __name__ == "__main__":
    print(json.dumps(interpret()))
