"""Cells of the DARTS family compared by ordinary classification: searched, chosen, retrained, tested, in one resumable run.

``python -m engine.compare supervised METHOD ... [OPTIONS]``. A run of a method lies below the comparison's directory:
``METHOD-SEED/search``, with several searches also ``search-1`` and so on and their short trainings ``short``, ``short-1``, then
``METHOD-SEED/train`` and on a second data set ``METHOD-SEED/transfer``. What is finished is not done again. Each run is a line
of metrics.jsonl.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engine.compare import DRAWS, finished
from engine.evaluation.family_options import RANDOM, Entry
from engine.evaluation.registry import TRAIN
from engine.evaluation.supervised_compare_options import SupervisedCompareOptions
from engine.methods.options import flag
from engine.methods.registry import SEARCH
from engine.runs.config import resolve
from engine.runs.options_parser import option_text
from engine.runs.records import read_run

if TYPE_CHECKING:
    from engine.evaluation.supervised_comparison import Evaluated
    from engine.runs.run import Run


class Job(NamedTuple):
    """One run of a method; ``draw`` counts the random cells of a seed."""

    entry: Entry
    seed: int
    draw: int

    @property
    def folder(self) -> str:
        """Its directory below the comparison's."""
        return f"{self.entry.text}-{self.seed}" + (f"-cell{self.draw}" if self.draw else "")


def plan(options: SupervisedCompareOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    check(options)
    rows = [("methods", ", ".join(entry.text for entry in options.entries)), ("runs of each", str(options.seeds))]
    if options.searches > 1:
        rows += [("searches of a run", f"{options.searches}, chosen by {options.select_preset}")]
    rows += [("trainings", options.train_preset)]
    return rows + ([("transferred to", options.transfer_to)] if options.transfer_to else [])


def check(options: SupervisedCompareOptions) -> None:
    """Refuse what a search or a training would refuse, before any of them begins."""
    for entry in options.entries:
        if entry.method is not None:
            resolve(entry.method, [*flags(options.search_options(entry)), "--data", options.data], SEARCH)
        for option in ("train", "select"):
            preset = entry.preset(getattr(options, f"{option}_preset"))
            words = ["--network", "darts-v2", "--data", options.data, "--preset", preset, *flags(options.train_options(option))]
            resolve("supervised", words, TRAIN)


def jobs(options: SupervisedCompareOptions) -> list[Job]:
    """All runs, seed by seed, so that a comparison that is stopped early has every method with the first seeds."""
    return [
        Job(entry, options.seed + k, draw)
        for k in range(options.seeds)
        for entry in options.entries
        for draw in range(options.random_cells if entry.name == RANDOM else 1)
    ]


def compare(options: SupervisedCompareOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Do what is not done yet, then tabulate; a stop is obeyed inside a search or training, which then resumes where it was."""
    from engine.evaluation.supervised_comparison import record, summary
    from engine.methods.meta_study import as_text

    check(options)
    run.load()
    planned = jobs(options)
    own: list[Evaluated] = []
    moved: list[Evaluated] = []
    with progress(len(planned), "comparing") as bar:
        for job in planned:
            found, *elsewhere = evaluate(options, run.directory / job.folder, job)
            run.append("metrics.jsonl", record(found))
            own.append(found)
            moved += elsewhere
            bar.advance()
            stop.check()
    result = summary(own, moved, options.transfer_to)
    if not options.quiet:
        print(*map(as_text, result["tables"][:2]), sep="\n")
    return result


def evaluate(options: SupervisedCompareOptions, directory: Path, job: Job) -> list[Evaluated]:
    """One run as far as it is not done yet: its searches, the choice among them, the training, and that on another set."""
    from engine.evaluation.supervised_comparison import Evaluated

    common = ["--device", options.device, "--threads", str(options.threads), "--quiet"]
    common += ["--data-root", options.data_root] if options.data_root is not None else []
    searched, tried = search_all(options, directory, job, common)
    best = min(range(len(tried)), key=lambda k: tried[k]["error"]) if tried else 0
    network = str(_numbered(directory, "search", best)) if searched else job.entry.name
    sets = [("train", options.data, options.train_preset)]
    if options.transfer_to is not None:
        sets.append(("transfer", options.transfer_to, options.transfer_preset or options.train_preset))
    found = []
    for name, data, preset in sets:
        words = ["--preset", job.entry.preset(preset), *flags(options.train_options("train")), *common]
        result = train(options, network, data, job.seed, words, directory / name)
        curve = _curve(directory, searched, best)
        found.append(Evaluated(job.entry.text, job.seed, searched, best, [short["error"] for short in tried], result, curve))
    return found


def search_all(
    options: SupervisedCompareOptions, directory: Path, job: Job, common: list[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The results of a run's searches, none for a published cell, and of the short trainings, none for a single search."""
    if job.entry.method is None:
        return [], []
    given = flags(options.search_options(job.entry))
    searched, tried = [], []
    for k in range(options.searches):
        seed = job.seed + DRAWS * (k + options.searches * job.draw)
        out = _numbered(directory, "search", k)
        words = [job.entry.method, *given, "--data", options.data, "--seed", str(seed), *common]
        searched.append(finished(SEARCH, words, out))
        if options.searches > 1:
            words = ["--preset", job.entry.preset(options.select_preset), *flags(options.train_options("select"))]
            words += ["--train-on", "train", "--test-on", "val", *common]
            tried.append(train(options, str(out), options.data, job.seed, words, _numbered(directory, "short", k)))
    return searched, tried


def train(options: SupervisedCompareOptions, network: str, data: str, seed: int, words: list[str], out: Path) -> dict[str, Any]:
    """The result of a training; trainings of one seed share their draws."""
    size = ["--size", str(options.size)] if options.size is not None else []
    return finished(TRAIN, ["supervised", "--network", network, "--data", data, "--seed", str(seed), *words, *size], out)


def flags(values: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line."""
    return [word for name, value in values.items() for word in (flag(name), option_text(value))]


def _numbered(directory: Path, name: str, number: int) -> Path:
    return directory / (f"{name}-{number}" if number else name)


def _curve(directory: Path, searched: list[dict[str, Any]], best: int) -> list[dict[str, Any]]:
    """The lines of a search's epochs."""
    if not searched:
        return []
    lines = read_run(_numbered(directory, "search", best), scores=False).metrics
    return [line for line in lines if line.get("event") == "epoch"]
