"""``python -m bench``: list benchmarks, run some, draw their rows."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from bench import rows
from bench.registry import BENCHMARKS, Settings, find
from engine.cli import run_command
from engine.errors import ConfigurationError
from engine.evaluation.allocator import keep_freed_memory


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; {self.prog} --help tells more")


def main(argv: Sequence[str]) -> int:
    """Run one command line; what the user got wrong is a :class:`ConfigurationError`."""
    arguments = _parser().parse_args(argv)
    {"list": _list, "run": _run, "plot": _plot}[arguments.command](arguments)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m bench", description="Measure the engine beside plain formulations, on one thread.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="the benchmarks")
    run = commands.add_parser("run", help="measure")
    run.add_argument("names", nargs="+", metavar="NAME", help="benchmarks of `list`")
    run.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to compute (default: cpu)")
    run.add_argument("--json", type=Path, metavar="FILE", help="append the rows to this file, one JSON object a line")
    run.add_argument("--rounds", type=int, default=Settings.rounds, help="rounds that count (default: %(default)s)")
    run.add_argument("--width", type=int, help="candidates in a batch (default: what the search would choose)")
    run.add_argument("--method", action="append", default=[], help="measure only this one, beside the baseline; may be repeated")
    scale = run.add_mutually_exclusive_group()
    scale.add_argument("--smoke", action="store_const", dest="scale", const="smoke", help="tiny shapes, to see that all runs")
    scale.add_argument("--full", action="store_const", dest="scale", const="full", help="add what takes minutes a round")
    plot = commands.add_parser("plot", help="draw a file of rows")
    plot.add_argument("file", type=Path, metavar="FILE", help="what `run --json` wrote")
    plot.add_argument("--out", type=Path, metavar="PICTURE", help=".svg or .png (default: FILE with the suffix .svg)")
    return parser


def _list(arguments: argparse.Namespace) -> None:
    width = max(map(len, BENCHMARKS))
    for name, benchmark in BENCHMARKS.items():
        print(f"{name:<{width}}  {benchmark.summary} [{', '.join(benchmark.devices)}]")


def _run(arguments: argparse.Namespace) -> None:
    scale = arguments.scale or Settings.scale
    settings = Settings(arguments.device, arguments.rounds, scale, arguments.width, tuple(arguments.method))
    benchmarks = [find(name, settings.device) for name in arguments.names]
    if arguments.json is not None:
        _append(arguments.json, "")
    _as_commands_run()
    for benchmark in benchmarks:
        for row in benchmark.rows(settings):
            print(row.text(), flush=True)
            if arguments.json is not None:
                _append(arguments.json, row.json() + "\n")


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigurationError(f"--json: {path} cannot be written ({error.strerror}); name another file") from None


def _as_commands_run() -> None:
    """One thread for every pool of this process and of those that it starts, and freed memory kept, for baselines too.

    Pools read their variables when torch and numpy are imported.
    """
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    keep_freed_memory()


def _plot(arguments: argparse.Namespace) -> None:
    from bench.plot import draw

    target = arguments.out or arguments.file.with_suffix(".svg")
    draw(rows.read(arguments.file), target)
    print(target)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
