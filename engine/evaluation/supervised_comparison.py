"""From retrained cells to tables: errors with both kinds of spread, differences with their tests, searches, operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

from engine.evaluation.comparison import paired_difference
from engine.evaluation.family_options import RANDOM, TETLO
from engine.spaces.darts import operation_counts
from engine.spaces.genotype import Genotype

Groups = Mapping[str, "Sequence[Evaluated]"]

# The columns of paper 004, Table 18, and S4's noise.
GROUPS = {
    "skip connections": "skip_connect",
    "3x3 convolutions": "conv_3x3",
    "5x5 convolutions": "conv_5x5",
    "poolings": "pool",
    "noise": "noise",
}


@dataclass(frozen=True)
class Evaluated:
    """One run of a method: the results of its searches (none for a published cell), which of them was kept, the errors of the
    short trainings that it was chosen by (none for a single search), its training, and the kept search's epochs."""

    method: str
    seed: int
    searches: list[dict[str, Any]]
    kept: int
    tried: list[float]
    train: dict[str, Any]
    curve: list[dict[str, Any]]

    @property
    def error(self) -> float:
        """Percent of the held-out images told wrong."""
        return 100 * float(self.train["error"])

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the error over images."""
        return 100 * (1 - self.train["high"]), 100 * (1 - self.train["low"])

    @property
    def genotype(self) -> Genotype:
        """The cell."""
        return Genotype.from_dict(self.train["genotype"])

    def count(self, kind: str, name: str) -> int:
        """How many operations of the cell ``kind`` have ``name`` in theirs."""
        return sum(number for operation, number in operation_counts(self.genotype)[kind].items() if name in operation)


def summary(runs: Sequence[Evaluated], moved: Sequence[Evaluated], transfer_to: str | None) -> dict[str, Any]:
    """What goes to result.json: the tables and plots of finished runs, the same seeds for every method."""
    groups = by_method(runs)
    tables = [error_table(groups), difference_table(groups), search_table(groups), operation_table(groups)]
    tables += choice_tables(runs)
    if transfer_to is not None:
        for table in (error_table(by_method(moved)), difference_table(by_method(moved))):
            tables.append({**table, "title": f"{table['title']} (transferred to {transfer_to})"})
    return {"runs": len(runs), "tables": [*tables, run_table(runs)], "plots": plots(groups)}


def by_method(runs: Sequence[Evaluated]) -> dict[str, list[Evaluated]]:
    """The runs of each method, in the order of the methods' first runs."""
    groups: dict[str, list[Evaluated]] = {}
    for run in runs:
        groups.setdefault(run.method, []).append(run)
    return groups


def record(run: Evaluated) -> dict[str, Any]:
    """The numbers of one run."""
    low, high = run.interval
    first, last = (run.curve[0]["validation_loss"], run.curve[-1]["validation_loss"]) if run.curve else (None, None)
    return {
        "event": "run",
        "method": run.method,
        "seed": run.seed,
        "error": run.error,
        "low": low,
        "high": high,
        "test_images": run.train["test_images"],
        "parameters": run.train["parameters"],
        "flops": run.train["flops"],
        "skips": run.count("normal", "skip_connect"),
        "operations": operation_counts(run.genotype),
        "search_loss_first": first,
        "search_loss_last": last,
        "search_accuracy_last": run.curve[-1]["validation_accuracy"] if run.curve else None,
        "search_cpu_seconds": seconds(run),
        "train_steps": run.train["steps"],
        "train_cpu_seconds": run.train["cpu_seconds"],
        "tried": run.tried,
    }


def seconds(run: Evaluated) -> float:
    """CPU seconds of all searches of a run."""
    return sum(float(search["cpu_seconds"]) for search in run.searches)


def error_table(groups: Groups) -> dict[str, Any]:
    """Error of each method, and what its cells are and cost."""
    rows = []
    for name, runs in groups.items():
        errors = [run.error for run in runs]
        half = fmean((run.interval[1] - run.interval[0]) / 2 for run in runs) / len(runs) ** 0.5
        spread = f"{stdev(errors):.2f}" if len(runs) > 1 else None
        skips = ", ".join(str(run.count("normal", "skip_connect")) for run in runs)
        costs = [fmean(run.train["parameters"] for run in runs), fmean(run.train["flops"] for run in runs)]
        spent = [fmean(map(seconds, runs)), fmean(run.train["cpu_seconds"] for run in runs)]
        row = [name, len(runs), f"{fmean(errors):.2f}", spread, f"± {half:.2f}", skips, *map(round, costs)]
        rows.append([*row, *(round(value, 1) for value in spent)])
    note = (
        "Percent, mean over runs. sd: over runs, which holds that of searches and trainings. Images: half the 95 % interval over "
        "the held-out images alone. Skips: skip connections of the normal cell, run by run. CPU seconds a run."
    )
    columns = ["method", "runs", "error", "sd", "images", "skips", "parameters", "FLOPs", "search s", "training s"]
    return {"title": "Error on held-out images", "columns": columns, "rows": rows, "note": note}


def by_seed(runs: Sequence[Evaluated]) -> dict[int, float]:
    """The error of each seed, the mean where a seed has several runs (random cells)."""
    found: dict[int, list[float]] = {}
    for run in runs:
        found.setdefault(run.seed, []).append(run.error)
    return {seed: fmean(errors) for seed, errors in found.items()}


