"""The Triton kernels of an edge group's convolutions, run element by element on the CPU, in a process of its own (see aot.py)."""

from __future__ import annotations

import json
from importlib.util import find_spec
from itertools import product

import pytest
import torch
from aot import interpreted
from torch import Tensor

from engine.kernels.pointwise import convolution_reference
from engine.runs.streams import stream

# (B, N, I, O, H, W, kh, kw, stride, groups)
CASES = [
    (1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    (2, 4, 3, 5, 5, 7, 1, 1, 1, 2),
    (1, 3, 17, 33, 6, 5, 1, 1, 1, 3),
    (2, 2, 5, 18, 7, 6, 1, 5, 1, 1),
    (1, 2, 3, 4, 7, 6, 1, 5, 2, 2),
    (2, 2, 5, 3, 7, 6, 5, 1, 1, 0),
]
DTYPES = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1e-2}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    if find_spec("triton") is None:
        pytest.skip("triton, whose interpreter runs the kernels, is not installed")
    return interpreted(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolution_and_statistics(found: dict[str, float], case: tuple[int, ...], dtype: str) -> None:
    assert found[f"{case} {dtype}"] < DTYPES[dtype]


@pytest.mark.parametrize("case", ["guarded", "strides", "shared", "large mean"])
def test_layouts_and_values(found: dict[str, float], case: str) -> None:
    assert found[case] < (1e-3 if case == "large mean" else 1e-6)


def noise(*shape: int, address: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-pointwise-interpreter", address))


def guarded(x: Tensor) -> Tensor:
    """``x`` inside a larger tensor of NaN, so that a read outside of it shows."""
    larger = torch.full([size + 4 for size in x.shape], float("nan"), dtype=x.dtype)
    return larger[tuple(slice(2, -2) for _ in x.shape)].copy_(x)


def errors_of(x: Tensor, weight: Tensor, stride: int, groups: int) -> tuple[float, ...]:
    """Relative errors of the output, the means and the variances."""
    from engine.kernels.triton_pointwise import launch_convolution

    found = launch_convolution(x, weight, stride, groups, widen=x.dtype == torch.bfloat16)
    wanted = convolution_reference(x.double(), weight.double(), stride, groups or 1)
    parts = zip(found, wanted, strict=True) if groups else [(found[0], wanted[0])]
    return tuple(float((part.double() - expected).norm() / expected.norm().clamp(min=1e-3)) for part, expected in parts)


def interpret() -> dict[str, float]:
    torch.utils.deterministic.fill_uninitialized_memory = True  # NaN in what torch.empty returns
    torch.use_deterministic_algorithms(True)
    errors = {}
    for case, dtype in product(CASES, DTYPES):
        b, n, i, o, h, w, kh, kw, stride, groups = case
        x, weight = noise(b, n, i, h, w), noise(b, o, i, kh, kw, address=1)
        errors[f"{case} {dtype}"] = max(errors_of(x.to(getattr(torch, dtype)), weight.to(getattr(torch, dtype)), stride, groups))
    x, weight = noise(2, 4, 3, 5, 7), noise(2, 5, 3, 1, 5, address=1)
    errors["guarded"] = max(errors_of(guarded(x), guarded(weight), 1, 2))
    errors["strides"] = max(errors_of(x.movedim(2, -1).contiguous().movedim(-1, 2), weight.mT.contiguous().mT, 2, 2))
    errors["shared"] = max(errors_of(x[0].expand(2, 4, 3, 5, 7), weight, 1, 1))
    errors["large mean"] = errors_of(noise(1, 6, 3, 9, 9) + 1000, torch.ones(1, 1, 3, 1, 1), 1, 1)[2]
    return errors


if __name__ == "__main__":
    print(json.dumps(interpret()))
