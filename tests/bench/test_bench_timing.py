"""Timing and memory: what the numbers mean."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from bench import timing
from bench.measure import CHANGED, Case, measure
from bench.registry import Settings
from bench.timing import SHORTEST_SECONDS, Call, interleaved, peak_bytes
from engine.errors import ConfigurationError, NumericalError


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_calls_take_turns() -> None:
    order: list[str] = []

    def call(name: str) -> None:
        order.append(name)
        burn(SHORTEST_SECONDS)

    found = interleaved({"a": partial(call, "a"), "b": partial(call, "b")}, 3)
    assert order[-6:] == ["a", "b"] * 3
    assert all(len(times.cpu) == len(times.wall) == 3 for times in found.values())


def test_short_calls_are_repeated_and_given_by_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now, process_time=lambda: now))
    count = 0

    def call() -> None:
        nonlocal count, now
        count += 1
        now += 0.002

    found = interleaved({"short": call}, 2)["short"]
    assert count == 2 + 2 * math.ceil(SHORTEST_SECONDS / 0.002)
    assert found.cpu == pytest.approx([0.002, 0.002])


def test_cpu_time_leaves_waiting_out() -> None:
    found = interleaved({"sleep": partial(time.sleep, 0.03)}, 1)["sleep"]
    assert found.cpu[0] < 0.015
    assert found.wall[0] >= 0.03


def fake_calls(memory_format: str, samples: int) -> Mapping[str, Call]:
    slow = 2 if memory_format == "channels_last" else 1
    found = {"base": partial(burn, 0.02 * (3 - slow)), "part": partial(burn, 0.02 * slow), "whole": partial(burn, 0.04 * slow)}
    return found if slow == 1 else {**found, "odd": partial(burn, 0.04)}


CASE = Case(
    benchmark="fake",
    configuration={"samples": 1},
    build=fake_calls,
    samples=1,
    warm_samples=1,
    methods={"base": {"base": 1.0}, "sum": {"part": 1.0, "whole": 0.5}},
    baselines=("base",),
    notes={"sum": "a note"},
    memory=False,
)


def test_methods_are_sums_of_calls_in_their_faster_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.measure.STARTED", time.time() + 3600)
    base, total = measure(CASE, Settings(rounds=3))
    assert (base.memory_format, total.memory_format) == ("channels_last", "contiguous")
    assert base.cpu_s.median == pytest.approx(0.02, rel=0.3)
    assert total.cpu_s.median == pytest.approx(0.04, rel=0.3)
    assert total.ratio.median == pytest.approx(2, rel=0.3)
    assert (base.ratio.median, total.note, total.peak_bytes) == (1, "a note", None)


def test_the_fastest_baseline_divides() -> None:
    methods = {"odd": {"odd": 1.0}, **CASE.methods}
    found = list(measure(replace(CASE, methods=methods, baselines=("odd", "base")), Settings(rounds=3)))
    assert [row.baseline for row in found] == ["base"] * 3
    assert found[0].memory_format == "channels_last"  # the only one it was built for
    assert found[0].ratio.median == pytest.approx(2, rel=0.3)


def test_methods_can_be_chosen() -> None:
    assert [row.method for row in measure(CASE, Settings(rounds=1, methods=("base",)))] == ["base"]
    with pytest.raises(ConfigurationError, match="has no 'other'; it has base, sum"):
        list(measure(CASE, Settings(methods=("other",))))


def test_changed_sources_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.measure.STARTED", time.time() + 3600)
    assert CHANGED not in next(iter(measure(CASE, Settings(rounds=1)))).note
    monkeypatch.setattr("bench.measure.STARTED", 0.0)
    base, total = measure(CASE, Settings(rounds=1))
    assert (base.note, total.note) == (CHANGED, f"a note; {CHANGED}")


def touch(mebibytes: int) -> None:
    torch.ones(mebibytes * 2**20 // 4)


def a_large_call_after_a_small_one() -> tuple[Call, Call]:
    return partial(touch, 90), partial(touch, 64)


def dying() -> tuple[Call, Call]:
    return partial(touch, 1), partial(os._exit, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_peak_is_that_of_the_second_call_alone() -> None:
    peak = peak_bytes(a_large_call_after_a_small_one)
    assert peak == pytest.approx(64 * 2**20, rel=0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_a_process_that_dies_is_reported() -> None:
    with pytest.raises(NumericalError, match="died"):
        peak_bytes(dying)
