"""From a number to a :class:`~engine.scoring.result.Score`."""

from __future__ import annotations

import math

from engine.scoring.result import Score


def scored(name: str, value: float) -> Score:
    """NaN is ``nonfinite``; an infinity is ``singular``: the network is degenerate, and ranks behind all that are not."""
    if math.isnan(value):
        return Score(math.nan, "nonfinite", name)
    return Score(value, "ok" if math.isfinite(value) else "singular", name)


def degenerate(name: str) -> Score:
    """The score of a network without the signal that the proxy measures, such as a disconnected one."""
    return Score(-math.inf, "singular", name)
