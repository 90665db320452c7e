"""How rates change while a network is trained, as functions of the progress. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence

EDGE_EPOCHS = 5


def cosine(progress: float, *, warmup: float) -> float:
    """Share of the peak learning rate after ``progress`` (0 to 1) of the training: linear from zero over ``warmup``, then
    cosine to zero."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def step_decay(epoch: int, milestones: Sequence[int], factor: float = 0.1) -> float:
    """Share of the first learning rate in epoch ``epoch`` (from 0): multiplied by ``factor`` once each milestone is reached."""
    return factor ** sum(epoch >= milestone for milestone in milestones)


def epoch_cosine(epoch: int, epochs: int) -> float:
    """Share of the first learning rate in epoch ``epoch`` of a cosine to zero without warm-up, constant within an epoch."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def epoch_linear(epoch: int, epochs: int) -> float:
    """Share of the peak learning rate in epoch ``epoch`` of the linear schedule for ImageNet (P-DARTS's and PC-DARTS's code).

    It rises over :data:`EDGE_EPOCHS` epochs while it falls, would reach zero as many epochs before the end, and falls more slowly
    over these. Trainings of at most twice as many epochs fall evenly from the first one.
    """
    if epochs <= 2 * EDGE_EPOCHS:
        return (epochs - epoch) / epochs
    middle = epochs - EDGE_EPOCHS
    falling = (middle - epoch) / middle if epoch < middle else (epochs - epoch) / (middle * EDGE_EPOCHS)
    return falling * min(1.0, (epoch + 1) / EDGE_EPOCHS)


def drop_path_probability(peak: float, epoch: int, epochs: int, *, ramp: bool) -> float:
    """Probability of dropping a path in epoch ``epoch``: ``peak``, or ``peak * epoch / epochs`` (reference note section 7)."""
    return peak * epoch / epochs if ramp else peak
