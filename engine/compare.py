"""The compare command: several methods under one protocol, one table.

``python -m engine.compare METHOD ... [OPTIONS]``, or ``engine compare``. Every method is searched, trained and tested once a
seed, each in a run directory of its own below the comparison's, ``METHOD-SEED/search`` and ``METHOD-SEED/train``; what is
finished is not done again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli import run_command
from engine.errors import ConfigurationError
from engine.evaluation.compare_options import CompareOptions
from engine.evaluation.published import KNOWN
from engine.evaluation.registry import TRAIN
from engine.methods.options import CellOptions
from engine.methods.registry import METHODS, SEARCH, Command, Method, find_method
from engine.runs.records import read_run
from engine.search import start

if TYPE_CHECKING:
    from engine.evaluation.comparison import Trained
    from engine.runs.run import Run

COMPARE = Command(
    "Search, train and test with several methods and tabulate them.",
    {"compare": Method("compare", CompareOptions, "engine.compare:compare", "methods under one protocol", command="compare")},
    "compare",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and return the exit code; raises :class:`~engine.errors.EngineError` on what a user can mend."""
    words = list(sys.argv[1:] if argv is None else argv)
    names = list(takewhile(lambda word: not word.startswith("-"), words))
    return start(COMPARE, [*(["--methods", ",".join(names)] if names else []), *words[len(names) :]])


def plan(options: CompareOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    check_methods(options)
    names = ", ".join(options.method_names)
    return [("methods", names), ("runs of each", str(options.seeds)), ("training", options.train_preset)]


def compare(options: CompareOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Do what is not done yet, then tabulate; a stop is obeyed inside a search or training, which then resumes where it was."""
    from engine.evaluation.comparison import comparison

    check_methods(options)
    run.load()
    jobs = [(name, options.seed + k) for name in options.method_names for k in range(options.seeds)]
    trained = []
    with progress(len(jobs), "comparing") as bar:
        for name, seed in jobs:
            trained.append(search_and_train(options, run.directory / f"{name}-{seed}", name, seed))
            bar.advance()
            stop.check()
    return comparison(trained)


def check_methods(options: CompareOptions) -> None:
    """Refuse methods that find no cell, before anything is computed."""
    for name in options.method_names:
        if name not in KNOWN and not issubclass(find_method(name, METHODS).options, CellOptions):
            raise ConfigurationError(f"--methods: {name!r} searches no cell that could be trained")


def search_and_train(options: CompareOptions, directory: Path, name: str, seed: int) -> Trained:
    """One method with one seed, as far as it is not done yet."""
    from engine.evaluation.comparison import Trained

    common = ["--data", options.data, "--seed", str(seed), "--device", options.device, "--threads", str(options.threads)]
    common += ["--quiet", *_given("--data-root", options.data_root)]
    network, searched = name, {}
    if name not in KNOWN:
        words = [name, "--preset", options.search_preset, *_given("--size", options.search_size), *common]
        searched = _finished(SEARCH, words, directory / "search")
        network = str(directory / "search")
    words = ["rfs", "--network", network, "--preset", options.train_preset, *common]
    words += [*_given("--budget", options.budget), *_given("--tasks", options.tasks)]
    return Trained(name, seed, str(directory / "train"), searched, _finished(TRAIN, words, directory / "train"))


def _given(flag: str, value: str | int | None) -> list[str]:
    return [] if value is None else [flag, str(value)]


def _finished(command: Command, words: list[str], out: Path) -> dict[str, Any]:
    """The result of a run in ``out``, which is started, or gone on with, unless it is there."""
    if not (out / "result.json").is_file():
        resume = ["--resume"] if (out / "config.toml").is_file() else []
        start(command, [*words, "--out", str(out), *resume])
    return read_run(out, scores=False).result


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
