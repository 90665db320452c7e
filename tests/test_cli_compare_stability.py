"""The stability measure on NAS-Bench-1Shot1, from its options to the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.cli import main
from engine.compare_stability import Watched
from engine.evaluation.family_options import Entry
from engine.evaluation.stability_options import STABILITY_PRESETS, StabilityOptions

TINY = ("--search", "cells=3,channels=4,images=16,batch=8,epochs=3,alpha_rate=0.1", "--early", "1-1", "--late", "3-3")
ORACLE = """
def ask(matrix, operations):
    return 10.0 * sum(map(sum, matrix)) + operations.count("conv3x3-bn-relu")
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stability_oracle.py").write_text(ORACLE)
    return tmp_path


def test_cells_of_all_epochs_are_looked_up(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "stability", "darts1st", "--spaces", "1,3", "--seeds", "2", "--oracle", "stability_oracle:ask", *TINY]
    assert main([*words, "--device", "cpu", "--out", "a"]) == 0
    printed = capsys.readouterr().out
    assert "Degenerate searches" in printed
    assert "darts1st  nas-bench-1shot1-3" in printed
    result = json.loads((place / "a/result.json").read_text())
    runs = [json.loads(line) for line in (place / "a/metrics.jsonl").read_text().splitlines()]
    assert [(run["search"], run["seed"]) for run in runs] == [
        ("darts1st@nas-bench-1shot1-1", 0),
        ("darts1st@nas-bench-1shot1-3", 0),
        ("darts1st@nas-bench-1shot1-1", 1),
        ("darts1st@nas-bench-1shot1-3", 1),
    ]
    assert all(len(run["accuracy"]) == 3 for run in runs)
    assert all(run["degenerate"] == (run["accuracy"][2] < run["accuracy"][0]) for run in runs)
    [table] = result["tables"]
    for row, space in zip(table["rows"], ("nas-bench-1shot1-1", "nas-bench-1shot1-3"), strict=True):
        own = [run for run in runs if run["search"].endswith(space)]
        assert row[:4] == ["darts1st", space, sum(run["degenerate"] for run in own), 2]
    assert "Degenerate searches" in (place / "a/report.html").read_text()
    # An oracle that is code must stand on the command line.
    (place / "a/result.json").unlink()
    assert main(["compare", "--out", "a", "--resume"]) == 2
    assert "--oracle stability_oracle:ask" in capsys.readouterr().err


def test_degenerate_is_worse_late() -> None:
    entry = Entry.parse("darts2nd@nas-bench-1shot1-1")
    assert Watched(entry, 0, [90.0, 92.0, None, 90.5]).degenerate((1, 2), (3, 4)) is True
    assert Watched(entry, 0, [90.0, 92.0, None, 91.5]).degenerate((1, 2), (3, 4)) is False
    assert Watched(entry, 0, [90.0, 92.0, None, None]).degenerate((1, 2), (3, 4)) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--oracle: name a table"),
        (["pdarts", "--oracle", "math:exp"], "'pdarts' searches no"),
        (["--oracle", "math:exp", "--spaces", "1,4"], "--spaces"),
        (["--oracle", "math:exp", "--early", "5-4"], "--early"),
        (["--oracle", "math:exp", "--early", "4-7"], "must come after"),
        (["--oracle", "math:exp", "--late", "7-9"], "has 8 epochs"),
        (["--oracle", "none.csv"], "is not a file"),
    ],
)
def test_bad_inputs(place: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "stability", *words, "--out", "a"]) in (2, 3)
    assert said in capsys.readouterr().err
    assert not (place / "a").exists()


@pytest.mark.parametrize("preset", STABILITY_PRESETS)
def test_presets_are_valid(preset: str) -> None:
    options = StabilityOptions(**StabilityOptions.preset_values(preset), oracle="math:exp")
    options.validate()
    assert len(options.searched) == 6
    if preset == "table15":
        assert (options.seeds, options.windows) == (10, ((45, 55), (90, 100)))
