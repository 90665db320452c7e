"""The plain modules that a DARTS step is compared with compute the same step."""

from __future__ import annotations

from itertools import islice

import darts_recipe as recipe
import pytest
import torch

from bench import darts, plain_darts
from bench.registry import Settings, find
from engine.learning.bilevel import FlatNetwork
from engine.learning.hypergradient import Step, second_order
from engine.spaces.darts_supernet import SoftmaxRelaxation, darts_supernet
from engine.spaces.space import DARTS


def test_plain_modules_are_the_same_network() -> None:
    own = darts_supernet(DARTS, cells=4, channels=4, outputs=10).double()
    recipe.fill(own)
    plain = plain_darts.PlainDarts(cells=4, channels=4, outputs=10).double()
    with torch.no_grad():
        for p, q in zip(plain.parameters(), own.parameters(), strict=True):
            p.copy_(q)
    flat, relaxation = FlatNetwork(own), SoftmaxRelaxation(DARTS)
    train, validation = recipe.batch(4, 16, 1), recipe.batch(4, 16, 2)
    alphas = recipe.alphas().requires_grad_()
    losses = [
        lambda w, a, x=x, y=y: torch.nn.functional.cross_entropy(
            flat(w, x.contiguous(memory_format=torch.channels_last), relaxation(a)), y
        )
        for x, y in (train, validation)
    ]
    mine = second_order(*losses, flat.start, recipe.alphas(), Step(0.025, 3e-4), hessian="finite-difference")
    theirs = plain_darts.second_order(plain, alphas, train, validation, 0.025)
    assert float((mine.gradient - theirs).norm() / theirs.norm()) < 1e-6
    assert plain_darts.first_order(plain, alphas, validation).shape == (2, 14, 8)


def test_first_rows_run() -> None:
    rows = find("darts", "cpu").rows(Settings(rounds=1, scale="smoke"))
    found = [(row.configuration["step"], row.method) for row in islice(rows, 2)]
    assert found == [("weights", darts.PLAIN), ("weights", "weights")]


def test_every_method_of_every_case_runs() -> None:
    steps = set()
    for case in darts.cases(Settings(scale="smoke")):
        built = {**case.build("contiguous", 2), **case.build("channels_last", 2)}
        for method, parts in case.methods.items():
            steps.add((case.configuration["step"], method))
            for name in parts:
                assert built[name]() is not None
    assert len(steps) == 11


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_each_side_runs_in_its_own_format(memory_format: str) -> None:
    names = set(darts.calls(3, 2, 8, memory_format, 2))
    assert all(name.startswith("plain") == (memory_format == "contiguous") for name in names)
