"""Regenerates the closed-form inputs and weights of tests/golden/metaticket.json (its key "recipe")."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.kernels.masked import threshold
from engine.learning.inner import Params
from engine.learning.masking import MaskedNetwork, score_name
from engine.learning.tasks import Task
from engine.spaces.networks import MLP


@cache
def golden() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "golden" / "metaticket.json").read_text())


def fill(shape: tuple[int, ...], a: float, b: float, f: Any = torch.sin) -> Tensor:
    return f(a * torch.arange(math.prod(shape), dtype=torch.float64) + b).view(shape)


def golden_network(case: dict[str, Any]) -> tuple[MaskedNetwork, Params]:
    """The masked MLP of a case and its parameters, scores among them."""
    with torch.device("meta"):
        model = MLP(case["input"], case["sizes"], case["ways"])
    params: Params = {}
    for name, like in model.named_parameters():
        layer = int(name.split(".")[1]) + 1 if name.startswith("features") else len(case["sizes"]) + 1
        shape = tuple(like.shape)
        if name.endswith("normalize.weight"):
            params[name] = 1 + 0.1 * fill(shape, 0.9, 0.4 * layer)
        elif name.endswith("normalize.bias"):
            params[name] = 0.1 * fill(shape, 1.3, 0.5 * layer, torch.cos)
        elif name.endswith("bias"):
            params[name] = 0.05 * fill(shape, 1.1, 0.2 * layer)
        else:
            params[name] = 2 / math.sqrt(shape[1]) * fill(shape, 0.7, 0.3 * layer)
    thresholds = {}
    for name, layer in [(name, int(name.split(".")[1]) + 1) for name in params if name.endswith("linear.weight")]:
        shape = tuple(params[name].shape)
        params[score_name(name)] = math.sqrt(6 / shape[1]) * fill(shape, 1.7, 0.6 * layer, torch.cos)
        thresholds[name] = threshold(params[score_name(name)], case["p_init"])
    return MaskedNetwork(model, thresholds), params


def golden_task(case: dict[str, Any]) -> Task:
    samples = case["ways"] * case["shots"]
    x = [0.5 + 0.5 * fill((samples, case["input"]), 0.37, shift) for shift in (0.0, 1.0)]
    labels = torch.arange(samples) % case["ways"]
    return Task(x[0], labels, x[1], labels)


def golden_name(name: str) -> str:
    """``features.0.linear.weight_score`` -> ``_module.features.1.0.linear.weight_score``, phi -> ``..._before_pruned``."""
    name = name.replace("features.", "features.1.")
    return f"_module.{name}" + ("_before_pruned" if name.endswith("linear.weight") else "")


def assert_matches(actual: Tensor, expected: dict[str, Any], *, rtol: float, atol: float) -> None:
    """Compare a tensor with a golden record of sums, probes and, where it is small, all values."""
    flat = actual.detach().flatten()
    scale = expected["abs_sum"] / max(1, expected["numel"])
    assert flat.numel() == expected["numel"]
    probes = {int(index): value for index, value in expected["at"].items()} | dict(enumerate(expected.get("values", [])))
    found = torch.stack([flat[index] for index in probes])
    torch.testing.assert_close(found, torch.tensor(list(probes.values()), dtype=flat.dtype), rtol=rtol, atol=atol * (1 + scale))
    for name, value in (("sum", flat.sum()), ("abs_sum", flat.abs().sum()), ("sq_sum", flat.square().sum())):
        tolerance = rtol * max(abs(expected[name]), expected["abs_sum"] if name == "sum" else 0) + atol
        assert abs(value.item() - expected[name]) <= tolerance, name
