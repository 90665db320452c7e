"""The supervised recipe of the train command, from its options to the finished run directory, stopped and resumed anywhere."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from engine.cli import main
from engine.evaluation import supervised, training

TINY = ["--steps", "6", "--batch", "16", "--channels", "4", "--cells", "3", "--device", "cpu", "--quiet"]
WHOLE = ["--network", "pdarts", "--size", "32", "--auxiliary", "0.4", "--drop-path", "0.2", "--cutout", "8", "--clip", "5"]
WHOLE += ["--schedule", "epoch-cosine", "--augmentation", "crop"]
SAME = ("metrics.jsonl", "weights.safetensors", "result.json")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def result(path: Path) -> dict[str, object]:
    """A result without what no two runs share."""
    found = json.loads(path.read_text())
    return {name: value for name, value in found.items() if "second" not in name and name != "command"}


@pytest.mark.parametrize("where", ["training", "testing"])
def test_a_stop_is_resumed_to_the_same_bytes(place: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["train", "supervised", *TINY, *WHOLE, "--out", "whole"]) == 0
    plain_step, plain_count = training.Trainer.step, supervised.count_answers

    def step(self: training.Trainer, number: int) -> None:
        plain_step(self, number)
        if where == "training" and number == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    def count(*arguments: object) -> object:
        if where == "testing":
            raise KeyboardInterrupt
        return plain_count(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "step", step)
        patch.setattr(supervised, "count_answers", count)
        assert main(["train", "supervised", *TINY, *WHOLE, "--out", "a"]) == (75 if where == "training" else 130)
    assert not (place / "a/result.json").exists()
    assert main(["train", "--out", "a", "--resume", "--quiet"]) == 0
    for name in SAME[:2]:
        assert (place / "a" / name).read_bytes() == (place / "whole" / name).read_bytes()
    assert result(place / "a/result.json") == result(place / "whole/result.json")
    report = (place / "a/report.html").read_text()
    for text in ("Accuracy on held-out images", "Most confused classes", "Training loss", 'aria-label="normal cell"'):
        assert text in report


def test_a_reference_network_learns_digits(place: Path) -> None:
    words = ["--network", "res5", "--steps", "60", "--batch", "64", "--rate", "0.05", "--device", "cpu", "--quiet"]
    assert main(["train", "supervised", *words, "--out", "a"]) == 0
    found = result(place / "a/result.json")
    assert found["accuracy"] > 0.3  # of 24 classes
    assert found["low"] < found["accuracy"] < found["high"]
    assert found["top5"] >= found["accuracy"]
    assert found["error"] == pytest.approx(1 - found["accuracy"])  # type: ignore[operator]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--auxiliary", "0.4", "--network", "pdarts"], 2, "maps of at least 8 pixels"),
        (["--network", "nothing"], 2, "--network: 'nothing'"),
        (["--data", "cifar10", "--data-root", "."], 3, "data set cifar10 not found"),
        (["--train-on", "val"], 2, "--train-on: expected train or train+val"),
        (["--preset", "paper"], 2, "--preset: unknown 'paper'"),
    ],
)
def test_bad_inputs_leave_nothing(
    place: Path, words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "supervised", *TINY, "--out", "a", *words]) == code
    assert said in capsys.readouterr().err
    assert not (place / "a").exists()


def test_dry_run_and_help(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "supervised", "--preset", "paper-darts", "--dry-run", "--device", "cpu"]) == 0
    assert "600epochs of batches of 96" in capsys.readouterr().out
    assert main(["train", "supervised", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "paper-imagenet" in shown
    assert "--train-on" in shown


@pytest.mark.shared_data
def test_the_small_preset_on_cifar10(place: Path, shared_data: Path) -> None:
    words = ["--preset", "small", "--data-root", str(shared_data), "--steps", "3", "--cells", "3", "--device", "cpu", "--quiet"]
    assert main(["train", "supervised", *words, "--out", "a"]) == 0
    found = result(place / "a/result.json")
    assert found["train_classes"] == 10
    assert found["train_images"] == found["test_images"]
