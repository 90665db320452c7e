"""The bases of the DARTS family as searches of their own: run directories, resuming, batches of options."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pytest
import torch

from engine.cli import run_command
from engine.errors import Preempted
from engine.methods.darts import Darts
from engine.methods.darts_base import Base, Pass
from engine.methods.darts_data import Halves
from engine.methods.darts_learner import Learner, run_search
from engine.methods.darts_options import DartsOptions, FamilyOptions
from engine.methods.pcdarts import PartialBase
from engine.methods.pcdarts_options import PcdartsOptions
from engine.methods.pdarts import ProgressiveBase
from engine.methods.pdarts_options import PdartsOptions
from engine.methods.prdarts import GateBase
from engine.methods.prdarts_options import PrdartsOptions
from engine.runs.progress import Progress
from engine.runs.run import Run
from engine.runs.signals import graceful
from engine.search import main
from engine.spaces.darts import SEARCHED
from engine.spaces.draws import DrawnMixture
from engine.spaces.genotype import Genotype

TINY = {"device": "cpu", "cells": 2, "channels": 4, "batch": 8, "images": 16, "epochs": 2, "alpha_rate": 0.05}
METHODS = {
    "darts": (DartsOptions, Base, {**TINY, "space": "darts-s4", "recompute": True, "order": "first"}),
    "prdarts": (PrdartsOptions, GateBase, {**TINY, "epochs": 3}),
    "pdarts": (PdartsOptions, ProgressiveBase, {**TINY, "added_cells": "0,1,1", "epochs": 1, "warm_up": 0, "max_skips": 1}),
    "pcdarts": (PcdartsOptions, PartialBase, {**TINY, "partial": 2, "warm_up": 1}),
}


def words(name: str) -> list[str]:
    values = {**METHODS[name][2]}
    return [
        word
        for key, value in values.items()
        for word in ([f"--{key.replace('_', '-')}"] if value is True else [f"--{key.replace('_', '-')}", str(value)])
    ]


def learner(name: str, kind: type[Darts] = Darts, **changes: object) -> Darts:
    options_type, base, values = METHODS[name]
    options = options_type(**{**values, **changes})
    options.validate()
    return kind(options, Halves(options), base(options))  # type: ignore[arg-type]


def go_on(search: Learner, directory: Path, *, resume: bool) -> None:
    open_run = Run.resume(directory) if resume else Run.create(directory, "", {})
    with open_run as run, graceful() as stop:
        run_search(search, run, stop, lambda *a, **k: Progress(*a, quiet=True, **k))


@pytest.mark.parametrize("name", METHODS)
def test_leaves_a_whole_run_directory(name: str, tmp_path: Path) -> None:
    assert main([name, *words(name), "--quiet", "--out", str(tmp_path)]) == 0
    space = SEARCHED[METHODS[name][2].get("space", "darts")]
    space.check(Genotype.load(tmp_path / "genotype.json"))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["method"] == name
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(len(lines)))
    assert result["evaluations"] == 2 * len(lines)
    report = (tmp_path / "report.html").read_text()
    if name == "pdarts":
        limits = [candidate["max_skips"] for candidate in result["candidates"]]
        assert limits[0] == 8
        assert limits == sorted(limits, reverse=True)
        assert "limit on skip connections" in report


@pytest.mark.parametrize("name", METHODS)
def test_stopped_search_goes_on_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    stop_at = (learner(name).options.all_epochs - 1, 0)

    class Stopping(Darts):
        def iterate(self, epoch: int, step: int) -> None:
            super().iterate(epoch, step)
            if (epoch, step) == stop_at:
                signal.raise_signal(signal.SIGTERM)

    go_on(learner(name), tmp_path / "whole", resume=False)
    with pytest.raises(Preempted):
        go_on(learner(name, Stopping), tmp_path / "stopped", resume=False)
    go_on(learner(name), tmp_path / "stopped", resume=True)
    whole, stopped = ((tmp_path / side / "metrics.jsonl").read_bytes() for side in ("whole", "stopped"))
    assert whole == stopped


@pytest.mark.parametrize("name", METHODS)
def test_every_preset_is_valid(name: str) -> None:
    options = METHODS[name][0]
    assert issubclass(options, FamilyOptions)
    for preset in options.presets:
        options(**options.preset_values(preset)).validate()


def test_architecture_waits_for_the_warm_up() -> None:
    search = learner("pcdarts")
    before = search.alphas.clone()
    search.iterate(0, 0)
    assert torch.equal(search.alphas, before)
    search.iterate(1, 0)
    moved = search.alphas - before
    assert bool((moved[..., -1] != 0).any())
    assert bool((moved[..., :-1] != 0).any())


def test_partial_channels_learn_by_either_order() -> None:
    moved = {}
    for order in ("first", "second"):
        search = learner("pcdarts", order=order, warm_up=0, weight_rate=0.5)
        search.iterate(0, 0)
        moved[order] = search.state.adam.first.clone()
    assert not torch.equal(moved["first"], moved["second"])


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("pcdarts", ["--partial", "3"], "must be a multiple of 6"),
        ("pcdarts", ["--partial", "0"], "--partial must be at least 1"),
        ("pcdarts", ["--warm-up", "-1"], "--warm-up must be at least 0"),
        ("pcdarts", ["--alpha-clip", "0"], "--alpha-clip must be above 0"),
        ("pcdarts", ["--stem", "svhn"], "--stem"),
        ("prdarts", ["--tau-min", "11"], "0 < tau-min <= tau-max"),
        ("prdarts", ["--gate-dropout", "1"], "must be in [0, 1)"),
        ("prdarts", ["--active", "0"], "--active must be at least 1"),
        ("prdarts", ["--path-reward", "-1"], "--path-reward must be at least 0"),
        ("pdarts", ["--kept", "5"], "3 stages take 2 numbers"),
        ("pdarts", ["--kept", "5,1"], "keeps at least 2 operations"),
        ("pdarts", ["--added-cells", "0,six,12"], "whole numbers with commas"),
        ("pdarts", ["--added-cells", "0,-1,0"], "at least 0"),
        ("pdarts", ["--skip-dropout", "0,0.4,1"], "must be in [0, 1)"),
        ("pdarts", ["--max-skips", "-1"], "--max-skips must be at least 0"),
    ],
)
def test_bad_options(name: str, given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, [name, *words(name), *given, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_stages_deepen_and_drop_operations() -> None:
    search: Learner = learner("pdarts", added_cells="0,1,2", epochs=2, warm_up=1)
    left, depths, starts = [], [], []
    for epoch in range(6):
        for step in range(2):
            search.iterate(epoch, step)
        search.end_epoch(epoch)
        left.append({len(names) for names in search.base.space.edge_operations.values()})
        depths.append(len(search.network._model.cells))  # type: ignore[attr-defined]
        starts.append(search.counts()["adam"])
        search = search.after(epoch)
    assert left == [{8}, {8}, {5}, {5}, {3}, {3}]
    assert depths == [2, 2, 3, 3, 4, 4]
    assert starts == [0, 2] * 3  # each stage moves the architecture in its second epoch only, from the start


def test_skip_dropout_follows_the_published_schedule() -> None:
    base = ProgressiveBase(PdartsOptions(device="cpu"), 1)
    assert base.dropout(25) == pytest.approx(0.4 * 24 / 25)
    assert base.dropout(34) == pytest.approx(0.4 * 15 / 25)
    assert base.dropout(35) == pytest.approx(0.4)
    assert base.dropout(40) == pytest.approx(0.4 * math.exp(-1))
    drawn = base.mixture(torch.zeros(2, 14, 8), Pass("weights", 30, 0))
    assert isinstance(drawn, DrawnMixture)
    assert not isinstance(base.mixture(torch.zeros(2, 14, 8), Pass("validation", 30, 0)), DrawnMixture)


def test_gates_are_one_draw_a_step_and_cool_down() -> None:
    base = GateBase(PrdartsOptions(device="cpu", epochs=5))
    a = torch.zeros(2, 14, 8)
    chosen = [base.mixture(a, Pass("architecture", 1, 0, batch)).alive for batch in ("training", "validation")]
    assert torch.equal(*chosen)
    others = [base.mixture(a, where).alive for where in (Pass("weights", 1, 0), Pass("architecture", 1, 1))]
    assert all(not torch.equal(chosen[0], other) for other in others)
    assert [base.temperature(epoch) for epoch in (0, 2, 4)] == pytest.approx([10, 5.05, 0.1])
    assert GateBase(PrdartsOptions(device="cpu", epochs=1)).temperature(0) == 10


def test_weights_move_before_the_architecture() -> None:
    order = []

    class Watching(Darts):
        def move_weights(self, *arguments: object) -> None:
            order.append("weights")

        def hypergradient(self, *arguments: object) -> object:  # type: ignore[override]
            order.append("architecture")
            raise StopIteration

    with pytest.raises(StopIteration):
        learner("prdarts", Watching).iterate(0, 0)
    with pytest.raises(StopIteration):
        learner("pcdarts", Watching, warm_up=0).iterate(0, 0)
    assert order == ["weights", "architecture", "architecture"]


def test_every_regulariser_moves_the_architecture() -> None:
    moved = []
    for changes in ({}, {"faithful": True}, {"skip_penalty": 5.0}, {"group_penalty": 5.0}, {"path_reward": 5.0}):
        # At the first temperatures of 10 all gates are open with a probability of one, whose gradient vanishes.
        search = learner("prdarts", tau_max=0.5, **changes)
        search.iterate(0, 0)
        moved.append(search.state.adam.first.clone())
    assert all(not torch.equal(a, b) for i, a in enumerate(moved) for b in moved[:i])
