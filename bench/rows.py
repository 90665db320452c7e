"""What a benchmark leaves: one JSON object a line for each method and configuration. No torch here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.errors import ConfigurationError
from engine.runs.environment import environment

MAX_FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Quantiles:
    """Median, 20th and 80th percentile over the rounds, linearly interpolated."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantiles:
        """Summarise at least one value."""
        ordered = sorted(values)

        def at(share: float) -> float:
            position = share * (len(ordered) - 1)
            low = math.floor(position)
            high = min(low + 1, len(ordered) - 1)
            return ordered[low] + (position - low) * (ordered[high] - ordered[low])

        return cls(at(0.5), at(0.2), at(0.8))


@dataclass(frozen=True)
class Row:
    """One measured method.

    ``cpu_s`` (process time of all threads) and ``wall_s`` are seconds a call. ``ratio`` divides the CPU time of a round by that
    of the method named ``baseline`` in the same round. ``peak_bytes`` is the memory that a call takes beyond what was held
    before it, None where not measured. ``environment`` has versions, processor, threads and git revision.
    """

    benchmark: str
    configuration: Mapping[str, int | str]
    method: str
    memory_format: str
    dtype: str
    device: str
    rounds: int
    cpu_s: Quantiles
    wall_s: Quantiles
    baseline: str
    ratio: Quantiles
    peak_bytes: int | None
    peak_ratio: float | None
    note: str
    date: str
    environment: Mapping[str, Any]

    def json(self) -> str:
        """One line of strict JSON."""
        return json.dumps(asdict(self), allow_nan=False)

    def text(self) -> str:
        """One line for people."""
        setting = " ".join(f"{key}={value}" for key, value in self.configuration.items())
        spread = f"{self.ratio.median:6.2f}x [{self.ratio.p20:.2f}, {self.ratio.p80:.2f}]"
        peak = "" if self.peak_bytes is None else f"  {self.peak_bytes / 1e6:7.1f} MB"
        peak += "" if self.peak_ratio is None else f" {self.peak_ratio:5.2f}x"
        name = f"{self.method} ({self.memory_format})"
        seconds = f"{self.cpu_s.median * 1e3:10.2f} ms"
        return f"{self.benchmark} {setting}  {name:<44} {seconds}  {spread:<24}{peak}  {self.note}".rstrip()


@cache
def measured_on() -> dict[str, Any]:
    """Versions and hardware of this process; asks git once."""
    facts = environment()
    try:
        return facts | {"opacus": metadata.version("opacus")}
    except metadata.PackageNotFoundError:
        return facts


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read(path: Path) -> list[Row]:
    """Read a file of rows. A file that is not one is a :class:`ConfigurationError` that names the line."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigurationError(f"{path}: larger than {MAX_FILE_BYTES // 1024**2} MiB, so not a file of benchmark rows")
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise ConfigurationError(f"{path}: cannot be read ({reason}); name a file that `bench run --json` wrote") from None
    found = [_parsed(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise ConfigurationError(f"{path}: holds no rows; `python -m bench run NAME --json {path}` adds some")
    return found


def _parsed(path: Path, number: int, line: str) -> Row:
    try:
        value = json.loads(line)
        for name in ("cpu_s", "wall_s", "ratio"):
            value[name] = Quantiles(**value[name])
        row = Row(**value)
        sound = _is_sound(row)
    except (ValueError, TypeError, KeyError, RecursionError):
        sound = False
    if not sound:
        raise ConfigurationError(f"{path}: line {number} is not a benchmark row; remove it or measure again")
    return row


def _is_sound(row: Row) -> bool:
    """Whether what a drawing reads has the types it should have."""
    texts = (row.benchmark, row.method, row.device)
    numbers = [part for quantiles in (row.cpu_s, row.wall_s, row.ratio) for part in asdict(quantiles).values()]
    numbers += [part for part in (row.peak_bytes, row.peak_ratio) if part is not None]
    return (
        all(isinstance(text, str) for text in texts)
        and isinstance(row.configuration, dict)
        and all(isinstance(part, int | float) and math.isfinite(part) for part in numbers)
    )
