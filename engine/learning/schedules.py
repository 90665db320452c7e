"""Learning rates as functions of the step alone, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def constant(rate: float) -> Schedule:
    """The same rate at every step."""
    return lambda step: rate


def warmup_cosine(rate: float, *, warmup: int, total: int) -> Schedule:
    """rate (t + 1) / (W + 1) before step W, then rate (1 + cos(pi (t - W) / (T - W))) / 2 (reference note meta-ticket, 4)."""

    def at(step: int) -> float:
        if step < warmup:
            return rate * (step + 1) / (warmup + 1)
        return 0.5 * rate * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    return at
