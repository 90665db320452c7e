"""The compare command: several methods under one protocol, one table.

``python -m engine.compare METHOD ... [OPTIONS]``, or ``engine compare``. Every method is searched, trained and tested once a
seed, each in a run directory of its own below the comparison's, ``METHOD-SEED/search``, ``METHOD-SEED/train`` and, on a second
data set, ``METHOD-SEED/transfer``; what is finished is not done again. ``engine compare supervised METHOD ...`` is
:mod:`engine.compare_supervised`, ``engine compare stability METHOD ...`` :mod:`engine.compare_stability`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli import run_command
from engine.errors import ConfigurationError
from engine.evaluation.compare_options import CompareOptions, Entry
from engine.evaluation.published import KNOWN
from engine.evaluation.registry import TRAIN
from engine.evaluation.stability_options import StabilityOptions
from engine.evaluation.supervised_compare_options import SupervisedCompareOptions
from engine.methods.options import CellOptions
from engine.methods.registry import METHODS, SEARCH, Command, Method, find_method
from engine.runs.records import read_run
from engine.search import start

if TYPE_CHECKING:
    from engine.evaluation.comparison import Trained
    from engine.runs.run import Run

DRAWS = 1_000_003  # between the seeds by which a seed's random cells are drawn

COMPARE = Command(
    "Search, train and test with several methods and tabulate them.",
    {
        "compare": Method(
            "compare", CompareOptions, "engine.compare:compare", "few-shot learning by several cells", command="compare"
        ),
        "supervised": Method(
            "supervised",
            SupervisedCompareOptions,
            "engine.compare_supervised:compare",
            "ordinary classification by cells of the DARTS family",
            command="compare",
        ),
        "stability": Method(
            "stability",
            StabilityOptions,
            "engine.compare_stability:compare",
            "how often searches of NAS-Bench-1Shot1 degenerate",
            command="compare",
        ),
    },
    "compare",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and return the exit code; raises :class:`~engine.errors.EngineError` on what a user can mend."""
    words = list(sys.argv[1:] if argv is None else argv)
    kind = words[:1] if words[:1] and words[0] in COMPARE.methods else []
    names = list(takewhile(lambda word: not word.startswith("-"), words[len(kind) :]))
    given = ["--methods", ",".join(names)] if names else []
    return start(COMPARE, [*kind, *given, *words[len(kind) + len(names) :]])


def plan(options: CompareOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    check_methods(options)
    rows = [("methods", options.methods.replace(",", ", ")), ("runs of each", str(options.seeds))]
    rows += [("training", options.train_preset)]
    return rows + ([("transferred to", options.transfer_to)] if options.transfer_to else [])


def compare(options: CompareOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Do what is not done yet, then tabulate; a stop is obeyed inside a search or training, which then resumes where it was."""
    from engine.evaluation.comparison import comparison, transferred

    check_methods(options)
    run.load()
    runs: list[Trained] = []
    moved: list[Trained] = []
    jobs = [
        (entry, options.seed + k, cell)
        for entry in options.entries
        for k in range(options.seeds)
        for cell in range(options.random_cells if entry.name == "random" else 1)
    ]
    with progress(len(jobs), "comparing") as bar:
        for entry, seed, cell in jobs:
            own, *elsewhere = search_and_train(options, run.directory, entry, seed, cell)
            runs.append(own)
            moved += elsewhere
            bar.advance()
            stop.check()
    found = comparison(runs)
    if options.transfer_to is not None:
        found["tables"] += transferred(options.data, options.transfer_to, moved)
    return found


def check_methods(options: CompareOptions) -> None:
    """Refuse methods that find no cell, before anything is computed."""
    for entry in options.entries:
        if entry.name not in KNOWN and not issubclass(find_method(entry.name, METHODS).options, CellOptions):
            raise ConfigurationError(f"--methods: {entry.name!r} searches no cell that could be trained")


def search_and_train(options: CompareOptions, out: Path, entry: Entry, seed: int, cell: int) -> list[Trained]:
    """One entry with one seed, as far as it is not done yet: the training on the data set, and on the one transferred to.

    The cells that ``random`` draws for a seed differ by the seed of their draw; their trainings share the seed.
    """
    from engine.evaluation.comparison import Trained

    directory = out / (f"{entry.text}-{seed}" + (f"-cell{cell}" if cell else ""))
    common = ["--device", options.device, "--threads", str(options.threads)]
    common += ["--quiet", *_given("--data-root", options.data_root), *_given("--cells", entry.cells)]
    network, searched = entry.name, {}
    if entry.name not in KNOWN:
        words = [entry.name, "--preset", entry.preset(options.search_preset), *_given("--size", options.search_size), *common]
        words += ["--data", options.data, "--seed", str(seed + DRAWS * cell)]
        searched = finished(SEARCH, words, directory / "search")
        network = str(directory / "search")
    words = [entry.recipe, "--network", network, "--seed", str(seed), *common]
    words += [*_given("--budget", options.budget), *_given("--tasks", options.tasks)]
    sets = [("train", options.data, options.train_preset)]
    if options.transfer_to is not None:
        sets.append(("transfer", options.transfer_to, options.transfer_preset or options.train_preset))
    found = []
    for name, data, preset in sets:
        own = [*words, "--data", data, "--preset", entry.preset(preset)]
        result = finished(TRAIN, own, directory / name)
        found.append(Trained(entry.text, seed, str(directory / name), searched, result))
    return found


def _given(flag: str, value: str | int | None) -> list[str]:
    return [] if value is None else [flag, str(value)]


def finished(command: Command, words: list[str], out: Path) -> dict[str, Any]:
    """The result of a run in ``out``, which is started, or gone on with, unless it is there."""
    if not (out / "result.json").is_file():
        resume = ["--resume"] if (out / "config.toml").is_file() else []
        start(command, [*words, "--out", str(out), *resume])
    return read_run(out, scores=False).result


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
