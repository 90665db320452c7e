"""The compare command from its methods to the table, stopped and resumed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from engine.cli import main
from engine.evaluation import training

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
    for text in ("Which differences these runs support", "random − res5", "parameters", "--config a/random-0/train/config.toml"):
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
