"""The compare command from its methods to the table, stopped and resumed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from engine.cli import main
from engine.evaluation import training
from engine.evaluation.compare_options import COMPARE_PRESETS, CompareOptions
from engine.evaluation.meta_options import META_PRESETS
from engine.evaluation.options import PRESETS as TRAIN_PRESETS

TINY = ("--budget", "1epochs", "--tasks", "20", "--device", "cpu", "--quiet")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_comparison_is_resumed_and_tabulated(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = training.Trainer.step

    def step(self: training.Trainer, number: int) -> None:
        plain(self, number)
        if self.options.network == "res5" and number == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    words = ["compare", "random", "res5", "--seeds", "1", "--out", "a", *TINY]
    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "step", step)
        assert main(words) == 75
    finished = place / "a/random-0/train/result.json"
    before = finished.stat().st_mtime_ns
    assert main([*words, "--resume"]) == 0
    assert finished.stat().st_mtime_ns == before
    result = json.loads((place / "a/result.json").read_text())
    accuracy = next(table for table in result["tables"] if table["title"] == "Few-shot accuracy")
    assert [row[0] for row in accuracy["rows"]] == ["random", "res5"]
    report = (place / "a/report.html").read_text()
    commands = ("python -m engine.train rfs", "--network a/random-0/search")
    for text in ("Which differences these runs support", "random − res5", "parameters", *commands):
        assert text in report
    configs = [(place / f"a/{name}-0/train/config.toml").read_text() for name in ("random", "res5")]
    assert all("1epochs" in config for config in configs)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["res5", "rnadom"], "did you mean 'random'"),
        (["res5", "res5"], "each once"),
        (["res5", "--train-preset", "smal"], "--train-preset: unknown"),
        (["res5", "--seeds", "0"], "--seeds must be at least 1"),
        (["maml"], "searches no cell"),
        (["res5+mam"], "did you mean 'maml'"),
        (["res5@0"], "is not NAME, NAME@CELLS"),
        (["res5", "--transfer-to", "digts"], "did you mean 'digits'"),
        (["res5", "--random-cells", "0"], "--random-cells must be at least 1"),
    ],
)
def test_bad_inputs(place: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *words, "--dry-run"]) == 2
    assert said in capsys.readouterr().err
    assert main(["compare", *words, "--out", "a"]) == 2
    assert not (place / "a").exists()


def test_dry_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "te-nas", "conv4", "--dry-run", "--device", "cpu"]) == 0
    assert "te-nas, conv4" in capsys.readouterr().out


@pytest.mark.parametrize("preset", COMPARE_PRESETS)
def test_presets_are_valid(preset: str) -> None:
    CompareOptions(**CompareOptions.preset_values(preset)).validate()


def test_the_published_table() -> None:
    found = CompareOptions(**CompareOptions.preset_values("table1"))
    assert [(entry.name, entry.cells, entry.recipe) for entry in found.entries] == [
        ("conv4", None, "maml"),
        ("conv4", None, "anil"),
        ("resnet12-rfs", None, "rfs"),
        ("metanas-in-v2", 5, "rfs"),
        ("metanas-in-v2", 8, "rfs"),
        ("metantk-nas", 5, "rfs"),
        ("metantk-nas", 8, "rfs"),
    ]
    assert found.entries[-1].preset(found.train_preset) == "paper-mini-8"
    assert (found.data, found.transfer_to, found.seeds) == ("miniimagenet", "tieredimagenet", 3)


def test_recipes_cells_draws_and_transfer_in_one_table(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 1 of paper 001 at toy size: what is meta-trained, retrained at two depths, drawn several times, and transferred."""
    tiny = {"steps": 2, "batch": 2, "tasks": 10, "tests": "5w1s", "channels": 16, "cells": 2}
    monkeypatch.setitem(TRAIN_PRESETS, "tiny", tiny)
    monkeypatch.setitem(META_PRESETS, "tiny", tiny)
    pictures = np.random.default_rng(0).integers(0, 256, (120, 8, 8), dtype=np.uint8)
    splits = np.array(["train"] * 5 + ["test"] * 5)
    np.savez(place / "other.npz", images=pictures, labels=np.arange(120) % 10, split=splits)
    words = ["compare", "res5+anil", "metanas-in-v2@1", "random@2", "--random-cells", "2", "--seeds", "1"]
    words += ["--train-preset", "tiny", "--transfer-to", "npz:other.npz", "--device", "cpu", "--quiet", "--out", "a"]
    monkeypatch.setitem(tiny, "queries", 4)
    assert main(words) == 0
    cells = {path.parent.name: json.loads((path / "genotype.json").read_text()) for path in (place / "a").glob("random*/train")}
    assert set(cells) == {"random@2-0", "random@2-0-cell1"}
    assert cells["random@2-0"] != cells["random@2-0-cell1"]
    assert 'data = "npz:other.npz"' in (place / "a/metanas-in-v2@1-0/transfer/config.toml").read_text()
    tables = {table["title"]: table for table in json.loads((place / "a/result.json").read_text())["tables"]}
    assert [row[:2] for row in tables["Few-shot accuracy"]["rows"]] == [["res5+anil", 1], ["metanas-in-v2@1", 1], ["random@2", 2]]
    assert len(tables["Few-shot accuracy (from digits to npz:other.npz)"]["rows"]) == 3
    assert tables["Random cells"]["rows"][0][:3] == ["random@2", "5-way 1-shot", 2]
    commands = [row[-1] for row in tables["Runs"]["rows"]]
    assert commands[0].startswith("python -m engine.train anil --preset tiny ")
