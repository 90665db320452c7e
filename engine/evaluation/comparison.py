"""From the runs of several methods to one table: means, spread over runs, intervals over tasks, and which differences hold."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean, stdev
from typing import Any


@dataclass(frozen=True)
class Trained:
    """One search-train-test run: the results of its search (empty for a reference network) and of its training, which lies in
    ``directory``."""

    method: str
    seed: int
    directory: str
    search: dict[str, Any]
    train: dict[str, Any]

    def accuracy(self, kind: int) -> float:
        """Percent of queries told right by the first classifier in tasks of kind ``kind``."""
        return 100 * self.train["tests"][kind]["accuracies"][0]["mean"]

    def interval(self, kind: int) -> float:
        """Half the 95 % interval over the tasks, in percent."""
        return 100 * self.train["tests"][kind]["accuracies"][0]["interval"]


@dataclass(frozen=True)
class Difference:
    """How much more accurate the first of two methods is, with half its 95 % interval over runs; None where runs are too few."""

    value: float
    interval: float | None

    @property
    def supported(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval is not None and abs(self.value) > self.interval


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Mean difference of paired values and half its 95 % interval by Student's t; runs are paired because seeds share their
    tasks."""
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    if len(gaps) < 2:
        return Difference(mean(gaps), None)
    from scipy.stats import t

    return Difference(mean(gaps), float(t.ppf(0.975, len(gaps) - 1)) * stdev(gaps) / math.sqrt(len(gaps)))


def comparison(runs: Sequence[Trained]) -> dict[str, Any]:
    """Tables and the plot of finished runs, the same seeds for every method; the first kind of task is the headline."""
    groups, kinds = by_method(runs)
    tables = [accuracy_table(groups, kinds), cost_table(groups), difference_table(groups, kinds)]
    tables += [*random_tables(groups, kinds), run_table(runs, kinds)]
    return {"tables": tables, "plots": [accuracy_plot(groups, kinds[0])]}


def transferred(source: str, target: str, runs: Sequence[Trained]) -> list[dict[str, Any]]:
    """Tables of what was found on one data set, trained and tested on another."""
    groups, kinds = by_method(runs)
    tables = [accuracy_table(groups, kinds), difference_table(groups, kinds), run_table(runs, kinds)]
    return [{**table, "title": f"{table['title']} (from {source} to {target})"} for table in tables]


def by_method(runs: Sequence[Trained]) -> tuple[dict[str, list[Trained]], list[str]]:
    """The runs of each method, and the kinds of tasks that all of them were tested on."""
    groups: dict[str, list[Trained]] = {}
    for run in runs:
        groups.setdefault(run.method, []).append(run)
    return groups, [test["kind"] for test in runs[0].train["tests"]]


def by_seed(runs: Sequence[Trained], kind: int) -> list[float]:
    """Accuracy of each seed in the order of the runs, the mean where a seed has several (random cells)."""
    found: dict[int, list[float]] = {}
    for run in runs:
        found.setdefault(run.seed, []).append(run.accuracy(kind))
    return [mean(values) for values in found.values()]


def random_tables(groups: dict[str, list[Trained]], kinds: Sequence[str]) -> list[dict[str, Any]]:
    """How the cells that ``random`` drew scatter, and how many of them every other method's mean beats; nothing for one cell."""
    rows = []
    for drawn in filter(is_random, groups):
        for kind, name in enumerate(kinds if len(groups[drawn]) > 1 else ()):
            values = [run.accuracy(kind) for run in groups[drawn]]
            means = {method: mean(run.accuracy(kind) for run in runs) for method, runs in groups.items() if not is_random(method)}
            below = ", ".join(f"{method} {sum(v < own for v in values)}/{len(values)}" for method, own in means.items())
            numbers = [f"{value:.2f}" for value in (mean(values), stdev(values), min(values), max(values))]
            rows.append([drawn, name, len(values), *numbers, below])
    if not rows:
        return []
    columns = ["method", "tasks", "cells", "mean", "sd", "worst", "best", "cells below the mean of"]
    note = "Percent. The spread holds that of cells and that of trainings; what is above all of few cells is not thereby better."
    return [{"title": "Random cells", "columns": columns, "rows": rows, "note": note}]


