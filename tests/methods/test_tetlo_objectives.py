"""TETLO's baselines and experiments: what each descends on by plain autograd, and searches end to end."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_tetlo_gradients import Doubled
from torch import Tensor
from torch.nn import functional as F

from engine.cli import run_command
from engine.errors import Preempted
from engine.learning.ordering import ordered_quadruples
from engine.learning.transfers import TRANSFERS
from engine.methods.darts_base import Pass
from engine.methods.darts_data import Halves
from engine.methods.tetlo import BASES, LEARNERS, search
from engine.methods.tetlo_alone import Fitted, Transferred
from engine.methods.tetlo_baselines import Together, TwoLevels
from engine.methods.tetlo_options import TetloOptions
from engine.runs.progress import Progress
from engine.runs.run import Run
from engine.runs.signals import graceful
from engine.runs.streams import stream
from engine.search import main

TINY: dict[str, Any] = {
    "device": "cpu",
    "cells": 2,
    "channels": 2,
    "batch": 8,
    "images": 16,
    "epochs": 1,
    "pairs": 20,
    "interval": 1,
}
WORDS = [word for key, value in TINY.items() for word in (f"--{key}", str(value))]


def learner(data: type[Halves] = Halves, **changes: Any) -> Any:
    options = TetloOptions(**{**TINY, **changes})
    options.validate()
    return LEARNERS[options.objective](options, data(options), BASES[options.base](options))


def doubled(**changes: Any) -> TwoLevels:
    found = learner(Doubled, lam=0.7, gamma=0.6, **changes)
    found.state.w = found.state.w.double()
    found.state.a = found.state.a.double() * 300
    found.state.sgd.velocity = torch.sin(torch.arange(len(found.state.w)).double()) / 9
    return found


def losses(search: TwoLevels, w: Tensor, a: Tensor, half: str) -> Tensor:
    """The training or the validation loss of an objective by its definition."""
    options, data, own = search.options, search.data, len(search.model.start)
    weights = {"main": w[:own], "auxiliary": torch.cat([w[: search.shared], w[own:]])}

    def seen(reader: str, batch: Any, name: str) -> Any:
        model = search.model if reader == "main" else search.other
        return model(weights[reader], a, batch.images, Pass("architecture", 0, 0, name))

    def entropy(reader: str) -> Tensor:
        batch = data.training(0, 0, reader) if half == "training" else data.validating(0, 0, reader)
        name = reader if half == "training" else {"main": "validation", "auxiliary": "auxiliary validation"}[reader]
        return F.cross_entropy(seen(reader, batch, name).logits, batch.labels)

    def fit() -> Tensor:
        assert isinstance(search, Fitted)
        chosen = torch.randperm(options.quadruples, generator=stream(0, "collection-batch", 0, 0))[:2]
        batch = data.taken(search.half[search.collection[:, chosen].flatten()], "collection-augment", 0, 0)
        normal = F.normalize(seen("main", batch, "collection").features, dim=1)
        c = normal @ normal.T
        return (c[4, 6] - c[0, 2]).relu() + (c[5, 7] - c[1, 3]).relu()

    total = entropy("main") if (options.objective, half) != ("fit-main", "validation") else fit()
    if options.objective in ("mtl", "es"):
        total = total + entropy("auxiliary") * (1 if half == "training" else 0.6)
    if (options.objective, half) == ("mtl", "training"):
        batch = data.training(0, 0, "auxiliary")
        places = stream(0, "pairs", 0, 0)
        knowledge = TRANSFERS[options.transfer]
        halves = (seen(reader, batch, "auxiliary") for reader in ("main", "auxiliary"))
        taught, learned = (getattr(half, knowledge.reads) for half in halves)
        total = total + 0.7 * knowledge(taught, learned, knowledge.draw(8, 20, places))
    if (options.objective, half) == ("fit-auxiliary", "training"):
        total = total + 0.7 * fit()
    if (options.objective, half) == ("noaux", "validation"):
        batch = data.validating(0, 0)
        ordered = ordered_quadruples(batch.labels, 20, stream(0, "ordered-pairs", 0, 0))
        normal = F.normalize(seen("main", batch, "validation").features, dim=1)
        for x, y, z, v in ordered.places.T[ordered.there].tolist():
            total = total + 0.7 * ((normal[z] * normal[v]).sum() - (normal[x] * normal[y]).sum()).relu()
    return total


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        ("mtl", {"transfer": "ps"}),
        ("mtl", {"unroll": 2, "auxiliary": "resnet18", "auxiliary_width": 2, "transfer": "pl"}),
        ("es", {"base": "prdarts", "tau_max": 0.5}),
        ("noaux", {}),
        ("fit-auxiliary", {"swapped": 0.5}),
        ("fit-main", {"base": "pcdarts", "partial": 2, "channels": 4}),
        ("att", {}),
    ],
)
def test_descends_on_its_two_levels(objective: str, changes: dict[str, Any]) -> None:
    search = doubled(objective=objective, **changes)
    state, rate = search.state, search.rate(0)
    w, a = state.w.clone().requires_grad_(), state.a.clone().requires_grad_()
    start, m = w, 0.9 * state.sgd.velocity
    for _ in range(search.options.unroll):
        (g,) = torch.autograd.grad(losses(search, w, a, "training"), w, create_graph=True)
        direction = g + 3e-4 * w + m
        w, m = w - rate * direction, 0.9 * direction
    wanted = torch.autograd.grad(losses(search, w, a, "validation"), a)[0]
    found = search.hypergradient(0, 0)
    torch.testing.assert_close(found.gradient, wanted, rtol=1e-7, atol=1e-10)
    search.options = TetloOptions(**{**TINY, "objective": objective, **changes, "base": "darts1st", "lam": 0.7, "gamma": 0.6})
    held = torch.autograd.grad(losses(search, start, a, "validation"), a)[0]
    torch.testing.assert_close(search.hypergradient(0, 0).gradient, held, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("objective", ["es", "noaux", "fit-main"])
def test_searches_end_to_end(objective: str, tmp_path: Path) -> None:
    assert main(["tetlo", *WORDS, "--objective", objective, "--quiet", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "result.json").read_text())["evaluations"] == 2


def test_without_the_main_loss_another_gradient() -> None:
    found = []
    for objective in ("tetlo", "auxiliary-only"):
        tetlo = learner(objective=objective)
        tetlo.iterate(0, 0)
        found.append((tetlo.adam.first, tetlo.sums["search_loss"].clone()))
    assert not torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


def test_es_shares_all_but_the_heads_and_mtl_the_first_cells() -> None:
    shared = {}
    for objective in ("mtl", "es"):
        search = learner(objective=objective)
        assert isinstance(search, Together)
        shared[objective] = len(search.model.start) - search.shared
        assert len(search.state.w) == len(search.model.start) + shared[objective]
    heads = search.model.width * search.data.classes + search.data.classes
    assert shared["es"] == heads < shared["mtl"]


@pytest.mark.parametrize("base", ["darts2nd", "pdarts"])
def test_att_hands_over_the_encoder_but_not_the_head(base: str) -> None:
    stages: dict[str, Any] = {"added_cells": "0,1", "kept": "4", "skip_dropout": "0.3,0.3"} if base == "pdarts" else {}
    search = learner(objective="att", pretraining=2, base=base, **stages)
    assert search.options.all_epochs == (6 if base == "pdarts" else 3)
    for stage in range(2 if base == "pdarts" else 1):
        alphas = search.alphas.clone()
        for number in range(2):
            assert isinstance(search, Transferred)
            before = search.state.w.clone()
            for step in range(search.data.steps):
                search.iterate(3 * stage + number, step)
            learned = search.state.w.clone()
            assert search.end_epoch(3 * stage + number)["pretraining"] is True
            assert search.after(3 * stage + number) is search
            assert not torch.equal(before, learned)
        assert torch.equal(search.state.w[: search.shared], learned[: search.shared])
        assert torch.equal(search.state.w[search.shared :], search.model.start[search.shared :])
        assert not search.state.sgd.velocity.any()
        assert torch.equal(search.alphas, alphas)
        search.iterate(3 * stage + 2, 0)
        assert not torch.equal(search.alphas, alphas)
        line = search.end_epoch(3 * stage + 2)
        assert (line["pretraining"], line["epoch"]) == (False, 3 * stage + 2)
        search = search.after(3 * stage + 2)
        assert search.base.cells == (3 if base == "pdarts" else 2)


@pytest.mark.parametrize("changes", [{"objective": "att"}, {"objective": "mtl", "epochs": 2}])
def test_stopped_search_goes_on_to_the_same_numbers(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TetloOptions(**{**TINY, **changes})
    shown = partial(Progress, quiet=True)
    kind = LEARNERS[options.objective]
    calls: Iterator[int] = iter(range(100))

    class Stopping(kind):  # type: ignore[misc, valid-type]
        def iterate(self, epoch: int, step: int) -> None:
            super().iterate(epoch, step)
            if next(calls) == 1:
                signal.raise_signal(signal.SIGTERM)

    with Run.create(tmp_path / "whole", "", {}) as run, graceful() as stop:
        whole = search(options, run, stop, shown)
    assert whole["evaluations"] == 4
    monkeypatch.setitem(LEARNERS, options.objective, Stopping)
    with Run.create(tmp_path / "parts", "", {}) as run, graceful() as stop, pytest.raises(Preempted):
        search(options, run, stop, shown)
    with Run.resume(tmp_path / "parts") as run, graceful() as stop:
        resumed = search(options, run, stop, shown)
    for name in ("validation_loss", "genotype", "plots", "tables"):
        assert whole[name] == resumed[name], name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--objective", "es", "--auxiliary", "resnet18"],
            "--auxiliary belongs to --objective tetlo, auxiliary-only, mtl, not to es",
        ),
        (["--objective", "noaux", "--transfer", "ps"], "--transfer belongs to"),
        (["--objective", "att", "--pretraining", "0"], "--pretraining must be at least 1"),
        (["--pretraining", "2"], "--pretraining belongs to --objective att, not to tetlo"),
        (["--swapped", "0.5"], "--swapped belongs to --objective fit-auxiliary, fit-main, not to tetlo"),
        (["--objective", "fit-main", "--swapped", "1.5"], "--swapped must be in [0, 1]"),
        (["--objective", "fit-main", "--quadruples", "1"], "--quadruples must be at least 2"),
        (["--objective", "auxiliary-only", "--gamma", "0"], "leaves nothing to descend on"),
        (["--objective", "noaux", "--pairs", "29"], "fewer than --pairs 29"),
    ],
)
def test_bad_options(tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, ["tetlo", *WORDS, *words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
