"""Table 3: one search by each strategy, and what pruning takes from it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.cli import main
from engine.methods.metanas_options import MetaNASOptions
from engine.methods.metanas_single import SingleTask, halves
from engine.methods.metanas_single import test_batches as batches_of_test
from engine.runs.config import resolve

TINY = ["--preset", "table3-small", "--data", "digits", "--size", "8", "--channels", "2", "--cells", "2", "--batch", "512"]
TINY += ["--steps", "3", "--eval-every", "2", "--device", "cpu"]


def search(*words: str) -> int:
    return main(["search", "metanas", *TINY, "--quiet", *words])


def test_leaves_table_3_and_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert search("--out", str(tmp_path / "a")) == 0
    result = json.loads((tmp_path / "a/result.json").read_text())
    strategies = ["search, nothing sparse", "search, operations sparse", "search"]
    assert [v["variant"] for v in result["variants"]] == strategies
    assert [row[0] for row in result["tables"][0]["rows"]] == strategies
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["temperature"]) for line in lines[:4]] == [(2, 1.0), (3, 1.0), (2, 0.525), (3, 0.05)]
    original = SingleTask.advance
    taken = []

    def stopping(self: SingleTask, step: int) -> Any:
        taken.append(step)
        if len(taken) == 5:
            signal.raise_signal(signal.SIGTERM)
        return original(self, step)

    monkeypatch.setattr(SingleTask, "advance", stopping)
    assert search("--out", str(tmp_path / "b")) == 75
    assert search("--out", str(tmp_path / "b"), "--resume") == 0
    assert len(taken) == 9
    assert (tmp_path / "b/metrics.jsonl").read_bytes() == (tmp_path / "a/metrics.jsonl").read_bytes()


def options(*words: str) -> MetaNASOptions:
    found = resolve("metanas", [*TINY, "--sparse", "inputs", *words])
    assert isinstance(found, MetaNASOptions)
    return found


def test_a_one_hot_architecture_loses_nothing() -> None:
    """With one operation an edge and one pair a node the supernet is its genotype's network."""
    chosen = options()
    training = SingleTask(chosen, halves(chosen))
    order = torch.randperm(len(training.state.a), generator=torch.Generator().manual_seed(0))
    training.state.a.copy_(10 * order)
    before, after = training.accuracies(batches_of_test(chosen), 0.05)
    assert before == after


def test_batches_that_are_tested_mix_the_classes() -> None:
    """Else the norms' statistics would tell the class."""
    chosen = options("--batch", "64")
    labels = [batch.labels for batch in batches_of_test(chosen)]
    assert all(len(found.unique()) > 5 for found in labels[:-1])
    assert sum(map(len, labels)) > 1000


def test_steps_move_weights_and_architecture() -> None:
    chosen = options()
    training = SingleTask(chosen, halves(chosen))
    before = training.state.w.clone(), training.state.a.clone()
    training.advance(0)
    assert bool((training.state.w != before[0]).any())
    moved = (training.state.a - before[1]).abs()
    assert float(moved.max()) == pytest.approx(chosen.architecture_rate, rel=1e-3)  # Adam's first step


def test_presets_are_darts_search() -> None:
    found = resolve("metanas", ["--preset", "table3"])
    assert isinstance(found, MetaNASOptions)
    assert (found.steps, found.batch, found.rate, found.architecture_rate, found.decay) == (19_500, 64, 0.025, 3e-4, 3e-4)
    assert len(found.variants()) == 9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--network", "conv4"], "--single-task"),
        (["--faithful"], "--single-task"),
        (["--steps", "1"], "--steps: annealing"),
        (["--batch", "100000"], "--batch"),
    ],
)
def test_bad_input(tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert search("--out", str(tmp_path / "a"), *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