def is_random(method: str) -> bool:
    """Whether a row of the comparison is ``random``, at any depth and by any recipe."""
    return re.split("[@+]", method)[0] == "random"


def accuracy_table(groups: dict[str, list[Trained]], kinds: Sequence[str]) -> dict[str, Any]:
    """Mean accuracy of each method and kind, with the two kinds of spread kept apart."""
    rows = [[name, len(runs), *(_accuracy(runs, kind) for kind in range(len(kinds)))] for name, runs in groups.items()]
    note = (
        "Percent, mean over runs. sd is the standard deviation over runs, ± half the 95 % interval over the tasks of these runs."
    )
    return {"title": "Few-shot accuracy", "columns": ["method", "runs", *kinds], "rows": rows, "note": note}


def _accuracy(runs: Sequence[Trained], kind: int) -> str:
    values = [run.accuracy(kind) for run in runs]
    tasks = math.sqrt(sum(run.interval(kind) ** 2 for run in runs)) / len(runs)
    spread = f", sd {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f} ± {tasks:.2f}{spread}"


def cost_table(groups: dict[str, list[Trained]]) -> dict[str, Any]:
    """What each method's networks and searches cost, means over runs: what a score must beat is size alone."""
    rows = []
    for name, runs in groups.items():
        values = [mean(run.train[key] for run in runs) for key in ("parameters", "flops", "steps", "cpu_seconds")]
        searched = [[run.search.get(key, 0) for run in runs] for key in ("cpu_seconds", "evaluations")]
        *sizes, seconds = values
        rows.append([name, *map(round, sizes), *(round(value, 1) for value in (seconds, *map(mean, searched)))])
    columns = ["method", "parameters", "FLOPs", "training steps", "training CPU s", "search CPU s", "evaluations"]
    note = "Parameters and FLOPs of one image, without the linear head."
    return {"title": "Cost", "columns": columns, "rows": rows, "note": note}


def difference_table(groups: dict[str, list[Trained]], kinds: Sequence[str]) -> dict[str, Any]:
    """Every pair of methods: difference, interval over runs, and whether the interval supports it."""
    rows = []
    for first, second in combinations(groups, 2):
        for kind, name in enumerate(kinds):
            found = paired_difference(*(by_seed(groups[method], kind) for method in (first, second)))
            interval = "one run each" if found.interval is None else f"± {found.interval:.2f}"
            verdict = "supported" if found.supported else "not supported"
            rows.append([f"{first} − {second}", name, f"{found.value:+.2f}", interval, verdict])
    note = "Paired over seeds, Student's t, 95 %; no correction for the number of comparisons."
    columns = ["difference", "tasks", "points", "interval over runs", "a difference is"]
    return {"title": "Which differences these runs support", "columns": columns, "rows": rows, "note": note}


def run_table(runs: Sequence[Trained], kinds: Sequence[str]) -> dict[str, Any]:
    """Every run with the command that repeats its training and test."""
    rows = [
        [
            run.method,
            run.seed,
            *(f"{run.accuracy(kind):.2f}" for kind in range(len(kinds))),
            run.train["parameters"],
            run.train.get("command"),
        ]
        for run in runs
    ]
    return {"title": "Runs", "columns": ["method", "seed", *kinds, "parameters", "command"], "rows": rows}


def accuracy_plot(groups: dict[str, list[Trained]], kind: str) -> dict[str, Any]:
    """Accuracy of every run against its parameters, with the interval over tasks."""
    series = []
    for name, runs in groups.items():
        y, half = [run.accuracy(0) for run in runs], [run.interval(0) for run in runs]
        low, high = [a - b for a, b in zip(y, half, strict=True)], [a + b for a, b in zip(y, half, strict=True)]
        series.append({"name": name, "x": [run.train["parameters"] for run in runs], "y": y, "low": low, "high": high})
    title = "Accuracy against size"
    return {"title": title, "x_label": "parameters", "y_label": f"percent, {kind}", "series": series, "kind": "scatter"}
