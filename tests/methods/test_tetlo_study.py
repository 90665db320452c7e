"""Sweeps of TETLO searches in one resumable run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.cli import run_command
from engine.methods.tetlo_options import TetloOptions
from engine.methods.tetlo_study import jobs, summary
from engine.search import main

TINY: dict[str, Any] = {
    "device": "cpu",
    "cells": 2,
    "channels": 2,
    "batch": 4,
    "images": 8,
    "epochs": 1,
    "pairs": 6,
    "interval": 2,
}
WORDS = [word for key, value in TINY.items() for word in (f"--{key}", str(value))]


def test_sweep_leaves_its_runs_and_a_table(tmp_path: Path) -> None:
    words = ["tetlo", *WORDS, "--objective", "fit-auxiliary", "--vary", "swapped=0,0.5", "--quiet", "--out", str(tmp_path)]
    assert main(words) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    folders = ["swapped-0.0-0", "swapped-0.5-0"]
    assert [row[0] for row in result["tables"][1]["rows"]] == folders
    assert [row[0] for row in result["tables"][0]["rows"]] == ["0.0", "0.5"]
    assert result["plots"][0]["series"][0]["x"] == [0.0, 0.5]
    for folder in folders:
        own = json.loads((tmp_path / folder / "result.json").read_text())
        assert own["genotype"] == json.loads((tmp_path / folder / "genotype.json").read_text())
        assert "--objective fit-auxiliary" in own["command"]
        assert (tmp_path / folder / "cell_normal.svg").exists()
    before = (tmp_path / folders[0] / "result.json").stat().st_mtime_ns
    (tmp_path / "result.json").unlink()
    (tmp_path / folders[1] / "result.json").unlink()
    assert main([*words, "--resume"]) == 0
    assert (tmp_path / folders[0] / "result.json").stat().st_mtime_ns == before
    again = json.loads((tmp_path / "result.json").read_text())
    assert [row[:3] for row in again["tables"][0]["rows"]] == [row[:3] for row in result["tables"][0]["rows"]]


def test_summary_is_mean_and_deviation_over_seeds() -> None:
    options = TetloOptions(**TINY, vary="lam=0.1,2", seeds=2, seed=5)
    planned = jobs(options)
    assert [(job.folder, job.options.lam, job.options.seed) for job in planned] == [
        ("lam-0.1-5", 0.1, 5),
        ("lam-0.1-6", 0.1, 6),
        ("lam-2.0-5", 2.0, 5),
        ("lam-2.0-6", 2.0, 6),
    ]
    assert not any(job.options.is_study for job in planned)

    def result(accuracy: float, **more: Any) -> dict[str, Any]:
        return {
            "validation_accuracy": accuracy,
            "operations": {"normal": {"skip_connect": 1}},
            "cpu_seconds": 3.0,
            "command": "c",
            **more,
        }

    results = [result(0.5), result(0.7), result(0.4, auxiliary_accuracy=0.25), result(0.4, auxiliary_accuracy=0.75)]
    found = summary(options, planned, results)
    first, second = found["tables"][0]["rows"]
    assert first == ["0.1", 2, "40.00 ± 14.14", None, None, None, None, "1.00 ± 0.00", "3.00 ± 0.00"]
    assert second[:4] == ["2.0", 2, "60.00 ± 0.00", "50.00 ± 35.36"]
    line = found["plots"][0]["series"][0]
    assert (line["x"], [round(y, 6) for y in line["y"]]) == ([0.1, 2.0], [40.0, 60.0])
    assert [round(y, 2) for y in line["low"]] == [25.86, 60.0]


def test_names_are_tabulated_but_not_drawn() -> None:
    options = TetloOptions(**TINY, vary="transfer=qrs,pl")
    planned = jobs(options)
    plain = {"validation_accuracy": 0.5, "operations": {}, "cpu_seconds": 1.0, "command": "c"}
    found = summary(options, planned, [plain, plain])
    assert [row[0] for row in found["tables"][0]["rows"]] == ["qrs", "pl"]
    assert found["plots"] == []


def test_only_the_values_that_are_searched_must_be_possible() -> None:
    TetloOptions(**{**TINY, "pairs": 300}, vary="pairs=2,6").validate()


def test_dry_run_names_the_searches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tetlo", *WORDS, "--vary", "gamma=0.5,1", "--seeds", "2", "--dry-run"]) == 0
    assert "gamma-0.5-0, gamma-0.5-1, gamma-1.0-0, gamma-1.0-1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--vary", "lambda=1"], "--vary: 'lambda=1' is not an option and its values"),
        (["--vary", "lam=x"], "--vary: 'x'"),
        (["--vary", "lam=1,1"], "name each value once"),
        (["--vary", "lam=-1"], "--lam must be at least 0"),
        (["--seeds", "0"], "--seeds must be at least 1"),
    ],
)
def test_bad_options(tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, ["tetlo", *WORDS, *words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
