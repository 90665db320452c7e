"""Sinusoid regression as a command: MAML and a ticket on the same tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.cli import main
from engine.methods.sinusoid import MASKED, Sinusoids, make_learner
from engine.methods.sinusoid_options import SinusoidOptions
from engine.runs.distribution import ALONE

QUICK = ["--iterations", "4", "--validate-every", "2", "--validation-tasks", "5", "--test-tasks", "30", "--inner-steps", "2"]


def search(out: Path, *words: str) -> dict[str, Any]:
    assert main(["search", "sinusoid", "--out", str(out), "--device", "cpu", "--quiet", *QUICK, *words]) == 0
    return json.loads((out / "result.json").read_text())


def test_both_methods_are_compared_on_the_same_tasks(tmp_path: Path) -> None:
    found = search(tmp_path)
    assert [row[0] for row in found["tables"][0]["rows"]] == ["maml", "meta-ticket"]
    assert found["tables"][0]["title"] == "Test: squared error"
    assert found["tables"][1]["rows"][0][:2] == ["maml − meta-ticket", "sinusoid"]
    assert [plot["title"] for plot in found["plots"]][-1] == "Validation"
    for name in ("maml-0", "meta-ticket-0"):
        own = json.loads((tmp_path / name / "result.json").read_text())
        assert own["tasks"] == len(own["tests"]["sinusoid"]["each"]) == 30
        assert [row[0] for row in own["tables"][0]["rows"]] == [0, 1, 2]
        assert own["plots"][-1]["title"] == "One test task"
        assert "accuracy" not in own
        report = (tmp_path / name / "report.html").read_text()
        assert "Error by inner step" in report
    lines = [json.loads(line) for line in (tmp_path / "meta-ticket-0" / "metrics.jsonl").read_text().splitlines()]
    assert "train_accuracy" not in lines[0]
    assert list(lines[0]["sparsity"]) == [MASKED]


def test_a_ticket_learns_scores_and_what_is_not_masked() -> None:
    learner = make_learner(SinusoidOptions(device="cpu", learner="meta-ticket", rerand_every=2), ALONE)
    source = Sinusoids(SinusoidOptions(device="cpu"))
    before = {name: value.clone() for name, value in learner.params.items()}
    for step in range(2):
        learner.step(source.draw("train", 4, (step,)), step, lambda chunk: None)
    moved = {name for name, value in learner.params.items() if not torch.equal(value, before[name])}
    assert moved == set(before), "the masked weight by IteRand alone, where it is pruned"
    kept = learner.network.masks(learner.params)[MASKED]  # type: ignore[union-attr]
    assert torch.equal(learner.params[MASKED][kept], before[MASKED][kept])
    assert (learner.params[MASKED] != before[MASKED]).any()
    only = make_learner(SinusoidOptions(device="cpu", learner="meta-ticket", auxiliary=False), ALONE)
    assert only.problem.learned == (f"{MASKED}_score",)


@pytest.mark.parametrize(("name", "moving"), [("anil", {"hidden3"}), ("boil", {"hidden1", "hidden2"})])
def test_anil_adapts_the_last_layer_and_boil_the_others(name: str, moving: set[str]) -> None:
    learner = make_learner(SinusoidOptions(device="cpu", learner=name), ALONE)
    assert {key.partition(".")[0] for key in learner.problem.rates} == moving


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--compare", "maml,sgd"], "unknown method 'sgd'"),
        (["--outer", "sgd", "--learner", "meta-ticket"], "add --auxiliary false"),
        (["--data", "omniglot"], "--data: expected sinusoid"),
    ],
)
def test_bad_input_of_sinusoids(words: list[str], said: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["search", "sinusoid", "--out", str(tmp_path / "run"), *words]) == 2
    assert said in capsys.readouterr().err
