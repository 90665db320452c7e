"""Several TETLO searches and what they say together: sweeps of lambda and gamma (Figure 5), unrolled steps (Table 16), transfers
(Figure 4), auxiliary models (Table 11), and swapped quadruples (Figure 2).

They are compared by the supernet's validation error; the cells found are retrained by ``engine compare supervised``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigurationError
from engine.methods.study_options import Job
from engine.methods.study_runs import as_text, finish_jobs
from engine.methods.tetlo_options import TetloOptions
from engine.runs.records import read_run

if TYPE_CHECKING:
    from engine.runs.run import Run

Result = dict[str, Any]

# What is tabulated of a search, in percent or as it is.
MEASURES: dict[str, Callable[[Result], float | None]] = {
    "error %": lambda result: 100 * (1 - result["validation_accuracy"]),
    "auxiliary error %": lambda result: _percent(result, "auxiliary_accuracy", missing=1),
    "quadruples' error %": lambda result: _percent(result, "similarity_error", missing=0),
    "correlation of the two": lambda result: result.get("similarity_correlation"),
    "neighbours of the class %": lambda result: 100 * result["neighbours"]["same_class"] if "neighbours" in result else None,
    "skips": lambda result: result["operations"].get("normal", {}).get("skip_connect"),
    "CPU s": lambda result: result["cpu_seconds"],
}


def _percent(result: Result, name: str, *, missing: int) -> float | None:
    """A share in percent, or what is missing to all of it."""
    return 100 * abs(missing - result[name]) if name in result else None


def jobs(options: TetloOptions) -> list[Job]:
    """The searches, value by value and for each the seeds; values that the options cannot take are a configuration error."""
    name, values = options.varied
    found = []
    for value in values or [None]:
        for seed in range(options.seed, options.seed + options.seeds):
            chosen = replace(options, vary="", seeds=1, seed=seed, **({name: value} if name else {}))
            chosen.validate()
            found.append(Job(name or options.objective, value, "tetlo", chosen))
    if len({job.folder for job in found}) < len(found):
        raise ConfigurationError(f"--vary {options.vary!r}: name each value once")
    return found


def study(options: TetloOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Do what is not done yet, then tabulate."""
    planned = jobs(options)
    finish_jobs(run, planned, stop, progress)
    results = [read_run(run.directory / job.folder, scores=False).result for job in planned]
    result = summary(options, planned, results)
    if not options.quiet:
        print(as_text(result["tables"][0]))
    return result


def summary(options: TetloOptions, planned: Sequence[Job], results: Sequence[Result]) -> dict[str, Any]:
    """Means over seeds with their standard deviations, a row for each value, and the error by it where it is a number."""
    name, _ = options.varied
    groups: dict[Any, list[Result]] = {}
    for job, result in zip(planned, results, strict=True):
        groups.setdefault(job.value, []).append(result)
    rows, points = [], []
    for value, group in groups.items():
        columns = [[measure(result) for result in group] for measure in MEASURES.values()]
        rows.append([*([str(value)] if name else []), len(group), *map(_spread, columns)])
        if isinstance(value, int | float) and not isinstance(value, bool):
            errors = [100 * (1 - result["validation_accuracy"]) for result in group]
            half = stdev(errors) if len(errors) > 1 else 0.0
            points.append((value, fmean(errors), fmean(errors) - half, fmean(errors) + half))
    table = {
        "title": f"{options.objective} on {options.data}, validation half",
        "columns": [*([name] if name else []), "searches", *MEASURES],
        "rows": rows,
        "note": "Of the supernets at the end of their searches: mean ± standard deviation over seeds.",
    }
    runs = {
        "title": "Searches",
        "columns": ["folder", "error %", "command"],
        "rows": [
            [job.folder, round(100 * (1 - result["validation_accuracy"]), 2), result["command"]]
            for job, result in zip(planned, results, strict=True)
        ],
    }
    return {"runs": len(results), "tables": [table, runs], "plots": _plot(options, name, sorted(points))}


def _spread(values: Sequence[float | None]) -> str | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return f"{fmean(known):.2f}" + (f" ± {stdev(known):.2f}" if len(known) > 1 else "")


def _plot(options: TetloOptions, name: str, points: Sequence[tuple[float, float, float, float]]) -> list[dict[str, Any]]:
    if not points:
        return []
    x, y, low, high = (list(column) for column in zip(*points, strict=True))
    series = [{"name": options.objective, "x": x, "y": y, "low": low, "high": high}]
    return [{"title": f"Validation error by {name}", "x_label": name, "y_label": "error %", "series": series, "kind": "line"}]
