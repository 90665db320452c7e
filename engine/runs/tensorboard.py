"""The numbers of a run directory for TensorBoard (an extra): ``python -m engine.runs tensorboard DIR --out FOLDER``.

Written from ``metrics.jsonl`` when asked, so a run costs nothing for it and needs no package; every call writes all there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from engine.errors import ConfigurationError
from engine.runs.records import read_run

# What counts the lines of an event, the first that a line has.
STEPS = ("step", "epoch", "round")


class Writer(Protocol):
    """What is used of ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Write one point."""

    def close(self) -> None:
        """Finish the file."""


def scalars(metrics: list[dict[str, Any]]) -> Iterator[tuple[str, float, int]]:
    """(tag, value, step) of every number in the lines of ``metrics.jsonl``; tags are ``event/name``, nested ``event/name/part``.

    Lines without a count of their own are numbered by their event. What is not finite stands there as text and is left out.
    """
    seen: dict[str, int] = {}
    for line in metrics:
        event = str(line.get("event", "metrics"))
        counted = next((line[name] for name in STEPS if isinstance(line.get(name), int)), seen.get(event, 0))
        seen[event] = seen.get(event, 0) + 1
        for name, value in line.items():
            if name not in ("event", *STEPS):
                yield from ((tag, number, counted) for tag, number in _numbers(f"{event}/{name}", value))


def _numbers(tag: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield tag, float(value)
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _numbers(f"{tag}/{name}", part)


def write(directory: Path, writer: Writer) -> int:
    """Write the scalars of one run; returns how many."""
    count = 0
    for tag, value, step in scalars(read_run(directory, scores=False).metrics):
        writer.add_scalar(tag, value, step)
        count += 1
    writer.close()
    return count


def summary_writer(folder: Path) -> Writer:
    """TensorBoard's own writer; without the package a :class:`~engine.errors.ConfigurationError`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigurationError("TensorBoard's files need its package; pip install 'nas-engine[tensorboard]'") from None
    return SummaryWriter(str(folder))
