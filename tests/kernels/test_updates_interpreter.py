"""The Triton kernels of the updates, run element by element on the CPU, in a process of its own (see aot.py)."""

from __future__ import annotations

import json
from importlib.util import find_spec
from itertools import product
from typing import Any

import pytest
import torch
from aot import interpreted
from torch import Tensor

from engine.kernels.masked import masked, pack
from engine.kernels.updates import AdamRule, adam, reptile, sgd
from engine.runs.streams import stream

SHAPES = [(1,), (37,), (3, 11), (2, 1)]
RATES = ["number", "one", "parameter", "task"]
RULES = [AdamRule(), AdamRule((0.0, 0.9), 1e-3, 0.1), AdamRule(weight_decay=0.1, decoupled=True)]
DTYPES = {"float32": 1e-6, "bfloat16": 1e-2, "float16": 2e-3}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    if find_spec("triton") is None:
        pytest.skip("triton, whose interpreter runs the kernels, is not installed")
    return interpreted(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", ["sgd", "adam", "reptile", "scores"])
def test_kernels_equal_the_functions(found: dict[str, float], kernel: str, dtype: str) -> None:
    errors = {name: error for name, error in found.items() if name.startswith(kernel) and f"torch.{dtype}" in name}
    assert errors
    assert max(errors.values()) < DTYPES[dtype], errors


def test_bits_are_those_of_the_stored_scores(found: dict[str, float]) -> None:
    bits = [wrong for name, wrong in found.items() if name.startswith("bits")]
    assert len(bits) >= 9
    assert not any(bits)


def noise(*shape: int, address: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-updates-interpreter", address))


def rate_of(kind: str, shape: tuple[int, ...]) -> Any:
    if kind in ("number", "one"):
        return 0.1 if kind == "number" else torch.tensor(0.1)
    return torch.linspace(0, 0.3, shape[-1]) if kind == "parameter" else torch.linspace(0.1, 0.3, shape[0])[:, None]


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    return max(float((a.double() - b).norm() / b.norm().clamp(min=1e-9)) for a, b in zip(found, wanted, strict=True))


def wide(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


def optimiser_steps(shape: tuple[int, ...], kind: str, dtype: torch.dtype) -> dict[str, float]:
    """SGD and Adam, every mode."""
    from engine.kernels.triton_updates import launch_adam, launch_sgd

    errors, rate = {}, rate_of(kind, shape)
    name = f"{shape} {kind} {dtype}"
    for momentum, decay in product((None, 0.9), (0.0, 0.2)):
        theta, g, v = [noise(*shape, address=place).to(dtype) for place in range(3)]
        after, velocity = sgd(
            *wide([theta, g]), None if momentum is None else v.double(), rate=rate, momentum=momentum or 0, weight_decay=decay
        )
        launch_sgd(theta, g, None if momentum is None else v, rate, momentum or 0.0, decay, block=16)
        errors[f"sgd {name} {momentum} {decay}"] = error(
            [theta] if velocity is None else [theta, v], [after] if velocity is None else [after, velocity]
        )
    for rule, step in product(RULES, (1, 5, torch.tensor(2))):
        buffers = [noise(*shape, address=place).to(dtype) for place in range(4)]
        buffers[3] = buffers[3].abs()
        wanted = adam(*wide(buffers), int(step), rate=rate, rule=rule)
        launch_adam(*buffers, step, rate, rule, block=16)
        errors[f"adam {name} {rule} {step}"] = error([buffers[0], *buffers[2:]], list(wanted))
    return errors


def outer_steps(size: int, kind: str, dtype: torch.dtype) -> dict[str, float]:
    """Reptile, and the scores' update with the mask's bits and the first weights."""
    from engine.kernels.triton_updates import launch_reptile, launch_update_scores

    errors, name = {}, f"{size} {kind} {dtype}"
    meta, adapted, rate = noise(size).to(dtype), noise(3, size, address=1).to(dtype), rate_of(kind, (1, size))
    wanted = reptile(meta.double(), adapted.double(), rate if kind != "task" else rate[0])
    launch_reptile(meta, adapted, rate if kind != "task" else rate[0], block=16)
    errors[f"reptile {name}"] = error([meta], [wanted])
    if kind in ("number", "one"):
        s, g, v, phi = [noise(size, address=place).to(dtype) for place in range(4)]
        velocity = 0.9 * v.double() + g.double()
        scores, sigma = s.double() - rate * velocity, torch.tensor(0.1).to(dtype)
        bits, first = launch_update_scores(s, g, v, phi, sigma, rate, 0.9, block=16)
        errors[f"scores {name}"] = error([s, v, first], [scores, velocity, masked(phi, s, sigma).double()])
        errors[f"bits {name}"] = float((bits != pack(~(s < sigma))).sum())
    return errors


def interpret() -> dict[str, float]:
    torch.utils.deterministic.fill_uninitialized_memory = True  # NaN in what torch.empty returns
    torch.use_deterministic_algorithms(True)
    errors: dict[str, float] = {}
    for kind, name in product(RATES, DTYPES):
        for shape in SHAPES if name == "float32" else SHAPES[1:3]:
            if kind != "task" or len(shape) == 2:
                errors |= optimiser_steps(shape, kind, getattr(torch, name))
        for size in (1, 8, 37):
            errors |= outer_steps(size, kind, getattr(torch, name))
    return errors


if __name__ == "__main__":
    print(json.dumps(interpret()))
