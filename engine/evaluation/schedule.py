"""How rates change while a network is trained, as functions of the progress. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence


def cosine(progress: float, *, warmup: float) -> float:
    """Share of the peak learning rate after ``progress`` (0 to 1) of the training: linear from zero over ``warmup``, then
    cosine to zero."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def step_decay(epoch: int, milestones: Sequence[int], factor: float = 0.1) -> float:
    """Share of the first learning rate in epoch ``epoch`` (from 0): multiplied by ``factor`` once each milestone is reached."""
    return factor ** sum(epoch >= milestone for milestone in milestones)


def drop_path_probability(peak: float, epoch: int, epochs: int, *, ramp: bool) -> float:
    """Probability of dropping a path in epoch ``epoch``: ``peak``, or ``peak * epoch / epochs`` (reference note section 7)."""
    return peak * epoch / epochs if ramp else peak
