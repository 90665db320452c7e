"""Tables and plots of several meta-learning runs: means with their intervals, paired differences, cost, curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from engine.evaluation.comparison import paired_difference
from engine.learning.evaluation import half_width
from engine.methods.learning_options import OuterOptions
from engine.methods.study_options import Job
from engine.runs.records import read_run

Key = tuple[str, Any]


@dataclass(frozen=True)
class Finished:
    """A run of the comparison: its job, its directory, result.json and the validations of metrics.jsonl."""

    job: Job
    directory: Path
    result: dict[str, Any]
    curve: list[dict[str, Any]]

    @classmethod
    def read(cls, job: Job, directory: Path) -> Finished:
        """From its run directory."""
        files = read_run(directory, scores=False)
        return cls(job, directory, files.result, [line for line in files.metrics if line.get("event") == "validation"])

    def each(self, data: str) -> list[float]:
        """Every test task's accuracy in percent, or its loss in a regression; empty where ``data`` was not tested."""
        test = self.result["tests"].get(data)
        if test is None:
            return []
        return [100 * value for value in test["each"]] if "accuracy" in test else test["each"]


Groups = dict[Key, list[Finished]]


def summary(options: OuterOptions, runs: Sequence[Finished]) -> dict[str, Any]:
    """What goes into result.json: the same seeds for every method and value."""
    groups: Groups = {}
    for run in runs:
        groups.setdefault((run.job.label, run.job.value), []).append(run)
    varied, _ = options.varied
    tested = list(dict.fromkeys(name for run in runs for name in run.result["tests"]))
    tables = [
        score_table(groups, tested, varied),
        difference_table(groups, tested, varied),
        cost_table(groups, varied),
        run_table(runs, varied),
    ]
    plots = [*by_value(groups, varied), *curves(groups)]
    protocols = list(dict.fromkeys(run.result["protocol"] for run in runs))
    return {"runs": len(runs), "protocol": "; ".join(protocols), "plots": plots, "tables": tables}


def unit(groups: Groups) -> str:
    """What the scores are."""
    first = next(iter(groups.values()))[0]
    return "accuracy %" if "accuracy" in first.result else "squared error"


def over_tasks(runs: Sequence[Finished], data: str) -> tuple[float, float]:
    """Mean over runs, and half the 95 % interval that their test tasks leave."""
    values = [run.each(data) for run in runs]
    halves = [half_width(each) for each in values]
    return fmean(map(fmean, values)), math.sqrt(sum(half**2 for half in halves)) / len(runs)


def score_table(groups: Groups, tested: Sequence[str], varied: str) -> dict[str, Any]:
    """Mean of each method, value and tested data set, with the two kinds of spread kept apart."""
    rows = []
    for key, runs in groups.items():
        rows.append([*_names(key, varied), len(runs), *(_score(runs, data) for data in tested)])
    note = "Mean over runs ± half the 95 % interval over their test tasks; sd is the standard deviation over runs."
    columns = ["method", *([varied] if varied else []), "runs", *tested]
    return {"title": f"Test: {unit(groups)}", "columns": columns, "rows": rows, "note": note}


def _score(runs: Sequence[Finished], data: str) -> str | None:
    if not runs[0].each(data):
        return None
    value, half = over_tasks(runs, data)
    spread = f", sd {stdev([fmean(run.each(data)) for run in runs]):.2f}" if len(runs) > 1 else ""
    return f"{value:.2f} ± {half:.2f}{spread}"


def difference_table(groups: Groups, tested: Sequence[str], varied: str) -> dict[str, Any]:
    """Every pair of methods at the same value: the difference on the same tasks, and what supports it."""
    rows = []
    for (first, one), (second, other) in combinations(groups, 2):
        if one != other:
            continue
        for data in tested:
            pairs = list(zip(groups[first, one], groups[second, other], strict=True))
            if pairs[0][0].each(data) and pairs[0][1].each(data):
                label = _names((f"{first} − {second}", one), varied)
                rows.append([*label, data, *_difference([(a.each(data), b.each(data)) for a, b in pairs])])
    note = (
        "Paired: with one seed both methods learn the same test tasks. Intervals of 95 %; the one over runs is Student's t of "
        "the runs' mean differences. No correction for the number of comparisons."
    )
    columns = ["difference", *([varied] if varied else []), "data", "points", "over tasks", "over runs", "a difference is"]
    return {"title": "Which differences these runs support", "columns": columns, "rows": rows, "note": note}


