"""The lamanas command: every variant, and that the loss network is learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.cli import main
from engine.data import load
from engine.methods.lamanas import LossTraining
from engine.methods.lamanas_options import LamanasOptions
from engine.runs.config import resolve
from engine.spaces.resnet18 import FirstLayers

TINY = ["--channels", "2", "--cells", "2", "--ways", "3", "--train-shots", "3", "--meta-epochs", "2", "--meta-batch", "2"]
TINY += ["--steps", "2", "--batch", "4", "--test-steps", "4", "--eval-tasks", "2", "--validation-tasks", "0", "--device", "cpu"]


def search(*words: str) -> int:
    return main(["search", "lamanas", *TINY, "--quiet", *words])


@pytest.mark.parametrize(
    "words",
    [
        ["--loss", "fnn", "--proxy", "mse", "--loss-at-test", "step"],
        ["--loss", "lstm", "--residual", "false", "--faithful"],
        ["--loss", "lstm", "--loss-at-test", "step"],
        ["--loss", "cross-entropy"],
        ["--meta-learner", "maml", "--meta-rate", "0.1"],
        ["--network", "conv4", "--proxy", "mse"],
    ],
)
def test_every_variant_runs(tmp_path: Path, words: list[str]) -> None:
    assert search("--out", str(tmp_path / "a"), *words) == 0
    result = json.loads((tmp_path / "a/result.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    learned = "cross-entropy" not in words
    assert all(("cosine" in line) == learned for line in lines if line["event"] == "meta-update")
    assert all(("learned_loss" in line) == learned for line in lines if line["event"] == "test")
    assert ("loss_parameters" in result) == learned
    if learned:
        assert -1 <= result["cosine_first"] <= 1
        assert result["plots"][-1]["series"][0]["x"] == [1, 2]


def test_every_row_of_table_1(tmp_path: Path) -> None:
    assert (
        search("--out", str(tmp_path / "a"), "--loss", "every", "--meta-epochs", "1", "--eval-tasks", "1", "--surface-every", "1")
        == 0
    )
    result = json.loads((tmp_path / "a/result.json").read_text())
    labels = [v["variant"] for v in result["variants"]]
    assert len(set(labels)) == 9
    assert labels[:3] == ["MetaNAS", "FNN + residual, MSE", "FNN + residual, IP"]
    assert [series["name"] for series in result["plots"][0]["series"]] == [f"{label}, seed 0" for label in labels[1:]]
    assert "cosine_first" in result["variants"][1]
    assert len(result["tables"][0]["rows"]) == 9
    assert len(result["surfaces"]) == 8


def test_draws_the_loss_every_few_meta_updates(tmp_path: Path) -> None:
    assert search("--out", str(tmp_path / "a"), "--proxy", "mse", "--surface-every", "1") == 0
    result = json.loads((tmp_path / "a/result.json").read_text())
    assert [s["title"] for s in result["surfaces"]] == [f"Learned loss over two logits after {n} meta-updates" for n in (1, 2)]
    assert (tmp_path / "a/report.html").read_text().count("Learned loss over two logits") == 4  # heading and title of each


@pytest.mark.parametrize("given", [False, True])
def test_images_may_go_through_a_resnet_first(tmp_path: Path, given: bool) -> None:
    words = ["--extractor", "resnet18", "--meta-epochs", "1", "--meta-batch", "1", "--eval-tasks", "1"]
    path = tmp_path / "resnet18.safetensors"
    if given:
        save_file(FirstLayers().state_dict(), path)
        words += ["--extractor-weights", str(path)]
    assert search("--out", str(tmp_path / "a"), *words) == 0
    result = json.loads((tmp_path / "a/result.json").read_text())
    assert result["extractor_parameters"] == 686_351
    assert result["mean_pruned_parameters"] > 686_351
    assert (str(path) in result["extractor"]) == given
    assert ("drawn at random" in result["extractor"].split(",")[1]) != given


def test_the_extractor_starts_from_the_given_weights(tmp_path: Path) -> None:
    layers = FirstLayers()
    save_file(layers.state_dict(), tmp_path / "a.safetensors")
    found = training("--extractor", "resnet18", "--extractor-weights", str(tmp_path / "a.safetensors"))
    own = torch.cat([p.detach().flatten() for p in layers.parameters()])
    assert torch.equal(found.weights[78:][: len(own)], own)  # behind the 5x5 convolution to three channels
    assert torch.equal(found.weights[686_351:], training().weights)


def training(*words: str) -> LossTraining:
    options = resolve("lamanas", [*TINY, *words])
    assert isinstance(options, LamanasOptions)
    return LossTraining(options, load("digits"))


@pytest.mark.parametrize(
    ("words", "moves"),
    [
        (["--proxy", "mse"], True),
        (["--proxy", "inner-product"], True),
        (["--meta-learner", "maml"], True),
        (["--faithful"], False),
    ],
)
def test_the_loss_network_is_learned_unless_faithful(words: list[str], moves: bool) -> None:
    run = training(*words)
    before = run.phi.clone()
    run.update(0)
    assert bool((run.phi != before).any()) == moves


def test_a_stopped_run_goes_on_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    assert search("--out", str(tmp_path / "whole")) == 0
    original = LossTraining.update

    def stopping(self: LossTraining, epoch: int) -> Any:
        found = original(self, epoch)
        signal.raise_signal(signal.SIGTERM)
        return found

    monkeypatch.setattr(LossTraining, "update", stopping)
    assert search("--out", str(tmp_path / "b")) == 75
    monkeypatch.undo()
    assert search("--out", str(tmp_path / "b"), "--resume") == 0
    assert (tmp_path / "b/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--meta-learner", "fomaml"], "--meta-learner: fomaml"),
        (["--network", "conv4"], "--proxy"),
        (["--loss-rate", "-1"], "--loss-rate"),
        (["--network", "compare"], "experiments of metanas"),
        (["--single-task", "true"], "experiments of metanas"),
        (["--loss", "every", "--sparse", "every"], "--loss every"),
        (["--extractor-weights", "nowhere.safetensors"], "--extractor resnet18"),
        (["--extractor", "resnet18", "--extractor-weights", "nowhere.safetensors"], "cannot read the weights"),
    ],
)
def test_bad_input(tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert search("--out", str(tmp_path / "a"), *words) == 2
    assert said in capsys.readouterr().err


def test_the_published_setting() -> None:
    options = resolve("lamanas", ["--preset", "published"])
    assert isinstance(options, LamanasOptions)
    assert (options.ways, options.shots, options.channels, options.meta_epochs) == (20, 5, 28, 200)
    assert (options.test_steps, options.test_architecture) == (50, 50)
    assert (options.warm_up, options.meta_schedule) == (0, "constant")
    table = resolve("lamanas", ["--preset", "table1"])
    assert isinstance(table, LamanasOptions)
    assert [v.meta_epochs for v in table.variants()] == [200] * 9
    strategies = resolve("lamanas", ["--sparse", "every", "--repeats", "2"])
    assert isinstance(strategies, LamanasOptions)
    assert len({(v.label, v.seed) for v in strategies.variants()}) == 6
