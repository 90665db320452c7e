"""From a case (one configuration, several methods) to rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from bench.networks import MEMORY_FORMATS
from bench.registry import Settings
from bench.rows import Quantiles, Row, measured_on, now
from bench.timing import Call, Times, interleaved, peak_bytes
from engine.errors import ConfigurationError

# Rounds, besides the discarded one, that decide which memory format a method is measured in.
PILOT_ROUNDS = 2


@dataclass(frozen=True)
class Case:
    """One configuration and the methods that are compared on it.

    Args:
        benchmark: name in the registry.
        configuration: what the rows say of the case.
        build: ``build(memory_format, samples)`` returns the calls by name, all on one network and one batch; picklable.
        samples: size of the batch.
        warm_samples: a batch that is just large enough to run everything once.
        methods: each method's cost as a weighted sum of calls, ``{method: {call: weight}}``; seconds and ratios are of that sum.
        baseline: the method that the others are divided by.
        formats: memory formats of network and batch; every method, the baseline too, is measured in its own faster one.
        notes: what the rows say of a method.
        memory: whether peak memory is measured, which takes seconds a call.
    """

    benchmark: str
    configuration: Mapping[str, int | str]
    build: Callable[[str, int], Mapping[str, Call]]
    samples: int
    warm_samples: int
    methods: Mapping[str, Mapping[str, float]]
    baseline: str
    formats: tuple[str, ...] = tuple(MEMORY_FORMATS)
    notes: Mapping[str, str] = field(default_factory=dict)
    memory: bool = True


def single_calls(names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The ``methods`` of a case in which every method is one call."""
    return {name: {name: 1.0} for name in names}


def measure(case: Case, settings: Settings) -> Iterator[Row]:
    """Time the methods of a case, then measure their peak memory; one row a method.

    A method in the settings that the case does not have is a :class:`ConfigurationError`.
    """
    case = _restricted(case, settings.methods)
    chosen, times = _timed(case, settings.rounds)
    peaks = {method: _peak(case, method, chosen[method]) for method in case.methods}
    base, base_peak = times[case.baseline], peaks[case.baseline]
    for method, spent in times.items():
        peak = peaks[method]
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
            baseline=case.baseline,
            ratio=Quantiles.of([own / other for own, other in zip(spent.cpu, base.cpu, strict=True)]),
            peak_bytes=peak,
            peak_ratio=peak / base_peak if peak is not None and base_peak else None,
            note=case.notes.get(method, ""),
            date=now(),
            environment=measured_on(),
        )


def _restricted(case: Case, names: Sequence[str]) -> Case:
    for name in names:
        if name not in case.methods:
            raise ConfigurationError(f"--method: {case.benchmark!r} here has no {name!r}; it has {', '.join(case.methods)}")
    wanted = {case.baseline, *names} if names else set(case.methods)
    return replace(case, methods={name: parts for name, parts in case.methods.items() if name in wanted})


def _timed(case: Case, rounds: int) -> tuple[dict[str, str], dict[str, Times]]:
    """The faster memory format of each method, and its times in that format."""
    built = {layout: case.build(layout, case.samples) for layout in case.formats}
    every = {(layout, name) for layout in case.formats for parts in case.methods.values() for name in parts}
    chosen = dict.fromkeys(case.methods, case.formats[0])
    if len(case.formats) > 1:
        pilot = interleaved({key: built[key[0]][key[1]] for key in sorted(every)}, PILOT_ROUNDS)
        chosen = {method: _fastest(pilot, case.formats, parts) for method, parts in case.methods.items()}
    wanted = [(chosen[method], name) for method, parts in case.methods.items() for name in parts]
    times = interleaved({key: built[key[0]][key[1]] for key in wanted}, rounds)
    return chosen, {method: _total(times, chosen[method], parts) for method, parts in case.methods.items()}


def _fastest(pilot: Mapping[tuple[str, str], Times], formats: Sequence[str], parts: Mapping[str, float]) -> str:
    return min(formats, key=lambda layout: min(_total(pilot, layout, parts).cpu))


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
