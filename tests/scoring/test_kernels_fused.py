"""Tangent kernels through the operator that a GPU takes, forced on the CPU: the same kernels, by one code path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_recipe import golden, golden_images, golden_supernet
from kernel_models import CASES, N
from test_kernels_models import close, expected
from torch import Tensor

from engine.scoring import rows
from engine.scoring.condition import condition_number
from engine.scoring.kernels import gram, ntk
from engine.spaces.mixture import full, uniform, without
from engine.spaces.space import FEW_SHOT


@pytest.fixture
def operator_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranks of what the operator was given."""
    calls: list[tuple[int, int]] = []
    operator = rows.add_jacobian_gram

    def counted(total: Tensor, left: Tensor, right: Tensor) -> None:
        calls.append((left.dim(), right.dim()))
        operator(total, left, right)

    monkeypatch.setattr(rows, "add_jacobian_gram", counted)
    return calls


def everything(name: str, parameter: Any) -> str:
    return "all"


@pytest.mark.parametrize("outputs", ["sum", "all"])
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_the_definition(name: str, outputs: Any) -> None:
    model, inputs = CASES[name]()
    close(gram(model, inputs, everything, outputs=outputs, fused=True)["all"], expected(name, outputs))


@pytest.mark.parametrize(
    ("name", "ranks"), [("dense", (4, 4)), ("depthwise", (5, 7)), ("linear_on_leading_shapes", (4, 4)), ("attention", (4, 4))]
)
def test_the_operator_is_taken_where_it_covers_a_layer(name: str, ranks: Any, operator_calls: list[tuple[int, int]]) -> None:
    model, inputs = CASES[name]()
    gram(model, inputs, everything)
    assert not operator_calls
    gram(model, inputs, everything, fused=True)
    assert ranks in operator_calls


@pytest.mark.parametrize("name", ["dense", "depthwise", "one_dimensional", "linear_on_leading_shapes", "tied_weights"])
def test_groups_are_what_they_are_alone(name: str) -> None:
    model, (x,) = CASES[name]()
    pairs = x[: N - N % 2]
    together = gram(model, pairs, everything, groups=2, fused=True)["all"]
    for own, part in zip(together, pairs.chunk(2), strict=True):
        close(own, ntk(model, part, params="all"))


def test_golden_ablations() -> None:
    """The supernet without an operation, all of them in one batch, by the operator."""
    ablations = list(golden()["ablations_round0"])[:4]
    alive = without(full(FEW_SHOT), [tuple(map(int, case.split(","))) for case in ablations])
    model, images = golden_supernet().double(), golden_images().double()
    inputs = (images.repeat(len(alive), 1, 1, 1), uniform(alive, dtype=torch.float64))
    plain, fused = (gram(model, inputs, everything, groups=len(alive), fused=flag)["all"] for flag in (False, True))
    close(fused, plain)
    for own, other in zip(condition_number(plain), condition_number(fused), strict=True):  # type: ignore[arg-type]
        assert own.status == other.status
        assert abs(own.value / other.value - 1) < 1e-9 or own.status != "ok"
