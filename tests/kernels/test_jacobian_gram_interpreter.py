"""The Triton kernels of the Jacobian Gram, run element by element on the CPU, in a process of its own (see aot.py)."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from aot import interpreted
from torch import Tensor

from engine.kernels.jacobian_gram import jacobian_gram_reference
from engine.runs.streams import stream

# (G, R, R', Q, O, I): one of everything; ragged sizes; each tile's rows, full or not; more than the largest tile's; shared rows.
DENSE = [
    (1, 1, 1, 1, 1, 1),
    (2, 5, 5, 3, 33, 35),
    (2, 16, 16, 17, 5, 3),
    (1, 30, 30, 40, 17, 33),
    (1, 33, 33, 5, 6, 7),
    (1, 66, 22, 3, 17, 5),
    (1, 130, 130, 2, 3, 4),
]
DEPTHWISE = [(1, 1, 1, 1, 1, 1, 1, 1), (2, 6, 3, 5, 4, 17, 3, 3), (1, 2, 2, 7, 6, 5, 1, 5), (1, 3, 3, 4, 4, 3, 5, 5)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    if find_spec("triton") is None:
        pytest.skip("triton, whose interpreter runs the kernels, is not installed")
    return interpreted(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", DENSE, ids=str)
def test_dense(found: dict[str, float], shape: tuple[int, ...], dtype: str) -> None:
    assert found[f"dense {shape} {dtype}"] < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", DEPTHWISE, ids=str)
def test_depthwise(found: dict[str, float], shape: tuple[int, ...], dtype: str) -> None:
    assert found[f"depthwise {shape} {dtype}"] < 1e-6


@pytest.mark.parametrize("case", ["strides", "splits", "guarded", "smallest eigenvalue"])
def test_dense_case(found: dict[str, float], case: str) -> None:
    assert found[case] < (1e-4 if case == "smallest eigenvalue" else 1e-6)


def test_kernel_is_exactly_symmetric_and_repeats_its_bits(found: dict[str, float]) -> None:
    assert found["asymmetry"] == 0
    assert found["repeat"] == 0


def noise(*shape: int, address: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-jacobian-gram-interpreter", address))


def error(gram: Tensor, left: Tensor, right: Tensor) -> float:
    wanted = jacobian_gram_reference(left, right)
    return float((gram - wanted).norm() / wanted.norm())


def guarded(x: Tensor) -> Tensor:
    """``x`` inside a larger tensor of NaN, so that a read outside of it shows."""
    larger = torch.full([size + 4 for size in x.shape], float("nan"))
    inside = larger[tuple(slice(2, -2) for _ in x.shape)]
    return inside.copy_(x)


def interpret() -> dict[str, float]:
    from engine.kernels import jacobian_gram as module
    from engine.kernels.triton_jacobian_gram import SMALL_TILES, TILES, launch_depthwise_rows, launch_jacobian_gram

    torch.utils.deterministic.fill_uninitialized_memory = True  # NaN in what torch.empty returns
    torch.use_deterministic_algorithms(True)
    errors = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        for shape in DENSE:
            groups, rows, shared, positions, outputs, inputs = shape
            left, right = noise(groups, rows, positions, outputs).to(dtype), noise(groups, shared, positions, inputs).to(dtype)
            errors[f"dense {shape} {name}"] = error(launch_jacobian_gram(left, right, "ieee"), left, right)
        for shape in DEPTHWISE:
            groups, rows, shared, *image, kh, kw = shape
            left, right = noise(groups, rows, *image).to(dtype), noise(groups, shared, *image, kh, kw, address=1).to(dtype)
            gradients = launch_depthwise_rows(left, right).flatten(2).double()
            errors[f"depthwise {shape} {name}"] = error(gradients @ gradients.mT, left, right)

    left, right = noise(2, 20, 5, 6), noise(2, 20, 5, 7, address=1)
    gram = launch_jacobian_gram(left, right, "ieee")
    errors["asymmetry"] = float((gram - gram.mT).abs().max())
    errors["repeat"] = float((gram - launch_jacobian_gram(left, right, "ieee")).abs().max())
    errors["guarded"] = error(launch_jacobian_gram(guarded(left), guarded(right), "ieee"), left, right)
    turned = noise(6, 5, 20, 2).permute(3, 2, 1, 0), noise(2, 20, 7, 10, address=1)[..., ::2].mT
    errors["strides"] = error(launch_jacobian_gram(*turned, "ieee"), *turned)
    small = replace(TILES[1], outputs=2, inputs=4)
    errors["splits"] = error(launch_jacobian_gram(left, right, "ieee", small), left, right)
    module.TARGET_PROGRAMS = 2
    errors["splits"] += error(launch_jacobian_gram(left, right, "ieee", small), left, right)
    for tile in (TILES[0], *SMALL_TILES):
        errors["splits"] += error(launch_jacobian_gram(left, right, "ieee", tile), left, right)

    left = noise(1, 1, 64, 20) + 2e-4 * noise(1, 6, 64, 20, address=1)
    right = noise(1, 1, 64, 20, address=2) + 2e-4 * noise(1, 6, 64, 20, address=3)
    wanted = torch.linalg.eigvalsh(jacobian_gram_reference(left, right))[0]
    assert wanted[-1] / wanted[0] >= 1e6
    smallest = torch.linalg.eigvalsh(launch_jacobian_gram(left, right, "ieee"))[0, 0]
    errors["smallest eigenvalue"] = abs(float(smallest / wanted[0]) - 1)
    return errors


if __name__ == "__main__":
    print(json.dumps(interpret()))
