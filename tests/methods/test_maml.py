"""MAML, ANIL and BOIL as commands: what a run leaves, resuming, and what is refused."""

from __future__ import annotations

import json
import signal
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.cli import main
from engine.learning.evaluation import with_leading_statistics
from engine.methods import meta_learner, meta_training
from engine.methods.meta_learner import Learner
from engine.spaces.networks import Conv4

QUICK = ["--iterations", "12", "--validate-every", "4", "--validation-tasks", "4", "--test-tasks", "6", "--batch", "2", "--quiet"]


def search(method: str, out: Path | str, *words: str) -> int:
    return main(["search", method, "--out", str(out), "--device", "cpu", *QUICK, *words])


def result(out: Path) -> dict[str, Any]:
    found = json.loads((out / "result.json").read_text())
    return {name: value for name, value in found.items() if name not in ("seconds", "cpu_seconds")}


@pytest.mark.parametrize("method", ["maml", "anil", "boil", "meta-ticket"])
def test_a_run_leaves_its_accuracy_and_protocol(method: str, tmp_path: Path) -> None:
    assert search(method, tmp_path) == 0
    found = result(tmp_path)
    assert 0.2 < found["accuracy"] <= 1
    assert 0 < found["interval"] < 0.5
    assert found["tasks"] == 6
    assert "5-way 5-shot" in found["protocol"]
    assert "transductive" in found["protocol"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert (lines[0]["task_gradient"] == 0) == (method == "anil")
    assert ("sparsity" in lines[0]) == (method == "meta-ticket")
    assert "<svg" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("words", [["maml"], ["meta-ticket", "--rerand-every", "4"]], ids=lambda words: words[0])
def test_a_stopped_run_goes_on_with_the_same_bytes(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert search(words[0], tmp_path / "whole", *words[1:]) == 0
    plain = Learner.step

    def stopping(self: Learner, tasks: Any, step: int, *rest: Any) -> Any:
        if step == 5:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, tasks, step, *rest)

    monkeypatch.setattr(Learner, "step", stopping)
    assert search(words[0], tmp_path / "cut", *words[1:]) == 75
    monkeypatch.setattr(Learner, "step", plain)
    assert main(["search", words[0], "--out", str(tmp_path / "cut"), "--resume", "--quiet"]) == 0
    for name in ("metrics.jsonl", "config.toml"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert result(tmp_path / "whole") == result(tmp_path / "cut")


def test_a_loss_that_is_not_finite_stops_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    plain = Learner.step

    def broken(self: Learner, tasks: Any, step: int, *rest: Any) -> Any:
        facts, asked = plain(self, tasks, step, *rest)
        if step == 6:
            facts[1, 1] = torch.nan
        return facts, asked

    monkeypatch.setattr(Learner, "step", broken)
    monkeypatch.setattr(meta_training, "steps", _saving_each(meta_training.steps))
    assert search("maml", tmp_path) == 4
    assert "step 7: losses[2, 1] not finite" in capsys.readouterr().err
    monkeypatch.setattr(Learner, "step", plain)
    assert main(["search", "maml", "--out", str(tmp_path), "--resume", "--quiet"]) == 0
    assert result(tmp_path)["tasks"] == 6


def _saving_each(plain: Any) -> Any:
    return lambda *given, **named: plain(*given, **named, seconds=0.0)


def test_parameters_that_leave_the_finite_numbers_are_not_saved(tmp_path: Path, capsys: Any) -> None:
    assert search("maml", tmp_path, "--outer-rate-adamw", "1e38") == 4
    assert "not finite" in capsys.readouterr().err


def test_lack_of_memory_halves_the_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = meta_learner.mlp_batch

    def small(*given: Any) -> Any:
        run = plain(*given)

        def limited(params: Any, tasks: Any) -> Any:
            if len(tasks.support_y) > 1:
                raise torch.OutOfMemoryError("can't allocate memory")
            return run(params, tasks)

        return limited

    monkeypatch.setattr(meta_learner, "mlp_batch", small)
    assert search("maml", tmp_path / "small") == 0
    assert tomllib.loads((tmp_path / "small" / "config.toml").read_text())["task_chunk"] == 1
    monkeypatch.setattr(meta_learner, "mlp_batch", plain)
    assert search("maml", tmp_path / "large") == 0
    assert result(tmp_path / "small")["loss"] == pytest.approx(result(tmp_path / "large")["loss"], rel=1e-2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ways", "9"], "of digits has 8"),
        (["--shots", "200"], "lower them"),
        (["--inner-rate", "0"], "--inner-rate must be above 0"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--network", "conv4"], "at least 16 pixels"),
    ],
)
def test_bad_input(words: list[str], said: str, tmp_path: Path, capsys: Any) -> None:
    assert search("maml", tmp_path / "run", *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_convolutions_run_too(tmp_path: Path) -> None:
    words = ["--network", "conv4", "--size", "16", "--iterations", "2", "--validate-every", "2", "--shots", "1"]
    assert search("boil", tmp_path, *words, "--statistics", "support") == 0
    assert "support only" in result(tmp_path)["protocol"]


def test_leading_statistics_do_not_look_at_queries() -> None:
    module = with_leading_statistics(Conv4(3, channels_in=1, size=16, width=4), 4)
    x = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    other = torch.cat([x[:5], 3 * x[5:]])
    torch.testing.assert_close(module(x)[:5], module(other)[:5])
    assert not torch.allclose(module(x)[5], module(other)[5])


def test_the_plan_names_the_protocol(capsys: Any) -> None:
    assert main(["search", "anil", "--dry-run", "--preset", "omniglot", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "30000 outer steps of 4 tasks" in out
    assert "1000 tasks of the test classes, 3 inner steps" in out


def test_other_data_is_tested_too(tmp_path: Path, capsys: Any) -> None:
    images = np.random.default_rng(0).integers(0, 255, (60, 12, 12), dtype=np.uint8)
    labels, split = np.arange(60) % 6, np.array(["val"] * 6)
    np.savez(tmp_path / "other.npz", images=images, labels=labels, split=split)
    np.savez(tmp_path / "colour.npz", images=np.stack([images] * 3, -1), labels=labels, split=split)
    words = ["--test-split", "val", "--shots", "2", "--also-test"]
    assert search("maml", tmp_path / "run", *words, f"npz:{tmp_path}/other.npz") == 0
    found = result(tmp_path / "run")
    assert [row[0] for row in found["tables"][0]["rows"]] == ["digits", f"npz:{tmp_path}/other.npz"]
    assert "val classes" in found["protocol"]
    assert search("maml", tmp_path / "wrong", *words, f"npz:{tmp_path}/colour.npz") == 2
    assert "has 3 channels, digits has 1" in capsys.readouterr().err
