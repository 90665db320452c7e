"""A validation half with wrong labels or rare classes, and the losses against them, in searches of the family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.cli import run_command
from engine.learning.losses import class_balanced_weights, robust_log_loss
from engine.methods.darts import Darts
from engine.methods.darts_base import Pass
from engine.methods.darts_data import Halves, imbalanced, noisy
from engine.methods.darts_options import DartsOptions
from engine.search import main

TINY: dict[str, Any] = {"device": "cpu", "cells": 1, "channels": 2, "batch": 8, "epochs": 1}
WORDS = [word for key, value in {**TINY, "images": 16}.items() for word in (f"--{key}", str(value))]


def halves(**changes: Any) -> Halves:
    return Halves(DartsOptions(**{**TINY, **changes}))


def test_noise_changes_a_share_of_the_validation_half_to_other_classes() -> None:
    clean, found = halves(), halves(label_noise=0.6)
    assert torch.equal(clean.labels[clean.train], found.labels[found.train])
    before, after = clean.labels[clean.validation], found.labels[found.validation]
    changed = before != after
    assert abs(float(changed.float().mean()) - 0.6) < 0.06
    assert set(((after - before) % clean.classes)[changed].tolist()) == set(range(1, clean.classes))
    assert torch.equal(found.labels, halves(label_noise=0.6).labels)
    assert not torch.equal(found.labels, halves(label_noise=0.6, seed=1).labels)


def test_noise_is_symmetric() -> None:
    labels = torch.zeros(30_000, dtype=torch.long)
    counts = torch.bincount(noisy(labels, torch.arange(20_000), 0.6, 4, 0), minlength=4)
    assert abs(int(counts[0]) - 18_000) < 400
    assert int(counts[1:].max()) - int(counts[1:].min()) < 300


def test_imbalance_is_exponential() -> None:
    labels = torch.arange(4).repeat(1000)
    half = torch.randperm(4000, generator=torch.Generator().manual_seed(0))
    kept = imbalanced(half, labels, 8.0, 0)
    assert torch.bincount(labels[kept]).tolist() == [1000, 500, 250, 125]
    assert len(set(kept.tolist())) == len(kept)
    assert len(imbalanced(half[:40], labels, 1e9, 0)) >= 4
    found = halves(imbalance=10.0)
    counts = torch.bincount(found.labels[found.validation])
    assert 9 < int(counts[0]) / int(counts[-1]) < 11
    assert torch.equal(found.train, halves().train)


def test_search_descends_on_the_robust_and_weighted_losses() -> None:
    options = DartsOptions(**{**TINY, "imbalance": 10.0, "class_balance": 0.999, "loss": "robust-log", "order": "first"})
    search = Darts(options, Halves(options))
    weights = class_balanced_weights(torch.bincount(search.data.labels[search.data.validation]), 0.999)
    where = Pass("architecture", 0, 0, "validation")
    batch = search.data.validating(0, 0)
    a = search.state.a.clone().requires_grad_()
    logits = search.network(search.state.w, batch.images, search.base.mixture(a, where))
    loss = (robust_log_loss(logits, batch.labels) * weights[batch.labels]).mean()
    found = search.hypergradient(batch, 0, 0, 0.1)
    torch.testing.assert_close(found.gradient, torch.autograd.grad(loss, a)[0])
    torch.testing.assert_close(found.validation, loss.detach())


@pytest.mark.parametrize("method", ["tetlo", "robust-darts", "prdarts"])
def test_searches_of_the_family_take_them(method: str, tmp_path: Path) -> None:
    words = ["--label-noise", "0.3", "--loss", "robust-log", "--class-balance", "0.99", "--imbalance", "1.5"]
    words += ["--pairs", "6", "--cells", "2"] if method == "tetlo" else []
    words = [*WORDS, "--batch", "64", "--images", "256", *words]
    assert main([method, *words, "--quiet", "--out", str(tmp_path)]) == 0
    assert "genotype" in json.loads((tmp_path / "result.json").read_text())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--label-noise", "1"], "--label-noise must be in [0, 1)"),
        (["--imbalance", "0.5"], "--imbalance must be at least 1"),
        (["--imbalance", "inf"], "--imbalance must be at least 1 and finite"),
        (["--class-balance", "1"], "--class-balance must be in [0, 1)"),
        (["--imbalance", "1e9", "--batch", "16"], "a half of digits has"),
        (["--loss", "hinge"], "--loss"),
    ],
)
def test_bad_options(tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, ["darts", *WORDS, *words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
