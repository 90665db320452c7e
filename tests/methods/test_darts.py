"""The DARTS search end to end, as a user starts it, and its batches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.cli import run_command
from engine.errors import ConfigurationError
from engine.methods.darts import Darts
from engine.methods.darts_data import Halves
from engine.methods.darts_options import DartsOptions
from engine.search import main
from engine.spaces.genotype import Genotype
from engine.spaces.space import DARTS

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--device", "cpu", "--cells", "2", "--channels", "2", "--batch", "8", "--images", "24", "--epochs", "2", "--quiet"]


def search(out: Path, *words: str) -> dict[str, Any]:
    assert main(["darts", *SMALL, *words, "--out", str(out)]) == 0
    return json.loads((out / "result.json").read_text())


def options(**changes: Any) -> DartsOptions:
    return DartsOptions(**{"device": "cpu", "cells": 2, "channels": 2, "batch": 8, "images": 24, "epochs": 2, **changes})


def test_leaves_a_whole_run_directory(tmp_path: Path) -> None:
    result = search(tmp_path, "--order", "first", "--alpha-rate", "0.01")
    DARTS.check(Genotype.load(tmp_path / "genotype.json"))
    assert {"report.html", "cell_normal.svg", "cell_reduction.svg", "config.toml"} <= {p.name for p in tmp_path.iterdir()}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert result["evaluations"] == 6
    assert result["parameters"] > 1_000_000
    assert len(result["plots"][0]["series"]) == 3
    assert "Loss of the supernet" in (tmp_path / "report.html").read_text()
    assert [row[:2] for row in result["tables"][0]["rows"]][13:15] == [["normal", "4->5"], ["reduction", "0->2"]]


def test_orders_differ_and_seeds_repeat(tmp_path: Path) -> None:
    results = {}
    for name, words in {
        "first": ["--order", "first"],
        "again": ["--order", "first"],
        "second": ["--epochs", "1"],
        "published": ["--faithful", "--epochs", "1"],
        "other": ["--order", "first", "--seed", "1", "--epochs", "1"],
    }.items():
        search(tmp_path / name, *words)
        results[name] = (tmp_path / name / "metrics.jsonl").read_bytes()
    assert results["first"] == results["again"]
    assert len(set(results.values())) == 4


def test_killed_search_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    words = [*SMALL, "--epochs", "8", "--order", "first"]
    assert main(["darts", *words, "--out", str(tmp_path / "whole")]) == 0
    command = [sys.executable, "-m", "engine.search", "darts", *words, "--out", str(tmp_path / "killed")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline, log = time.monotonic() + 60, tmp_path / "killed" / "metrics.jsonl"
    while time.monotonic() < deadline and not (log.exists() and log.read_bytes().count(b"\n") >= 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    assert main(["darts", "--quiet", "--resume", "--out", str(tmp_path / "killed")]) == 0
    for name in ("metrics.jsonl", "genotype.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_batches_depend_on_their_address_alone() -> None:
    first, second = Halves(options()), Halves(options())
    second.training(0, 0)
    for batch in (Halves.training, Halves.validating):
        one, other = batch(first, 1, 2), batch(second, 1, 2)
        torch.testing.assert_close(one.images, other.images, rtol=0, atol=0)
        assert one.labels.tolist() == other.labels.tolist()
        assert batch(first, 1, 1).labels.tolist() != one.labels.tolist()


def test_an_epoch_sees_every_image_once_and_halves_do_not_meet() -> None:
    data = Halves(options(images=None, batch=16))
    assert not {*data.train.tolist()} & {*data.validation.tolist()}
    data = Halves(options())
    seen = torch.cat([data.training(0, step).labels for step in range(data.steps)])
    classes = data.labels[data.train]
    assert sorted(seen.tolist()) == sorted(classes.tolist())


def test_batches_that_are_validated_on_mix_the_classes() -> None:
    data = Halves(options(images=None, batch=32))
    batches = [batch.labels for batch in data.plain_validation()]
    assert all(len(labels.unique()) > data.classes // 2 for labels in batches)
    assert [labels.tolist() for labels in batches] == [batch.labels.tolist() for batch in data.plain_validation()]


def test_digits_are_not_mirrored_unless_asked() -> None:
    assert not Halves(options()).augment
    assert Halves(options(augment=True)).augment


def test_training_lowers_the_loss() -> None:
    wanted = options(channels=4, batch=32, images=128, epochs=4, order="first", interval=4, weight_rate=0.1)
    data = Halves(wanted)
    learner = Darts(wanted, data)
    losses = []
    for epoch in range(4):
        for step in range(data.steps):
            learner.iterate(epoch, step)
        losses.append(learner.end_epoch(epoch)["training_loss"])
    assert losses[-1] < losses[0] - 0.3


def test_architecture_moves_only_on_its_interval() -> None:
    learner = Darts(options(interval=3, order="first"), Halves(options()))
    moved = []
    for step in range(3):
        before = learner.state.a.clone()
        learner.iterate(0, step)
        moved.append(not torch.equal(before, learner.state.a))
    assert moved == [True, False, False]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--channels", "3"], "--channels"),
        (["--batch", "1"], "--batch must be at least 2"),
        (["--images", "4"], "do not fill a batch"),
        (["--momentum", "1"], "--momentum must be below 1"),
        (["--clip", "0"], "--clip must be above 0"),
        (["--space", "nas-bench-201"], "--space"),
        (["--order", "third"], "--order"),
    ],
)
def test_bad_options(tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, ["darts", *SMALL, *words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_batch_larger_than_a_half() -> None:
    with pytest.raises(ConfigurationError, match="a half of digits has"):
        Halves(options(batch=100_000, images=None))


def test_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["darts", "--preset", "small", "--dry-run", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "cifar10" in out
    assert "5 cells, 8 channels" in out


@pytest.mark.shared_data
def test_subset_of_cifar10(shared_data: Path, tmp_path: Path) -> None:
    words = ["--data", "cifar10", "--data-root", str(shared_data), "--size", "8", "--order", "first", "--epochs", "1"]
    assert search(tmp_path, *words)["genotype"]["space"] == "darts"
