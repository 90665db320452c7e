"""The train command from its options to the finished run directory, stopped and resumed anywhere."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from engine import Genotype, build_network
from engine.cli import main
from engine.evaluation import few_shot, training
from engine.evaluation.options import PRESETS
from engine.methods.random_search import draw
from engine.spaces.space import FEW_SHOT

TINY = ("--steps", "6", "--batch", "32", "--tasks", "40", "--queries", "5", "--channels", "16", "--cells", "3", "--device", "cpu")
SAME = ("metrics.jsonl", "weights.safetensors")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "found").mkdir()
    genotype = FEW_SHOT.genotype(draw(FEW_SHOT, seed=1, final_edges=2))
    (tmp_path / "found/genotype.json").write_text(genotype.to_json())
    return tmp_path


def train(*words: str) -> int:
    return main(["train", "--quiet", *TINY, *words])


def test_a_genotype_is_trained_and_tested(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--network", "found", "--out", "a", "--tests", "5w1s,3w2s") == 0
    assert capsys.readouterr().out == "rfs on digits: see a/report.html\n"
    result = json.loads((place / "a/result.json").read_text())
    assert [test["kind"] for test in result["tests"]] == ["5-way 1-shot", "3-way 2-shot"]
    for test in result["tests"]:
        assert [part["classifier"] for part in test["accuracies"]] == ["logistic", "centroid"]
        assert all(1 / 5 < part["mean"] < 1 and 0 < part["interval"] < 0.1 for part in test["accuracies"])
    assert result["accuracy"] == result["tests"][0]["accuracies"][0]["mean"]
    assert result["steps"] == 6
    assert result["images_seen"] == 192
    report = (place / "a/report.html").read_text()
    for text in ("Few-shot accuracy", "Training loss", "Most confused classes", 'aria-label="normal cell"'):
        assert text in report


def test_the_weights_load_into_the_genotypes_network(place: Path) -> None:
    assert train("--network", "found", "--out", "a") == 0
    genotype = Genotype.load(place / "a/genotype.json")
    network = build_network(genotype, channels=16, cells=3, classes=24, channels_in=1).load(place / "a/weights.safetensors")
    assert network.eval()(torch.zeros(1, 1, 8, 8)).shape == (1, 24)
    assert int(network.stem_norm.num_batches_tracked) == 6  # type: ignore[union-attr]


def test_the_same_seed_gives_the_same_bytes(place: Path) -> None:
    assert train("--out", "a") == 0
    assert train("--config", "a/config.toml", "--out", "b") == 0
    assert train("--out", "c", "--seed", "1") == 0
    assert all((place / "a" / name).read_bytes() == (place / "b" / name).read_bytes() for name in SAME)
    assert (place / "a/weights.safetensors").read_bytes() != (place / "c/weights.safetensors").read_bytes()


@pytest.mark.parametrize("where", ["training", "testing"])
def test_a_stop_in_the_middle_is_resumed_to_the_same_bytes(place: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train("--network", "found", "--out", "whole") == 0
    plain_step, plain_evaluate = training.Trainer.step, few_shot.evaluate

    def step(self: training.Trainer, number: int) -> None:
        plain_step(self, number)
        if where == "training" and number == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    def evaluate(*arguments: object) -> object:
        found = plain_evaluate(*arguments)  # type: ignore[arg-type]
        if where == "testing":
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "step", step)
        patch.setattr(few_shot, "evaluate", evaluate)
        assert train("--network", "found", "--out", "a") == 75
    assert not (place / "a/result.json").exists()
    (place / "found/genotype.json").unlink()
    assert train("--network", "found", "--out", "a", "--resume") == 0
    assert all((place / "a" / name).read_bytes() == (place / "whole" / name).read_bytes() for name in SAME)
    done, whole = (json.loads((place / name / "result.json").read_text()) for name in ("a", "whole"))
    assert done["tests"] == whole["tests"]


def test_cpu_seconds_become_steps_that_are_written_down(place: Path) -> None:
    assert main(["train", "--quiet", *TINY[2:], "--network", "res5", "--budget", "0.2s", "--out", "a", "--device", "cpu"]) == 0
    config = (place / "a/config.toml").read_text()
    assert 'budget = "0.2s"' in config
    assert f"steps = {json.loads((place / 'a/result.json').read_text())['steps']}\n" in config


def test_drop_path_and_bfloat16_train(place: Path) -> None:
    words = ("--network", "found", "--drop-path", "0.3", "--drop-path-ramp", "false", "--autocast")
    assert train("--out", "a", *words) == 0
    assert "nan" not in (place / "a/metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--network", "nothing"], 2, "--network: 'nothing' is no file, run directory or known network"),
        (["--network", "conv4"], 2, "four poolings need images of at least 16"),
        (["--network", "resnet12"], 2, "--network: images of 8 pixels are too small for resnet12"),
        (["--batch", "1"], 2, "--batch must be at least 2"),
        (["--tests", "50w1s"], 2, "50 ways need 50 classes"),
        (["--batch", "100000"], 2, "--batch 100000"),
        (["--data", "omniglot", "--data-root", "."], 3, "data set omniglot not found"),
        (["--budget", "long"], 2, "--budget: 'long' is not a length"),
    ],
)
def test_bad_inputs_leave_nothing(
    place: Path, words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--out", "a", *words) == code
    assert said in capsys.readouterr().err
    assert not (place / "a").exists()


def test_a_diverging_training_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--out", "a", "--rate", "1e30", "--warmup", "0") == 4
    assert "lower" in capsys.readouterr().err


def test_a_search_then_trains_what_it_found(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PRESETS, "tiny", {"steps": 3, "batch": 16, "tasks": 20, "tests": "5w1s"})
    words = ["search", "random", "--out", "s", "--device", "cpu", "--quiet", "--then-train", "tiny"]
    assert main(words) == 0
    assert json.loads((place / "s-train/result.json").read_text())["network"] == "s"
    assert (place / "s/genotype.json").read_bytes() == (place / "s-train/genotype.json").read_bytes()
    assert "then_train" not in (place / "s/config.toml").read_text()
    (place / "s-train/result.json").unlink()
    assert main([*words, "--resume"]) == 0
    assert (place / "s-train/result.json").exists()
    capsys.readouterr()
    assert main(["search", "random", "--out", "t", "--then-train", "tinny"]) == 2
    assert "did you mean 'tiny'" in capsys.readouterr().err
    assert not (place / "t").exists()


def test_dry_run_and_help(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--dry-run") == 0
    assert "5-way 1-shot, 5-way 5-shot" in capsys.readouterr().out
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "engine train rfs" in shown
    assert "paper-mini-5" in shown
    assert not (place / "runs").exists()
