"""Losses for wrong labels and rare classes against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from engine.errors import ConfigurationError
from engine.learning.losses import Criterion, class_balanced_weights, robust_log_loss

LOGITS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 3, 1, 2, 2])


def test_robust_log_loss() -> None:
    p = LOGITS.softmax(1).tolist()
    wanted = [
        math.log(1.1 / 0.1) - math.log(0.1 + p[i][y]) + sum(math.log(0.1 + p[i][j]) for j in range(4) if j != y) / 3
        for i, y in enumerate(LABELS.tolist())
    ]
    torch.testing.assert_close(robust_log_loss(LOGITS, LABELS), torch.tensor(wanted, dtype=torch.float64))
    certain = torch.tensor([[100.0, 0, 0, 0]])
    assert float(robust_log_loss(certain, torch.tensor([0]))) == pytest.approx(0, abs=1e-6)
    over_labels = sum(robust_log_loss(LOGITS, torch.full((5,), y)) for y in range(4))
    torch.testing.assert_close(over_labels, torch.full((5,), 4 * math.log(11), dtype=torch.float64))


def test_class_balanced_weights() -> None:
    counts = torch.tensor([5000, 500, 50])
    weights = class_balanced_weights(counts, 0.9999)
    raw = [(1 - 0.9999) / (1 - 0.9999**n) for n in counts.tolist()]
    torch.testing.assert_close(weights, torch.tensor([3 * value / sum(raw) for value in raw]))
    assert class_balanced_weights(counts, 0.0).tolist() == [1, 1, 1]
    with pytest.raises(ConfigurationError, match="class 1 has no image"):
        class_balanced_weights(torch.tensor([5, 0]), 0.9)
    with pytest.raises(ConfigurationError, match=r"\[0, 1\)"):
        class_balanced_weights(counts, 1.0)


@pytest.mark.parametrize("robust", [False, True])
def test_criterion_weighs_validation_only(robust: bool) -> None:
    weights = torch.tensor([0.1, 0.2, 3.0, 0.7])
    each = robust_log_loss(LOGITS, LABELS) if robust else F.cross_entropy(LOGITS, LABELS, reduction="none")
    weighted = Criterion(robust=robust, weights=weights)
    torch.testing.assert_close(weighted.training(LOGITS, LABELS), each.mean())
    torch.testing.assert_close(weighted.validation(LOGITS, LABELS), (each * weights[LABELS]).mean())
    torch.testing.assert_close(Criterion(robust=robust).validation(LOGITS, LABELS), each.mean())
