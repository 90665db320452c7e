"""What TETLO descends on against plain autograd through its definition, in float64, for every transfer and auxiliary model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.methods.darts_base import Pass
from engine.methods.darts_data import Batch, Halves
from engine.methods.tetlo import Student, Tetlo
from engine.methods.tetlo_options import TetloOptions

TINY: dict[str, Any] = {
    "device": "cpu",
    "cells": 2,
    "channels": 2,
    "batch": 6,
    "images": 12,
    "epochs": 2,
    "pairs": 15,
    "interval": 1,
    "lam": 0.7,
}


class Doubled(Halves):
    """The same batches in float64."""

    def _batch(self, images: Tensor, chosen: Tensor) -> Batch:
        batch = super()._batch(images, chosen)
        return Batch(batch.images.double(), batch.labels)


def double(student: Student) -> None:
    student.w, student.sgd.velocity = student.w.double(), torch.sin(torch.arange(len(student.w)).double()) / 9


def learner(**changes: Any) -> Tetlo:
    options = TetloOptions(**{**TINY, **changes})
    options.validate()
    tetlo = Tetlo(options, Doubled(options))
    double(tetlo.main)
    double(tetlo.auxiliary)
    tetlo.a = tetlo.a.double() * 300
    return tetlo


def third_level(tetlo: Tetlo, a: Tensor, places: Tensor, rate: float) -> Tensor:
    """P by Eqs. 5 to 12, step by step."""
    options, data = tetlo.options, tetlo.data

    def where(batch: str) -> Pass:
        return Pass("architecture", 0, 0, batch)

    def steps(student: Student, loss: Any) -> Tensor:
        w, m = student.w.clone().requires_grad_(), 0.9 * student.sgd.velocity
        for _ in range(options.unroll):
            (g,) = torch.autograd.grad(loss(w), w, create_graph=True)
            direction = g + 3e-4 * w + m
            w, m = w - rate * direction, 0.9 * direction
        return w

    def cross_entropy(student: Student, w: Tensor, batch: Batch, name: str) -> Tensor:
        return F.cross_entropy(student.model(w, a, batch.images, where(name)).logits, batch.labels)

    one, two = (data.training(0, 0, reader) for reader in ("main", "auxiliary"))
    main = steps(tetlo.main, lambda w: cross_entropy(tetlo.main, w, one, "main"))
    seen = tetlo.main.model(main, a, two.images, where("auxiliary"))

    def transferred(w: Tensor) -> Tensor:
        own = tetlo.auxiliary.model(w, a, two.images, where("auxiliary"))
        halves = (seen.logits, own.logits) if options.transfer == "pl" else (seen.features, own.features)
        return F.cross_entropy(own.logits, two.labels) + 0.7 * tetlo.knowledge(*halves, places)

    auxiliary = steps(tetlo.auxiliary, transferred)
    three, four = (data.validating(0, 0, reader) for reader in ("main", "auxiliary"))
    alone = options.objective == "auxiliary-only"
    of_main = torch.zeros(()) if alone else cross_entropy(tetlo.main, main, three, "main validation")
    return of_main + options.gamma * cross_entropy(tetlo.auxiliary, auxiliary, four, "auxiliary validation")


CASES: dict[str, dict[str, Any]] = {
    "qrs": {},
    "pl": {"transfer": "pl", "gamma": 0.5},
    "regembed": {"transfer": "regembed"},
    "two steps": {"unroll": 2},
    "auxiliary only": {"objective": "auxiliary-only", "transfer": "ts"},
    "resnet18": {"auxiliary": "resnet18", "auxiliary_width": 2},
    "resnet50, pl, two steps": {"auxiliary": "resnet50", "auxiliary_width": 1, "transfer": "pl", "unroll": 2},
    "pcdarts": {"base": "pcdarts", "channels": 4, "partial": 2, "transfer": "ts"},
    "prdarts": {"base": "prdarts", "tau_max": 0.5, "transfer": "ps"},
    "pdarts": {
        "base": "pdarts",
        "added_cells": "0",
        "kept": "",
        "skip_dropout": "0.3",
        "auxiliary": "resnet18",
        "auxiliary_width": 1,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_descends_on_the_third_level(case: str) -> None:
    tetlo = learner(**CASES[case])
    batches = [tetlo.data.training(0, 0, reader) for reader in ("main", "auxiliary")]
    places = tetlo.knowledge.draw(6, 15, torch.Generator().manual_seed(1))
    found = tetlo.hypergradient(0, 0, batches, places, 0.25)
    a = tetlo.a.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(third_level(tetlo, a, places, 0.25), a)
    total = found.main + found.auxiliary if tetlo.options.auxiliary == "tied" else found.main
    torch.testing.assert_close(total, wanted, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("transfer", ["qrs", "pl"])
def test_transfer_reaches_the_main_model(transfer: str) -> None:
    tetlo = learner(transfer=transfer)
    batches = [tetlo.data.training(0, 0, reader) for reader in ("main", "auxiliary")]
    places = tetlo.knowledge.draw(6, 15, torch.Generator().manual_seed(1))
    found = []
    for lam in (0.7, 0.0):
        tetlo.options = TetloOptions(**{**TINY, "transfer": transfer, "lam": lam})
        found.append(tetlo.hypergradient(0, 0, batches, places, 0.25).main)
    assert not torch.allclose(*found, rtol=1e-4)