def ordered_pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Every pair: first TETLO and the base that it stands on, then methods and random, then the others."""

    def rank(pair: tuple[str, str]) -> int:
        return 0 if pair[0] == TETLO + pair[1] else 1 if pair[1] == RANDOM else 2

    pairs = [min(((a, b), (b, a)), key=rank) for a, b in combinations(methods, 2)]
    return sorted(pairs, key=rank)


def difference_table(groups: Groups) -> dict[str, Any]:
    """Every pair of methods: difference in error, its interval over seeds, and the p value of the paper's test."""
    rows = []
    for first, second in ordered_pairs(list(groups)):
        one, other = by_seed(groups[first]), by_seed(groups[second])
        found = paired_difference(list(one.values()), [other[seed] for seed in one])
        interval = "one run each" if found.interval is None else f"± {found.interval:.2f}"
        gaps = [one[seed] - other[seed] for seed in one]
        verdict = "supported" if found.supported else "not supported"
        rows.append([f"{first} − {second}", f"{found.value:+.2f}", interval, p_value(gaps), verdict])
    note = (
        "Percent points of error, paired over seeds; 95 % by Student's t, and the two-sided p of the same test "
        "(scipy.stats.ttest_1samp of the differences, as in paper 004, Appendix R). No correction for the number of comparisons."
    )
    columns = ["difference", "points", "interval over runs", "p", "a difference is"]
    return {"title": "Which differences these runs support", "columns": columns, "rows": rows, "note": note}


def p_value(gaps: Sequence[float]) -> str | None:
    """Of the two-sided t test that the mean gap is zero; None for fewer than two gaps or gaps that are all equal."""
    if len(gaps) < 2 or max(gaps) == min(gaps):
        return None
    from scipy.stats import ttest_1samp

    return f"{float(ttest_1samp(gaps, 0.0).pvalue):.3g}"


def search_table(groups: Groups) -> dict[str, Any]:
    """How far the supernets learned: loss and accuracy on the validation half after the first and the last epoch."""
    rows = []
    for name, runs in groups.items():
        curves = [run.curve for run in runs if run.curve]
        if curves:
            ends = [[f"{curve[end]['validation_loss']:.3f}" for curve in curves] for end in (0, -1)]
            right = [f"{100 * curve[-1]['validation_accuracy']:.1f}" for curve in curves]
            rows.append([name, len(curves[0]), *map(", ".join, (*ends, right))])
    note = "Run by run, by the statistics of the batch. P-DARTS begins a fresh network in every stage."
    columns = ["method", "epochs", "loss, first epoch", "loss, last epoch", "accuracy %, last epoch"]
    return {"title": "Supernets on the validation half", "columns": columns, "rows": rows, "note": note}


def operation_table(groups: Groups) -> dict[str, Any]:
    """Operations of the cells found, means over runs (paper 004, Table 18)."""
    rows = []
    for name, runs in groups.items():
        for kind in ("normal", "reduction"):
            rows.append([name, kind, *(f"{fmean(run.count(kind, part) for run in runs):.1f}" for part in GROUPS.values())])
    note = "Means over runs; separable and dilated convolutions together."
    return {"title": "Operations of the cells", "columns": ["method", "cell", *GROUPS], "rows": rows, "note": note}


def choice_tables(runs: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """The errors of the short trainings; nothing where runs had one search."""
    rows = [
        [run.method, run.seed, ", ".join(f"{100 * error:.2f}" for error in run.tried), run.kept]
        for run in runs
        if len(run.tried) > 1
    ]
    columns = ["method", "seed", "validation error of each search's cell", "kept (from 0)"]
    return [{"title": "Choice among searches", "columns": columns, "rows": rows}] if rows else []


def run_table(runs: Sequence[Evaluated]) -> dict[str, Any]:
    """Every run with the commands that repeat it."""
    rows = []
    for run in runs:
        low, high = run.interval
        found = run.searches[run.kept].get("command") if run.searches else None
        rows.append([run.method, run.seed, f"{run.error:.2f}", f"{low:.2f} to {high:.2f}", found, run.train.get("command")])
    columns = ["method", "seed", "error", "95 % over images", "search", "training"]
    return {"title": "Runs", "columns": columns, "rows": rows}


def plots(groups: Groups) -> list[dict[str, Any]]:
    """Errors against size, and the validation losses of the searches by epoch."""
    sizes, losses = [], []
    for name, runs in groups.items():
        y, x = [run.error for run in runs], [run.train["parameters"] for run in runs]
        low, high = (list(ends) for ends in zip(*(run.interval for run in runs), strict=True))
        sizes.append({"name": name, "x": x, "y": y, "low": low, "high": high})
        curves = [run.curve for run in runs if run.curve]
        if curves:
            values = [fmean(line["validation_loss"] for line in lines) for lines in zip(*curves, strict=False)]
            losses.append({"name": name, "x": list(range(1, len(values) + 1)), "y": values})
    found = [{"title": "Error against size", "x_label": "parameters", "y_label": "error %", "kind": "scatter", "series": sizes}]
    if losses:
        axes = {"x_label": "epoch", "y_label": "cross-entropy of the validation half, mean over runs", "kind": "line"}
        found.append({"title": "Searches", **axes, "series": losses})
    return found
