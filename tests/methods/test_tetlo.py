"""The TETLO search end to end, and what its two models share."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.cli import run_command
from engine.errors import Preempted
from engine.methods.darts_data import Halves
from engine.methods.darts_learner import run_search
from engine.methods.tetlo import Tetlo
from engine.methods.tetlo_options import TetloOptions
from engine.runs.progress import Progress
from engine.runs.run import Run
from engine.runs.signals import graceful
from engine.search import main

TINY = {"device": "cpu", "cells": 2, "channels": 2, "batch": 4, "images": 12, "epochs": 2, "pairs": 6, "interval": 2}
WORDS = [word for key, value in TINY.items() for word in (f"--{key}", str(value))]


def learner(**changes: Any) -> Tetlo:
    options = TetloOptions(**{**TINY, **changes})
    return Tetlo(options, Halves(options))


def test_leaves_a_whole_run_directory(tmp_path: Path) -> None:
    assert main(["tetlo", *WORDS, "--base", "darts1st", "--quiet", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["method"] == "tetlo"
    assert result["evaluations"] == 6
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2


def test_models_share_everything_but_the_last_cell_and_the_head() -> None:
    tetlo = learner()
    shared, start = tetlo.shared, tetlo.main.w.clone()
    names = [name for name, _ in tetlo.main.model.network.layout.shapes]
    own = [name for name in names if name.startswith(("supernet.cells.0.", "supernet.classifier."))]
    assert names[-len(own) :] == own
    for step in range(2):
        tetlo.iterate(0, step)
        assert torch.equal(tetlo.main.w[:shared], tetlo.auxiliary.w[:shared])
    assert not torch.equal(tetlo.main.w[:shared], start[:shared])
    assert not torch.equal(tetlo.main.w[shared:], tetlo.auxiliary.w[shared:])


def test_architecture_moves_on_its_interval_and_every_weight_of_the_objective_counts() -> None:
    moved = {}
    for name, changes in {
        "default": {},
        "published": {"faithful": True},
        "first": {"base": "darts1st"},
        "main only": {"gamma": 0.0},
        "strong": {"lam": 5.0},
        "mean": {"similarity": "mean", "lam": 5.0},
        "triples": {"transfer": "ts", "lam": 5.0},
        "two steps": {"unroll": 2},
        "resnet": {"auxiliary": "resnet18", "auxiliary_width": 2},
    }.items():
        tetlo = learner(interval=3, batch=6, images=18, pairs=15, **changes)
        tetlo.iterate(0, 0)
        gradient = tetlo.adam.first.clone()
        tetlo.iterate(0, 1)
        assert torch.equal(tetlo.adam.first, gradient), name
        moved[name] = gradient
    found = list(moved.values())
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


BASES: dict[str, dict[str, Any]] = {
    "pdarts": {"added_cells": "0,1", "kept": "4", "skip_dropout": "0.3,0.3"},
    "pcdarts": {"partial": 2, "channels": 4},
    "prdarts": {"cells": 3, "tau_max": 0.5},
}


@pytest.mark.parametrize("base", BASES)
def test_every_base_sees_both_models_and_draws_once(base: str) -> None:
    """The gradient is that of one function: it repeats, and lambda and gamma count in it."""
    found = []
    for changes in ({}, {}, {"lam": 5.0}, {"faithful": True}):
        tetlo = learner(base=base, **{**BASES[base], "interval": 1, "batch": 6, "images": 12, "pairs": 15, **changes})
        tetlo.iterate(0, 0)
        found.append(tetlo.adam.first.clone())
    assert torch.equal(found[0], found[1])
    assert all(not torch.equal(found[0], other) for other in found[2:])
    names = [name for name, _ in tetlo.main.model.network.layout.shapes]
    own = [name for name in names if ".classifier." in name or ".tail_norm." in name]
    assert names[-len(own) :] == own
    assert len(own) == (4 if base == "prdarts" else 2)
    for name, view in tetlo.main.model.network.layout.views(tetlo.main.w != tetlo.auxiliary.w).items():
        last = name in own or name.startswith(f"supernet.cells.{tetlo.base.cells - 2}.")
        assert last or not bool(view.any()), name


@pytest.mark.parametrize(("auxiliary", "size"), [("simple-cnn", 16), ("resnet50", 8)])
def test_fixed_auxiliary_models_share_nothing(auxiliary: str, size: int, tmp_path: Path) -> None:
    words = ["--auxiliary", auxiliary, "--auxiliary-width", "2", "--size", str(size), "--transfer", "ps"]
    assert main(["tetlo", *WORDS, "--epochs", "1", *words, "--quiet", "--out", str(tmp_path)]) == 0
    assert "genotype" in json.loads((tmp_path / "result.json").read_text())
    tetlo = learner(auxiliary=auxiliary, auxiliary_width=2, size=size)
    start = tetlo.auxiliary.w.clone(), tetlo.main.w.clone()
    tetlo.iterate(0, 0)
    assert tetlo.shared == 0
    assert not torch.equal(tetlo.auxiliary.w, start[0])
    assert not torch.equal(tetlo.main.w, start[1])


@pytest.mark.parametrize("base", BASES)
def test_bases_search_end_to_end(base: str, tmp_path: Path) -> None:
    words = [word for key, value in BASES[base].items() for word in (f"--{key.replace('_', '-')}", str(value))]
    assert main(["tetlo", *WORDS, "--epochs", "1", "--base", base, *words, "--quiet", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["evaluations"] == (6 if base == "pdarts" else 3)
    assert ("candidates" in result) == (base == "pdarts")


def test_dry_run_tells_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tetlo", "--preset", "published-pdarts", "--dry-run", "--device", "cpu"]) == 0
    assert "4, then 10, then 16 cells, 16 channels" in capsys.readouterr().out


def test_presets_are_valid_and_follow_the_paper() -> None:
    presets = {name: TetloOptions(**TetloOptions.preset_values(name)) for name in TetloOptions.presets}
    for options in presets.values():
        options.validate()
    text, table = presets["published-prdarts"], presets["paper-table-prdarts"]
    assert (text.epochs, text.batch, text.lam, text.weight_rate) == (200, 128, 0.1, 0.025)
    assert (table.epochs, table.batch, table.lam, table.weight_rate, table.alpha_rate) == (50, 96, 0.5, 0.1, 6e-4)
    assert presets["published-pdarts"].stage_cells == (5, 11, 17)
    assert presets["published-pdarts"].all_epochs == 75


def test_features_of_two_widths_cannot_be_subtracted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, "--auxiliary", "resnet18", "--auxiliary-width", "2", "--transfer", "regembed"]
    assert run_command(main, ["tetlo", *words, "--out", str(tmp_path / "run")]) == 2
    assert "the main model has 8, the auxiliary one 16" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{}, {"auxiliary": "resnet18", "auxiliary_width": 2, "unroll": 2}])
def test_stopped_search_goes_on_to_the_same_numbers(changes: dict[str, Any], tmp_path: Path) -> None:
    whole = learner(**changes)
    for step in range(6):
        whole.iterate(*divmod(step, 3))

    class Stopping(Tetlo):
        def iterate(self, epoch: int, step: int) -> None:
            super().iterate(epoch, step)
            if (epoch, step) == (1, 0):
                signal.raise_signal(signal.SIGTERM)

    options = whole.options
    with Run.create(tmp_path, "", {}) as run, graceful() as stop, pytest.raises(Preempted):
        run_search(Stopping(options, Halves(options)), run, stop, lambda *a, **k: Progress(*a, quiet=True, **k))
    resumed = learner(**changes)
    with Run.resume(tmp_path) as run, graceful() as stop:
        run_search(resumed, run, stop, lambda *a, **k: Progress(*a, quiet=True, **k))
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[name]), name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pairs", "7"], "make 6 pairs, fewer than --pairs 7"),
        (["--gamma", "-1"], "--gamma must be at least 0"),
        (["--lam", "-0.5"], "--lam must be at least 0"),
        (["--base", "gdas"], "--base"),
        (["--cells", "1"], "--cells must be at least 2"),
        (["--partial", "2"], "--partial belongs to --base pcdarts, not to darts2nd"),
        (["--base", "pdarts", "--tau-max", "3"], "--tau-max belongs to --base prdarts, not to pdarts"),
        (["--base", "pcdarts"], "must be a multiple of 8"),
        (["--transfer", "fitnets"], "--transfer"),
        (["--auxiliary-width", "8"], "--auxiliary-width belongs to a fixed --auxiliary"),
        (["--auxiliary", "resnet18", "--auxiliary-width", "0"], "--auxiliary-width must be at least 1"),
        (["--unroll", "0"], "--unroll must be at least 1"),
    ],
)
def test_bad_options(tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, ["tetlo", *WORDS, *words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
