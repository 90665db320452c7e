"""The Triton kernels of masked layers and of the score gradient, run element by element on the CPU, in a process of its own."""

from __future__ import annotations

import json
from importlib.util import find_spec
from itertools import product
from typing import Any

import pytest
import torch
from aot import interpreted
from torch import Tensor

from engine.kernels.masked import keep, mask, pack
from engine.kernels.masked_convolution import Geometry, by_task
from engine.kernels.score_gradient import score_gradient_reference
from engine.runs.streams import stream

# (T, N, O, I): one of everything; ragged sizes; rows of each tile and more than the largest; inputs of several splits.
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 17, 33, 5), (1, 70, 66, 3), (1, 25, 9, 200)]
DTYPES = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1e-2}
# (T, N, C, H, W), (O, C / groups, kh, kw), stride, padding, dilation, groups: one of everything, axes that differ, depthwise.
CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, int], tuple[int, int], tuple[int, int], int]] = [
    ((1, 1, 1, 1, 1), (1, 1, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 2, 3, 5, 7), (34, 3, 3, 3), (2, 2), (1, 1), (1, 1), 1),
    ((1, 2, 66, 7, 6), (4, 33, 3, 2), (2, 1), (1, 0), (1, 2), 2),
    ((1, 2, 3, 5, 9), (3, 1, 1, 3), (1, 2), (0, 1), (1, 1), 3),
]
# (S, T, N, M, O, I)
STEPS = [(1, 1, 1, 1, 1, 1), (1, 3, 5, 10, 7, 9), (3, 2, 17, 34, 33, 35)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    if find_spec("triton") is None:
        pytest.skip("triton, whose interpreter runs the kernels, is not installed")
    return interpreted(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked_by", ["scores", "bits"])
@pytest.mark.parametrize("kind", ["forward", "transposed", "weight gradient", "score gradient"])
def test_masked_products(found: dict[str, float], kind: str, masked_by: str, dtype: str) -> None:
    errors = {name: error for name, error in found.items() if name.startswith(f"{kind} {masked_by} {dtype}")}
    assert len(errors) == len(SHAPES)
    assert max(errors.values()) < DTYPES[dtype], errors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked_by", ["scores", "bits"])
@pytest.mark.parametrize("kind", ["convolution", "input gradient", "products"])
def test_masked_convolutions(found: dict[str, float], kind: str, masked_by: str, dtype: str) -> None:
    errors = {name: error for name, error in found.items() if name.startswith(f"{kind} {masked_by} {dtype}")}
    assert len(errors) == len(CONVOLUTIONS)
    assert max(errors.values()) < DTYPES[dtype], errors


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("shape", STEPS, ids=str)
def test_score_gradient(found: dict[str, float], shape: tuple[int, ...], order: str) -> None:
    assert found[f"{order} order {shape}"] < 1e-6


@pytest.mark.parametrize("case", ["guarded", "strides"])
def test_layouts(found: dict[str, float], case: str) -> None:
    assert found[case] < 1e-6


def noise(*shape: int, address: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-masked-interpreter", address))


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=1e-9))


def guarded(x: Tensor) -> Tensor:
    """``x`` inside a larger tensor of NaN, so that a read outside of it shows."""
    larger = torch.full([size + 4 for size in x.shape], float("nan"), dtype=x.dtype)
    return larger[tuple(slice(2, -2) for _ in x.shape)].copy_(x)


def operands(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """x (T, N, I), weight (T, O, I), scores (O, I), the threshold and a cotangent (T, N, O)."""
    tasks, rows, outputs, inputs = shape
    x, weight = noise(tasks, rows, inputs).to(dtype), noise(tasks, outputs, inputs, address=1).to(dtype)
    scores, cotangent = noise(outputs, inputs, address=2), noise(tasks, rows, outputs, address=3).to(dtype)
    return x, weight, scores, scores.flatten()[outputs * inputs // 3], cotangent


def products(name: str, given: tuple[Tensor, ...], by_bits: bool) -> dict[str, float]:
    from engine.kernels.triton_masked import launch_masked_gemm, launch_masked_gradients

    x, weight, scores, sigma, cotangent = given
    bits = pack(mask(scores, sigma)) if by_bits else None
    wide = keep(weight.double(), scores.double(), sigma.double())
    widen = x.dtype == torch.bfloat16  # the interpreter cannot multiply it
    forward = launch_masked_gemm(x, weight, scores, sigma, bits, False, widen)
    back = launch_masked_gemm(cotangent, weight.mT, scores.mT, sigma, bits, True, widen)
    gradients = launch_masked_gradients(cotangent, x, weight, scores, sigma, bits, widen)
    dense = cotangent.double().mT @ x.double()
    return {
        f"forward {name}": error(forward, x.double() @ wide.mT),
        f"transposed {name}": error(back, cotangent.double() @ wide),
        f"weight gradient {name}": error(gradients[0], keep(dense, scores.double(), sigma.double())),
        f"score gradient {name}": error(gradients[1], (dense * weight.double()).sum(0)),
    }


def convolved(name: str, case: Any, dtype: torch.dtype, by_bits: bool) -> dict[str, float]:
    from engine.kernels.triton_masked_conv import launch_conv_products, launch_masked_conv

    shape, kernel, *settings = case
    geometry = Geometry(*settings)
    x, weight = guarded(noise(*shape).to(dtype)), noise(shape[0], *kernel, address=1).to(dtype)
    scores, sigma = noise(*kernel, address=2), torch.tensor(0.1)
    size = geometry.sizes(shape[3:], kernel[2:])
    cotangent = guarded(noise(*shape[:2], kernel[0], *size, address=3).to(dtype))
    bits, widen = pack(mask(scores, sigma)) if by_bits else None, dtype == torch.bfloat16
    given = (weight, scores, sigma, bits, geometry)
    leaves = [x.double().requires_grad_(), keep(weight.double(), scores.double(), sigma.double()).requires_grad_()]
    wanted = by_task(leaves[0], leaves[1], geometry)
    dx, products = torch.autograd.grad(wanted, leaves, cotangent.double())
    forward = launch_masked_conv(x, *given, size, back=False, widen=widen)
    back = launch_masked_conv(cotangent, *given, (shape[3], shape[4]), back=True, widen=widen)
    return {
        f"convolution {name}": error(forward, wanted.detach()),
        f"input gradient {name}": error(back, dx),
        f"products {name}": error(launch_conv_products(cotangent, x, (kernel[2], kernel[3]), geometry, widen), products),
    }


def steps(shape: tuple[int, ...], second_order: bool) -> float:
    from engine.kernels.triton_score_gradient import launch_score_gradient

    count, tasks, rows, bent, outputs, inputs = shape
    weight, scores, sigma = noise(outputs, inputs), noise(outputs, inputs, address=1), torch.tensor(0.1)
    query, support, curvature = (
        (noise(*lead, outputs, address=place), noise(*lead, inputs, address=place + 1))
        for place, lead in ((2, (tasks, rows)), (4, (count, tasks, rows)), (6, (count, tasks, bent)))
    )
    found = launch_score_gradient(query, support, curvature if second_order else None, weight, scores, sigma, 0.03)
    wide = [left.double().mT @ right.double() for left, right in (query, support, curvature)]
    wide_bent = wide[2] if second_order else None
    return error(found, score_gradient_reference(weight.double(), mask(scores, sigma), wide[0], wide[1], wide_bent, 0.03))


def interpret() -> dict[str, float]:
    torch.utils.deterministic.fill_uninitialized_memory = True  # NaN in what torch.empty returns
    torch.use_deterministic_algorithms(True)
    errors: dict[str, float] = {}
    for shape, dtype, by_bits in product(SHAPES, DTYPES, (False, True)):
        name = f"{'bits' if by_bits else 'scores'} {dtype} {shape}"
        errors |= products(name, operands(shape, getattr(torch, dtype)), by_bits)
    for case, dtype, by_bits in product(CONVOLUTIONS, DTYPES, (False, True)):
        name = f"{'bits' if by_bits else 'scores'} {dtype} {case[0]}"
        errors |= convolved(name, case, getattr(torch, dtype), by_bits)
    given = operands((2, 5, 6, 7))
    outside = (*(guarded(tensor) for tensor in given[:3]), given[3], guarded(given[4]))
    errors["guarded"] = max(products("", outside, False).values())
    turned = (*(tensor.mT.contiguous().mT for tensor in given[:3]), given[3], given[4].mT.contiguous().mT)
    errors["strides"] = max(max(products("", turned, by_bits).values()) for by_bits in (False, True))
    for shape, second_order in product(STEPS, (True, False)):
        errors[f"{'second' if second_order else 'first'} order {shape}"] = steps(shape, second_order)
    return errors


if __name__ == "__main__":
    print(json.dumps(interpret()))
