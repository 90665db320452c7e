"""What keeps DARTS from collapsing: each option changes what it should, and nothing without being asked for."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.cli import run_command
from engine.methods.darts import Darts
from engine.methods.darts_base import Pass
from engine.methods.darts_data import Halves
from engine.methods.robust import RobustBase, RobustDarts, simplex
from engine.methods.robust_options import RobustOptions
from engine.search import main
from engine.spaces.draws import DrawnMixture
from engine.spaces.mixture import Mixture

TINY = {"device": "cpu", "cells": 2, "channels": 2, "batch": 8, "images": 16, "epochs": 2, "order": "first", "space": "darts-s2"}


def learner(kind: type[Darts] = RobustDarts, **changes: Any) -> Darts:
    options = RobustOptions(**{**TINY, **changes})
    options.validate()
    return kind(options, Halves(options), RobustBase(options))


def test_without_options_it_is_darts() -> None:
    robust, plain = learner(), learner(Darts)
    for search in (robust, plain):
        search.iterate(0, 0)
        search.iterate(1, 1)
    assert all(torch.equal(tensor, plain.tensors()[name]) for name, tensor in robust.tensors().items())


@pytest.mark.parametrize(
    "changes", [{"drop_path": 0.5}, {"auxiliary_skip": "linear"}, {"perturb": "random"}, {"perturb": "adversarial"}]
)
def test_options_change_the_weights_and_repeat(changes: dict[str, Any]) -> None:
    found = []
    for options in (changes, changes, {}):
        search = learner(**options)
        search.iterate(1, 0)
        found.append(search.tensors()["weights"].sum())
    assert float(found[0]) == float(found[1])
    assert float(found[0]) != float(found[2])


def test_auxiliary_skip_fades_and_is_never_chosen() -> None:
    base = learner(auxiliary_skip="cosine", epochs=4).base
    a = torch.zeros(base.relaxation.shape)
    weights = [float(base.mixture(a, Pass("weights", epoch, 0)).weights[0, 0, -1]) for epoch in range(4)]
    assert weights == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-5)
    line = RobustBase(RobustOptions(**{**TINY, "auxiliary_skip": "linear", "epochs": 4}))
    assert [line.auxiliary_weight(epoch) for epoch in range(4)] == [1, 0.75, 0.5, 0.25]
    assert base.mixture(a, Pass("weights", 0, 0)).weights.shape == (2, 14, 9)
    assert {c.operation for _, cell in base.genotype(a).cells for c in cell.connections} == {"skip_connect"}


def test_drop_path_rises_and_rests_in_validation() -> None:
    base = learner(drop_path=0.2, epochs=5).base
    a = torch.zeros(base.relaxation.shape)
    rates = []
    for epoch in range(5):
        mixture = base.mixture(a, Pass("weights", epoch, 0))
        rates.append(mixture.draws.drop_path if isinstance(mixture, DrawnMixture) and mixture.draws else 0.0)
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert not isinstance(base.mixture(a, Pass("validation", 4, 0)), DrawnMixture)


def test_the_adversary_raises_the_loss_within_its_reach() -> None:
    search = learner(perturb="adversarial", epsilon=0.3, epochs=1, batch=16)
    assert isinstance(search, RobustDarts)
    batch, where = search.data.training(0, 0), Pass("weights", 0, 0)
    mixture = search.base.relaxation(search.alphas)
    moved = search.perturbed(mixture, batch, where)
    assert float((moved - mixture.weights).abs().max()) <= 2 * 0.3
    torch.testing.assert_close(moved.sum(-1), torch.ones(2, 14))
    assert bool((moved[~mixture.alive] == 0).all())
    w, a = search.tensors()["weights"], search.alphas
    with torch.no_grad():
        assert float(search.weight_loss(batch, where)(w, a)) > float(search.loss(batch, where)(w, a))


def test_simplex_cuts_and_divides() -> None:
    alive = torch.tensor([[True, True, False], [True, True, False]])
    found = simplex(torch.tensor([[0.5, 1.5, 9.0], [-0.2, -0.1, 9.0]]), alive)
    torch.testing.assert_close(found, torch.tensor([[1 / 3, 2 / 3, 0.0], [0.0, 1.0, 0.0]]))
    assert ((found > 0) == alive).all()  # what is cut away still exists, and can come back


def test_an_adversary_feels_operations_that_were_cut_away() -> None:
    searched = learner(perturb="adversarial")
    assert isinstance(searched, RobustDarts)
    mixture, where = searched.base.relaxation(searched.state.a), Pass("weights", 0, 0)
    cut = mixture.weights.detach().clone()
    convolution = searched.base.space.operations.index("sep_conv_3x3")
    cut[..., convolution] = -1.0
    weights = simplex(cut, mixture.alive).requires_grad_()
    batch = searched.data.training(0, 0)
    logits = searched.network(searched.state.w, batch.images, searched.base.completed(Mixture(weights, mixture.alive), where))
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, batch.labels), weights)
    assert gradient[..., convolution].abs().max() > 0


def test_early_stop_returns_the_cell_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RobustDarts, "sharpness", lambda self, epoch: 2.0**epoch)
    monkeypatch.setattr(
        "engine.methods.robust.stop_epoch", lambda values, factor: 1 if len(values) == 3 and factor == 1.3 else None
    )
    values = {**TINY, "epochs": 6, "alpha_rate": 0.5, "eigenvalue": 2, "early_stop": 1.3}
    words = [word for key, value in values.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    assert main(["robust-darts", *words, "--quiet", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["eigenvalue"] for line in lines] == [1, 2, 4] == result["eigenvalues"]
    assert result["early_stop_epoch"] == 1
    assert result["genotype"]["cells"] == lines[1]["genotype"]
    assert result["evaluations"] == 6
    assert "Sharpness" in (tmp_path / "report.html").read_text()


def test_adaptive_decay_goes_back_and_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice back from the third epoch to the second; the third time the decay may not rise any more."""
    monkeypatch.setattr(RobustDarts, "sharpness", lambda self, epoch: 2.0**epoch)
    monkeypatch.setattr("engine.methods.robust.stop_epoch", lambda values, factor: 1 if len(values) == 3 else None)
    values = {**TINY, "epochs": 5, "alpha_rate": 0.5, "eigenvalue": 2, "early_stop": 1.3, "adaptive_decay": 0.004}
    words = [word for key, value in values.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    assert main(["robust-darts", *words, "--quiet", "--out", str(tmp_path / "whole")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 2, 2, 3, 4]
    assert [line["weight_decay"] for line in lines] == pytest.approx([3e-4] * 3 + [9e-4] + [27e-4] * 3)
    result = json.loads((tmp_path / "whole/result.json").read_text())
    assert (result["weight_decay"], result["epochs_again"]) == (pytest.approx(27e-4), 2)
    assert result["genotype"]["cells"] == lines[-1]["genotype"]

    plain, steps = RobustDarts.iterate, [0]

    def iterate(self: RobustDarts, epoch: int, step: int) -> None:
        plain(self, epoch, step)
        steps[0] += 1
        if steps[0] == 7:  # in the middle of the third epoch, which is done for the second time
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RobustDarts, "iterate", iterate)
        assert run_command(main, ["robust-darts", *words, "--quiet", "--out", str(tmp_path / "cut")]) == 75
    assert main(["--resume", "--out", str(tmp_path / "cut"), "--quiet"]) == 0
    for name in ("genotype.json", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_going_back_restores_the_end_of_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RobustDarts, "sharpness", lambda self, epoch: 1.0)
    search = learner(eigenvalue=1, early_stop=1.3, adaptive_decay=0.001, epochs=9)
    assert isinstance(search, RobustDarts)
    ends = []
    for epoch in range(2):
        search.iterate(epoch, 0)
        search.end_epoch(epoch)
        ends.append({name: tensor.clone() for name, tensor in search.state.tensors().items()})
    monkeypatch.setattr("engine.methods.robust.stop_epoch", lambda values, factor: 0)
    assert search.after(1) is search
    assert all(torch.equal(tensor, ends[0][name]) for name, tensor in search.state.tensors().items())
    assert not torch.equal(ends[0]["weights"], ends[1]["weights"])
    assert (search.redone, len(search.curve), search.state.adam.count, list(search.past)) == (1, 1, 1, [0])
    assert search.state.sgd.decay == pytest.approx(9e-4)


def test_only_the_ends_of_reachable_epochs_are_kept() -> None:
    search = learner(eigenvalue=1, early_stop=1.3, adaptive_decay=0.001, epochs=20)
    assert isinstance(search, RobustDarts)
    for epoch in range(9):
        search.sharpness = lambda epoch: 1.0  # type: ignore[method-assign]
        search.end_epoch(epoch)
    assert list(search.past) == list(search.past_counts) == [2, 3, 4, 5, 6, 7, 8]


def test_sharpness_is_a_number_by_address() -> None:
    one, two = (learner(eigenvalue=3, batch=16, space="darts-s4") for _ in range(2))
    assert isinstance(one, RobustDarts)
    assert isinstance(two, RobustDarts)
    assert one.sharpness(0) == two.sharpness(0)
    assert one.sharpness(0) != one.sharpness(1)


def test_presets_are_valid() -> None:
    for name in RobustOptions.presets:
        RobustOptions(**RobustOptions.preset_values(name)).validate()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--drop-path", "1"], "--drop-path must be in [0, 1)"),
        (["--early-stop", "1.3"], "--early-stop needs --eigenvalue"),
        (["--early-stop", "1", "--eigenvalue", "3"], "--early-stop must be above 1"),
        (["--adaptive-decay", "0.01"], "--adaptive-decay needs --early-stop"),
        (["--early-stop", "1.3", "--eigenvalue", "3", "--adaptive-decay", "1e-4"], "expected 0 < weight-decay <= it"),
        (["--epsilon", "-1"], "--epsilon must be at least 0"),
        (["--perturb", "greedy"], "--perturb"),
    ],
)
def test_bad_options(tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, ["robust-darts", *words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
