"""How often searches of NAS-Bench-1Shot1 degenerate (paper 004, Table 15; reference note tetlo-darts, section 5).

``python -m engine.compare stability [METHOD ...] --oracle TABLE``. Every search lies below the comparison's directory as
``METHOD@SPACE-SEED``; what is finished is not done again. The cell of every epoch is looked up afterwards.
Each finished search is a line of metrics.jsonl.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from engine.compare import finished
from engine.compare_supervised import flags
from engine.errors import ConfigurationError
from engine.evaluation.family_options import Entry
from engine.evaluation.stability_options import StabilityOptions
from engine.methods.registry import SEARCH
from engine.runs.config import resolve
from engine.runs.records import read_run
from engine.spaces.genotype import SCHEMA, Genotype
from engine.spaces.nas_bench_101 import SPACE, from_genotype

if TYPE_CHECKING:
    from engine.benchmarks.nas_bench_101 import Oracle
    from engine.runs.run import Run


@dataclass(frozen=True)
class Watched:
    """One search: the accuracy in percent of each epoch's cell, None where the oracle knows none."""

    entry: Entry
    seed: int
    accuracy: list[float | None]

    def mean(self, window: tuple[int, int]) -> float | None:
        """Mean over the epochs (from 1) of a window that the oracle knows; None where it knows none of them."""
        known = [value for value in self.accuracy[window[0] - 1 : window[1]] if value is not None]
        return fmean(known) if known else None

    def degenerate(self, early: tuple[int, int], late: tuple[int, int]) -> bool | None:
        """Whether late cells are worse than early ones. The paper states the inequality the other way round (note, 6.10).
        None where it cannot be judged."""
        before, after = self.mean(early), self.mean(late)
        return None if before is None or after is None else after < before

    def record(self, options: StabilityOptions) -> dict[str, Any]:
        """The numbers of the search."""
        degenerate = self.degenerate(*options.windows)
        return {"event": "run", "search": self.entry.text, "seed": self.seed, "degenerate": degenerate, "accuracy": self.accuracy}


def plan(options: StabilityOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    check(options)
    searches = ", ".join(entry.text for entry in options.searched)
    return [("searches", searches), ("runs of each", str(options.seeds)), ("oracle", str(options.oracle))]


def compare(options: StabilityOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Search what is not searched yet, look the cells up, and tabulate."""
    from engine.benchmarks.nas_bench_101 import load_oracle
    from engine.methods.meta_study import as_text

    check(options)
    oracle = load_oracle(options.oracle or "")
    run.load()
    planned = [(entry, options.seed + k) for k in range(options.seeds) for entry in options.searched]
    found = []
    with progress(len(planned), "comparing") as bar:
        for entry, seed in planned:
            directory = run.directory / f"{entry.text}-{seed}"
            finished(SEARCH, search_words(options, entry, seed), directory)
            found.append(Watched(entry, seed, looked_up(directory, oracle)))
            run.append("metrics.jsonl", found[-1].record(options))
            bar.advance()
            stop.check()
    result = summary(options, found)
    if not options.quiet:
        print(*map(as_text, result["tables"]), sep="\n")
    return result


def search_words(options: StabilityOptions, entry: Entry, seed: int) -> list[str]:
    """The command line of a search, without its directory."""
    words = [str(entry.method), *flags(options.search_options(entry)), "--data", options.data, "--seed", str(seed)]
    words += ["--device", options.device, "--threads", str(options.threads), "--quiet"]
    return words + (["--data-root", options.data_root] if options.data_root is not None else [])


def check(options: StabilityOptions) -> None:
    """Refuse what a search would refuse, and windows that it does not reach, before any search begins."""
    for entry in options.searched:
        method, *words = search_words(options, entry, options.seed)
        epochs = getattr(resolve(method, words, SEARCH), "epochs", 0)
        if options.windows[1][1] > epochs:
            raise ConfigurationError(f"--late {options.late}: a search of {entry.text} has {epochs} epochs")


def looked_up(directory: Path, oracle: Oracle) -> list[float | None]:
    """The accuracy of each epoch's cell."""
    lines = [line for line in read_run(directory, scores=False).metrics if line.get("event") == "epoch"]
    cells = [Genotype.from_dict({"schema": SCHEMA, "space": SPACE, "cells": line["genotype"]}) for line in lines]
    return [oracle(from_genotype(cell)) for cell in cells]


def summary(options: StabilityOptions, runs: list[Watched]) -> dict[str, Any]:
    """Table 15, the runs, and the accuracies by epoch."""
    early, late = options.windows
    rows, series = [], []
    for entry in options.searched:
        own = [run for run in runs if run.entry == entry]
        judged = [run.degenerate(early, late) for run in own]
        means = [_mean([run.mean(window) for run in own]) for window in (early, late)]
        rows.append([entry.name, entry.space, sum(value is True for value in judged), len(own) - judged.count(None), *means])
        by_epoch = [_mean(values) for values in zip(*(run.accuracy for run in own), strict=False)]
        known = [(epoch, value) for epoch, value in enumerate(by_epoch, start=1) if value is not None]
        series.append({"name": entry.text, "x": [epoch for epoch, _ in known], "y": [value for _, value in known]})
    note = (
        f"Degenerate: the mean test accuracy of the cells of epochs {options.late} is lower than that of {options.early}, among "
        "runs of which the oracle knows cells in both."
    )
    columns = ["method", "space", "degenerate", "of", f"accuracy, epochs {options.early}", f"epochs {options.late}"]
    table = {"title": "Degenerate searches", "columns": columns, "rows": rows, "note": note}
    plot = {"title": "Cells by epoch", "x_label": "epoch", "y_label": "test accuracy %, mean over runs", "kind": "line"}
    return {"runs": len(runs), "tables": [table], "plots": [{**plot, "series": series}]}


def _mean(values: list[float | None] | tuple[float | None, ...]) -> float | None:
    known = [value for value in values if value is not None]
    return round(fmean(known), 3) if known else None