def _difference(pairs: Sequence[tuple[list[float], list[float]]]) -> list[str]:
    gaps = [[a - b for a, b in zip(first, second, strict=True)] for first, second in pairs]
    value = fmean(map(fmean, gaps))
    tasks = math.sqrt(sum(half_width(gap) ** 2 for gap in gaps)) / len(gaps)
    runs = paired_difference([fmean(first) for first, _ in pairs], [fmean(second) for _, second in pairs])
    if runs.interval is not None:
        verdict = "supported" if runs.supported else "not supported"
    else:
        verdict = "supported between these two networks" if abs(value) > tasks else "not supported"
    over_runs = "one run each" if runs.interval is None else f"± {runs.interval:.2f}"
    return [f"{value:+.2f}", f"± {tasks:.2f}", over_runs, verdict]


def cost_table(groups: Groups, varied: str) -> dict[str, Any]:
    """What each method's runs cost, means over runs."""
    rows = []
    for key, runs in groups.items():
        results = [run.result for run in runs]
        pruned = [fmean(result["sparsity"].values()) for result in results if result.get("sparsity")]
        seconds = round(fmean(result["cpu_seconds"] for result in results), 1)
        share = f"{100 * fmean(pruned):.1f} %" if pruned else None
        rows.append([*_names(key, varied), results[0]["outer_steps"], results[0]["learned_parameters"], share, seconds])
    columns = ["method", *([varied] if varied else []), "outer steps", "learned parameters", "pruned, mean of layers", "CPU s"]
    return {"title": "Cost", "columns": columns, "rows": rows, "note": "CPU seconds of the process with all tests."}


def run_table(runs: Sequence[Finished], varied: str) -> dict[str, Any]:
    """Every run with the command that repeats it."""
    rows = []
    for run in runs:
        command = f"python -m engine.search {run.job.method} --config {run.job.folder}/config.toml"
        name = run.job.options.data
        rows.append(
            [*_names((run.job.label, run.job.value), varied), run.job.options.seed, round(fmean(run.each(name)), 2), command]
        )
    columns = ["method", *([varied] if varied else []), "seed", "own data", "command"]
    return {"title": "Runs", "columns": columns, "rows": rows}


def _names(key: Key, varied: str) -> list[Any]:
    return [key[0], *([str(key[1])] if varied else [])]


def by_value(groups: Groups, varied: str) -> list[dict[str, Any]]:
    """The test of the own data by the varied option, where that is a number (Figure 3)."""
    series: dict[str, dict[str, Any]] = {}
    for (label, value), runs in groups.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            return []
        mean, half = over_tasks(runs, runs[0].job.options.data)
        line = series.setdefault(label, {"name": label, "x": [], "y": [], "low": [], "high": []})
        for name, number in (("x", value), ("y", mean), ("low", mean - half), ("high", mean + half)):
            line[name].append(number)
    label = unit(groups)
    return [{"title": f"Test by {varied}", "x_label": varied, "y_label": label, "series": list(series.values()), "kind": "line"}]


CURVES = (
    ("Task gradients, mean over all weights", "mean absolute value", "task_gradient", 1.0),
    ("Task gradients, mean over kept weights", "mean absolute value", "task_gradient_kept", 1.0),
    ("Validation", "accuracy %", "validation_accuracy", 100.0),
    ("Training", "accuracy %", "train_accuracy", 100.0),
    ("Validation", "loss", "validation_loss", 1.0),
)


def curves(groups: Groups) -> list[dict[str, Any]]:
    """What metrics.jsonl says by outer step, means over runs; raw and divided by density where task gradients are (Figure 2).

    A network without masks keeps all weights, so its raw gradients stand in both plots.
    """
    drawn = []
    for title, label, name, scale in CURVES:
        series = [_curve(key, runs, name, scale) for key, runs in groups.items()]
        series = [line for line in series if line["x"]]
        if series:
            drawn.append({"title": title, "x_label": "outer step", "y_label": label, "series": series, "kind": "line"})
    return drawn


def _curve(key: Key, runs: Sequence[Finished], name: str, scale: float) -> dict[str, Any]:
    columns = []
    for lines in zip(*(run.curve for run in runs), strict=False):
        values = [line.get(name, line.get("task_gradient") if name == "task_gradient_kept" else None) for line in lines]
        if all(isinstance(value, int | float) for value in values):
            columns.append((lines[0]["step"], scale * fmean(values)))
    title = key[0] if key[1] is None else f"{key[0]}, {key[1]}"
    return {"name": title, "x": [step for step, _ in columns], "y": [value for _, value in columns]}
