"""Meta-training of any network: what each algorithm moves, its outer step by hand, statistics, and the whole command."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engine.cli import main
from engine.data.loading import load
from engine.errors import ConfigurationError
from engine.evaluation.meta import MetaTrainer, count_steps
from engine.evaluation.meta_options import META_PRESETS, ANILOptions, MAMLOptions, MetaOptions, MetaTicketOptions, ReptileOptions
from engine.evaluation.registry import RECIPES
from engine.runs.streams import stream
from engine.spaces.supernet import initialise

OWN = {"steps": 4, "batch": 2, "ways": 3, "shots": 2, "task_queries": 2, "inner_steps": 2}
ALL = [MAMLOptions, ANILOptions, ReptileOptions, MetaTicketOptions]
DATA = load("digits")


class Tiny(nn.Module):
    """Two convolutions with batch norm, and a head."""

    def __init__(self, ways: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32)
        self.classifier = nn.Linear(32 * 4, ways)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        return self.classifier(self.norm2(self.conv2(x)).relu().flatten(1))


def trainer(options: MetaOptions) -> MetaTrainer:
    network = Tiny(options.ways)
    initialise(network, stream(options.seed, "weights"))
    return MetaTrainer(options, DATA, network)


@pytest.mark.parametrize("kind", ALL)
def test_a_resumed_trainer_goes_on_with_the_same_bytes(kind: type[MetaOptions]) -> None:
    whole, first, second = (trainer(kind(**OWN)) for _ in range(3))
    for step in range(4):
        whole.step(step)
    for step in range(2):
        first.step(step)
    second.load({name: tensor.clone() for name, tensor in first.tensors().items()})
    for step in (2, 3):
        second.step(step)
    assert all(torch.equal(tensor, whole.tensors()[name]) for name, tensor in second.tensors().items())
    assert bool(whole.meta.isfinite().all())


def test_a_reptile_step_by_hand() -> None:
    own = trainer(ReptileOptions(**{**OWN, "batch": 1, "inner_rate": 0.05, "outer_rate": 0.5}))
    start = {name: value.clone() for name, value in own.params.items()}
    tasks = own.tasks(0)
    params = {name: value.clone().requires_grad_() for name, value in start.items()}
    for _ in range(2):
        loss = own.problem.loss(params, tasks.take(0).support)
        gradients = torch.autograd.grad(loss, list(params.values()))
        params = {n: (p - 0.05 * g).detach().requires_grad_() for (n, p), g in zip(params.items(), gradients, strict=True)}
    own.step(0)
    for name, value in own.params.items():
        torch.testing.assert_close(value, start[name] + 0.5 * (params[name] - start[name]), atol=1e-5, rtol=1e-4)


def test_what_each_algorithm_adapts_and_learns() -> None:
    problems = {kind.algorithm: trainer(kind(**OWN)).problem for kind in ALL}
    assert set(problems["maml"].rates) == set(problems["maml"].learned)
    assert set(problems["anil"].rates) == {"classifier.weight", "classifier.bias"}
    assert set(problems["anil"].learned) == set(problems["maml"].learned)
    assert all(name.endswith("_score") for name in problems["meta-ticket"].learned)
    assert not any(
        name.endswith("_score") or "classifier" in name for name in problems["meta-ticket"].learned if "_score" not in name
    )


def test_a_ticket_keeps_its_weights_and_prunes() -> None:
    own = trainer(MetaTicketOptions(**OWN))
    assert own.masked is not None
    before = {name: own.params[name].clone() for name in own.masked.names}
    for step in range(3):
        own.step(step)
    assert all(torch.equal(own.params[name], value) for name, value in before.items())
    masks = own.masked.masks(own.params)
    assert any(not bool(mask.all()) for mask in masks.values())
    own.settle()
    settled = dict(own.network.named_parameters())
    for name, mask in masks.items():
        assert torch.equal(settled[name].detach(), before[name] * mask)


class Statistics(nn.Module):
    """A network of one batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.classifier = nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.norm(x).mean((2, 3)))


def test_running_statistics_are_those_of_the_training_images() -> None:
    network = Statistics()
    own = MetaTrainer(MAMLOptions(**OWN), DATA, network)
    own.settle()
    pixels = (DATA.images[DATA.members("train").order].double() / 255 - DATA.mean[0]) / DATA.std[0]
    assert float(network.norm.running_mean) == pytest.approx(float(pixels.mean()), abs=0.02)  # type: ignore[arg-type]
    assert float(network.norm.running_var) == pytest.approx(float(pixels.var()), rel=0.03)  # type: ignore[arg-type]
    assert network.norm.momentum == 0.1


def test_maml_learns_digits() -> None:
    own = trainer(MAMLOptions(**{**OWN, "steps": 60, "ways": 5, "shots": 1, "task_queries": 5, "outer_rate": 5e-3}))
    losses = []
    for step in range(60):
        own.step(step)
        losses.append(float(own.sums[0]))
        own.sums.zero_()
    assert sum(losses[-15:]) < 0.85 * sum(losses[:15])


def test_budgets_and_presets() -> None:
    own = replace(MAMLOptions(**OWN), steps=None)
    network = Statistics()
    assert count_steps(replace(own, budget="7steps"), DATA, network) == 7
    assert count_steps(replace(own, budget="0.2s"), DATA, network) >= 1
    for kind in ALL:
        for preset in META_PRESETS:
            kind(**kind.preset_values(preset)).validate()
    with pytest.raises(ConfigurationError, match="not a length such as 100steps or 600s"):
        MAMLOptions(budget="3epochs").validate()
    with pytest.raises(ConfigurationError, match="--inner-rate"):
        MAMLOptions(inner_rate=0.0).validate()


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in ("rfs", "supervised")])
def test_the_command_is_resumed_to_the_same_bytes(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", recipe, "--device", "cpu", "--quiet", "--tasks", "20", "--tests", "5w1s", "--network", "metanas-og-v2"]
    for name, value in {**OWN, "channels": 4, "cells": 1, "inner_steps": 1}.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    assert main([*words, "--out", "whole"]) == 0
    plain = MetaTrainer.step

    def step(self: MetaTrainer, number: int) -> None:
        plain(self, number)
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetaTrainer, "step", step)
        assert main([*words, "--out", "a"]) == 75
    assert main([*words, "--out", "a", "--resume"]) == 0
    for name in ("metrics.jsonl", "weights.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    found = json.loads((tmp_path / "a/result.json").read_text())
    assert [test["kind"] for test in found["tests"]] == ["5-way 1-shot"]
    assert found["images_seen"] == 4 * 2 * 3 * (2 + 2)
    assert "Few-shot accuracy" in (tmp_path / "a/report.html").read_text()
