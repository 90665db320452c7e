"""Intervals of a share of right answers. No torch here."""

from __future__ import annotations

import math

Z95 = 1.959963984540054


def wilson(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of ``right`` of ``total`` independent answers: where the true share lies.

    Unlike the mean ± 1.96 standard errors it never leaves [0, 1] and holds near 0 and 1.
    """
    share, z = right / total, Z95 * Z95 / total
    centre = (share + z / 2) / (1 + z)
    half = Z95 * math.sqrt(share * (1 - share) / total + z / (4 * total)) / (1 + z)
    return max(0.0, centre - half), min(1.0, centre + half)
