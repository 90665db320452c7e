"""What checkpoints cost a search: the time inside ``Run.save``, as a share of the whole search's.

The search is metantk-nas with its default shape and one repeat, saved at its own pace in a temporary folder. ``ratio`` is of CPU
time as everywhere; most of a checkpoint is waiting for the disk, so the note has the share of wall time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.registry import Settings
from bench.rows import Quantiles, Row, measured_on, now
from bench.timing import Times
from engine.methods.metantk_nas import search
from engine.methods.options import MetaNTKNASOptions
from engine.runs.config import to_toml
from engine.runs.progress import Progress
from engine.runs.run import Run
from engine.runs.signals import graceful

WHOLE, SAVING = "search", "its checkpoints"


class TimedRun(Run):
    """A run that adds up the time of its saves."""

    saves = 0
    cpu = wall = 0.0

    def save(self, state: dict[str, Any], tensors: dict[str, torch.Tensor] | None = None) -> None:
        """Save as ever."""
        wall, cpu = time.perf_counter(), time.process_time()
        super().save(state, tensors)
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu
        self.saves += 1


def rows(settings: Settings) -> Iterator[Row]:
    """A row of the search and one of its checkpoints."""
    torch.set_num_threads(1)
    options = MetaNTKNASOptions(device="cpu", repeats=1, width=settings.width)
    if settings.scale == "smoke":
        options = replace(options, space="bench.faults:TOY", cells=2, region_images=10)
    whole, saving, saves = Times([], []), Times([], []), 0
    for _ in range(settings.rounds):
        saves = _round(options, whole, saving)
    configuration = {"cells": options.cells, "channels": options.channels, "repeats": options.repeats, "checkpoints": saves}
    shares = Quantiles.of([part / all_ for part, all_ in zip(saving.wall, whole.wall, strict=True)])
    note = f"{shares.median:.2%} of wall time [{shares.p20:.2%}, {shares.p80:.2%}]"
    for method, times, text in ((WHOLE, whole, ""), (SAVING, saving, note)):
        yield Row(
            benchmark="checkpoint",
            configuration=configuration,
            method=method,
            memory_format="channels_last",
            dtype=options.dtype,
            device="cpu",
            rounds=settings.rounds,
            cpu_s=Quantiles.of(times.cpu),
            wall_s=Quantiles.of(times.wall),
            baseline=WHOLE,
            ratio=Quantiles.of([part / all_ for part, all_ in zip(times.cpu, whole.cpu, strict=True)]),
            peak_bytes=None,
            peak_ratio=None,
            note=text,
            date=now(),
            environment=measured_on(),
        )


def _round(options: MetaNTKNASOptions, whole: Times, saving: Times) -> int:
    """Search once; returns the number of checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        with TimedRun.create(Path(folder), to_toml("metantk-nas", options), {}) as run, graceful() as stop:
            assert isinstance(run, TimedRun)
            wall, cpu = time.perf_counter(), time.process_time()
            search(options, run, stop, partial(Progress, quiet=True))
            whole.wall.append(time.perf_counter() - wall)
            whole.cpu.append(time.process_time() - cpu)
            saving.wall.append(run.wall)
            saving.cpu.append(run.cpu)
        return run.saves
