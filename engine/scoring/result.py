"""What a score is: a number that knows whether it can be trusted. No torch here, so rankings and reports stay light."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Status = Literal["ok", "clamped", "singular", "nonfinite"]
STATUSES: tuple[Status, ...] = get_args(Status)  # from the best to the worst


@dataclass(frozen=True)
class Score:
    """A number and its status.

    ``ok``: the number is what it claims to be, and finite. ``clamped``: a limit asked for by the caller was applied.
    ``singular``: the matrix has no usable inverse (value inf). ``nonfinite``: NaN or infinity met on the way (value NaN).
    """

    value: float
    status: Status = "ok"
    name: str = ""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status: {self.status!r} is not one of {', '.join(STATUSES)}")
        if self.ok and not math.isfinite(self.value):
            raise ValueError(f"value: a score of status 'ok' is finite, got {self.value}")

    def __float__(self) -> float:
        return float(self.value)

    @property
    def ok(self) -> bool:
        """Whether the value may be used without a second thought."""
        return self.status == "ok"

    def rank_key(self, best: Literal["smallest", "largest"] = "smallest") -> tuple[int, float]:
        """Return a key that sorts scores from the best to the worst: by status first, then by value, NaN last.

        No score that is not ``ok`` comes before one that is, whatever its value.
        """
        if best not in ("smallest", "largest"):
            raise ValueError(f"best: {best!r} is not 'smallest' or 'largest'")
        value = self.value if best == "smallest" else -self.value
        return STATUSES.index(self.status), math.inf if math.isnan(value) else value
