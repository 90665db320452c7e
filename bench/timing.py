"""Measuring: calls interleaved round robin, summarised by paired ratios, and each call's peak memory in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import math
import re
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch

from engine.errors import NumericalError

Call = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)

# Calls shorter than this are repeated within a round until they fill it; the clock's own cost is then far below a percent.
SHORTEST_SECONDS = 0.02
MOST_REPEATS = 1000


@dataclass(frozen=True)
class Times:
    """CPU seconds (of all threads) and wall seconds of one call, by round."""

    cpu: list[float]
    wall: list[float]


def interleaved(calls: Mapping[Key, Call], rounds: int) -> dict[Key, Times]:
    """Time every call once a round, one after the other, so that what disturbs the machine for a while disturbs all of them.

    A first round is discarded: it warms caches up and says how often a short call is repeated in a round.
    """
    times: dict[Key, Times] = {key: Times([], []) for key in calls}
    gc.freeze()  # what exists already need not be searched for garbage before every call
    try:
        repeats = {key: _repeats(call) for key, call in calls.items()}
        for _ in range(rounds):
            for key, call in calls.items():
                cpu, wall = _timed(call, repeats[key])
                times[key].cpu.append(cpu)
                times[key].wall.append(wall)
    finally:
        gc.unfreeze()
    return times


def _repeats(call: Call) -> int:
    seconds = max(_timed(call, 1))
    if seconds < 1:  # the first call may have loaded libraries; a second one that short costs nothing
        seconds = max(_timed(call, 1))
    return min(MOST_REPEATS, max(1, math.ceil(SHORTEST_SECONDS / max(seconds, 1e-9))))


def _timed(call: Call, repeats: int) -> tuple[float, float]:
    gc.collect()  # the garbage of one call is not the next one's cost
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return cpu / repeats, wall / repeats


def peak_bytes(prepare: Callable[[], tuple[Call, Call]]) -> int | None:
    """Memory that one call takes beyond what is held before it, measured in a fresh process; None outside Linux.

    ``prepare``, which must be picklable, returns a small call that loads whatever is loaded once, and the call to measure.
    The result is the process's highest resident memory during the call (VmHWM) minus its resident memory before (VmRSS).
    A process that dies (out of memory) is a :class:`NumericalError`.
    """
    if sys.platform != "linux":
        return None
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_peak_here, prepare).result()
        except BrokenProcessPool:
            raise NumericalError(
                "the process that measures peak memory died, probably out of memory; free some or use smaller shapes"
            ) from None


def _peak_here(prepare: Callable[[], tuple[Call, Call]]) -> int:
    torch.set_num_threads(1)
    warm, call = prepare()
    warm()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else memory that the small call freed would serve the measured one unseen
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None, f"/proc/self/status has no {name}"
    return int(match[1]) * 1024
