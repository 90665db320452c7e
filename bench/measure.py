"""From a case (one configuration, several methods) to rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from bench.networks import MEMORY_FORMATS
from bench.registry import Settings
from bench.rows import Quantiles, Row, measured_on, now
from bench.timing import Call, Times, interleaved, peak_bytes
from engine.errors import ConfigurationError

STARTED = time.time()
CHANGED = "sources changed while measured"

# Rounds, besides the discarded one, that decide which memory format a method is measured in.
PILOT_ROUNDS = 2


Built = Mapping[str, Mapping[str, Call]]  # by memory format, then by name


@dataclass(frozen=True)
class Case:
    """One configuration and the methods that are compared on it.

    Args:
        benchmark: name in the registry.
        configuration: what the rows say of the case.
        build: ``build(memory_format, samples)`` returns the calls by name, all on one network and one batch; picklable. A call
            that is wrong in a memory format is left out. Every method is measured in its own fastest format, baselines too.
        samples: size of the batch.
        warm_samples: a batch that is just large enough to run everything once.
        methods: each method's cost as a weighted sum of calls, ``{method: {call: weight}}``; seconds and ratios are of that sum.
        baselines: the methods of which the fastest is what the others are divided by.
        notes: what the rows say of a method.
        memory: whether peak memory is measured, which takes seconds a call.
    """

    benchmark: str
    configuration: Mapping[str, int | str]
    build: Callable[[str, int], Mapping[str, Call]]
    samples: int
    warm_samples: int
    methods: Mapping[str, Mapping[str, float]]
    baselines: tuple[str, ...]
    notes: Mapping[str, str] = field(default_factory=dict)
    memory: bool = True


def single_calls(names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The ``methods`` of a case in which every method is one call."""
    return {name: {name: 1.0} for name in names}


def measure(case: Case, settings: Settings) -> Iterator[Row]:
    """Choose each method's memory format, measure its peak memory, then its time; one row a method.

    A method in the settings that the case does not have is a :class:`ConfigurationError`. Rows whose times and peaks may come
    from different sources say so in their note.
    """
    case = _restricted(case, settings.methods)
    built = {layout: case.build(layout, case.samples) for layout in MEMORY_FORMATS}
    chosen = _formats(case, built)
    peaks = {method: _peak(case, method, chosen[method]) for method in case.methods}  # before the long part: it may fail
    times = _timed(case, built, chosen, settings.rounds)
    baseline = min(case.baselines, key=lambda name: Quantiles.of(times[name].cpu).median)
    base, base_peak = times[baseline], peaks[baseline]
    unchanged = not sources_changed()
    for method, spent in times.items():
        peak, note = peaks[method], case.notes.get(method, "")
        yield Row(
            benchmark=case.benchmark,
            configuration=case.configuration,
            method=method,
            memory_format=chosen[method],
            dtype="float32",
            device=settings.device,
            rounds=settings.rounds,
            cpu_s=Quantiles.of(spent.cpu),
            wall_s=Quantiles.of(spent.wall),
            baseline=baseline,
            ratio=Quantiles.of([own / other for own, other in zip(spent.cpu, base.cpu, strict=True)]),
            peak_bytes=peak,
            peak_ratio=peak / base_peak if peak is not None and base_peak else None,
            note=note if unchanged else f"{note}; {CHANGED}".lstrip("; "),
            date=now(),
            environment=measured_on(),
        )


def sources_changed() -> bool:
    """Whether a source file is newer than this process, so that the processes that measure memory may have run other code."""
    root = Path(__file__).resolve().parents[1]
    files = (path for folder in ("bench", "engine", "kernels") for path in (root / folder).rglob("*.py"))
    return any(path.stat().st_mtime > STARTED for path in files)


def _restricted(case: Case, names: Sequence[str]) -> Case:
    for name in names:
        if name not in case.methods:
            raise ConfigurationError(f"--method: {case.benchmark!r} here has no {name!r}; it has {', '.join(case.methods)}")
    wanted = {*case.baselines, *names} if names else set(case.methods)
    return replace(case, methods={name: parts for name, parts in case.methods.items() if name in wanted})


def _formats(case: Case, built: Built) -> dict[str, str]:
    """The faster memory format of each method."""
    needed = {name for parts in case.methods.values() for name in parts}
    trial = {(layout, name): call for layout, calls in built.items() for name, call in calls.items() if name in needed}
    pilot = interleaved(trial, PILOT_ROUNDS)
    return {method: _fastest(pilot, parts) for method, parts in case.methods.items()}


def _timed(case: Case, built: Built, chosen: Mapping[str, str], rounds: int) -> dict[str, Times]:
    wanted = [(chosen[method], name) for method, parts in case.methods.items() for name in parts]
    times = interleaved({(layout, name): built[layout][name] for layout, name in wanted}, rounds)
    return {method: _total(times, chosen[method], parts) for method, parts in case.methods.items()}


def _fastest(pilot: Mapping[tuple[str, str], Times], parts: Mapping[str, float]) -> str:
    able = [layout for layout in MEMORY_FORMATS if all((layout, name) in pilot for name in parts)]
    return min(able, key=lambda layout: min(_total(pilot, layout, parts).cpu))


def _total(times: Mapping[tuple[str, str], Times], layout: str, parts: Mapping[str, float]) -> Times:
    def weighted(columns: Iterable[list[float]]) -> list[float]:
        return [sum(w * s for w, s in zip(parts.values(), row, strict=True)) for row in zip(*columns, strict=True)]

    return Times(
        weighted(times[layout, name].cpu for name in parts),
        weighted(times[layout, name].wall for name in parts),
    )


def _peak(case: Case, method: str, layout: str) -> int | None:
    if not case.memory:
        return None
    peaks = [peak_bytes(partial(_prepare, case, layout, name)) for name in case.methods[method]]
    return max((peak for peak in peaks if peak is not None), default=None)


def _prepare(case: Case, layout: str, name: str) -> tuple[Call, Call]:
    return case.build(layout, case.warm_samples)[name], case.build(layout, case.samples)[name]
