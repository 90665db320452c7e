"""Losses of classification for labels that are wrong or classes that are rare (paper 004, appendix A)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.errors import ConfigurationError

# The constant of the robust log loss in the published search under label noise (Chen et al. 2020).
ROBUST_LOG = 0.1


def robust_log_loss(logits: Tensor, labels: Tensor, *, constant: float = ROBUST_LOG) -> Tensor:
    """log((c + 1) / c) - log(c + p_y) + the mean over other classes j of log(c + p_j), of logits (B, K) and labels (B,) -> (B,).

    Zero where p_y = 1. Its sum over all labels does not depend on the probabilities p, which makes its minimum that of the clean
    labels under symmetric noise (Kumar and Sastry 2018). K is at least 2.
    """
    logs = (constant + logits.softmax(1)).log()
    own = logs.gather(1, labels[:, None])[:, 0]
    return math.log((constant + 1) / constant) - own + (logs.sum(1) - own) / (logits.shape[1] - 1)


def class_balanced_weights(counts: Tensor, beta: float) -> Tensor:
    """(1 - beta) / (1 - beta^n_c) for classes of n_c images (K,), scaled to sum to K, in float32 (Cui et al. 2019).

    From equal weights at beta = 0 to 1 / n_c towards 1. ``beta`` is in [0, 1); a class without images is a
    :class:`ConfigurationError`.
    """
    if not 0 <= beta < 1:
        raise ConfigurationError(f"--class-balance must be in [0, 1), got {beta}")
    if int(counts.min()) < 1:
        raise ConfigurationError(f"--class-balance: class {int(counts.argmin())} has no image in the validation half")
    weights = (1 - beta) / (1 - torch.tensor(beta, dtype=torch.float64) ** counts.double().cpu())
    return (weights * (len(counts) / weights.sum())).float()


class Criterion:
    """The mean losses that weights and architectures descend on: cross-entropy or the ``robust`` log loss.

    ``weights`` (K,), if there are any, multiply the losses of a class in validation.
    """

    def __init__(self, *, robust: bool = False, weights: Tensor | None = None) -> None:
        self.robust, self.weights = robust, weights

    def training(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K) and (B,) -> a scalar."""
        return robust_log_loss(logits, labels).mean() if self.robust else F.cross_entropy(logits, labels)

    def validation(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The same, with the classes' weights."""
        if self.weights is None:
            return self.training(logits, labels)
        each = robust_log_loss(logits, labels) if self.robust else F.cross_entropy(logits, labels, reduction="none")
        return (each * self.weights[labels]).mean()
