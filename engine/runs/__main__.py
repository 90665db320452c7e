"""``python -m engine.runs``: list runs, show one, write its report again."""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from engine.errors import ConfigurationError
from engine.runs.progress import duration
from engine.runs.records import RunFiles, number, read_run


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; {self.prog} --help tells more")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; errors are :class:`ConfigurationError`."""
    parser = _Parser(prog="python -m engine.runs", description="List runs, show one, write its report again.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="one line for each run in a folder")
    listing.add_argument("directory", type=Path, nargs="?", default=Path("runs"), help="the folder (default: runs)")
    for name, text in (("show", "the result and the genotype of a run"), ("report", "write report.html from the files of a run")):
        commands.add_parser(name, help=text).add_argument("directory", type=Path, help="the run directory")
    arguments = parser.parse_args(argv)
    lines = {"list": _list, "show": _show, "report": _report}[arguments.command](arguments.directory)
    print("\n".join(lines))
    return 0


def _list(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: no such folder; name the one that holds the runs")
    # Hidden names include the temporary files of a run that is being written.
    found = [path.parent for path in sorted(folder.glob("[!.]*/config.toml"))]
    if not found:
        raise ConfigurationError(f"{folder} holds no run directories; a search with --out {folder}/NAME makes one")
    rows = [("run", "method", "data", "seed", "state", "time"), *map(_row, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(directory: Path) -> tuple[str, ...]:
    run = read_run(directory, scores=False)
    try:
        settings = tomllib.loads(run.config)
    except (ValueError, RecursionError):
        settings = {}
    chosen = (_printable(settings.get(key, "?")) for key in ("method", "data", "seed"))
    return _printable(run.name), *chosen, _state(run), _time(run)


def _state(run: RunFiles) -> str:
    rounds = len(run.rounds)
    return "finished" if run.result else f"{rounds} round{'s' * (rounds != 1)} done"


def _time(run: RunFiles) -> str:
    seconds = number(run.result.get("seconds"))
    return duration(seconds) if seconds is not None and 0 <= seconds < 1e9 else ""


def _show(directory: Path) -> list[str]:
    run = read_run(directory, scores=False)
    lines = [f"{_printable(run.name)}: {_state(run)}"]
    lines += [f"  {_printable(k)}: {_printable(v)}" for k, v in run.result.items() if not isinstance(v, dict | list)]
    for kind, cell in run.genotype.cells if run.genotype else ():
        lines.append(f"{_printable(kind)} cell")
        lines += [f"  {c.source} -> {c.target}  {_printable(c.operation)}" for c in cell.connections]
    return lines + [f"warning: {_printable(problem)}" for problem in run.problems]


def _report(directory: Path) -> list[str]:
    from engine.runs.report import write_report

    return [str(write_report(directory))]


def _printable(value: object) -> str:
    """Return text that cannot steer the terminal it is printed on."""
    return "".join(character if character.isprintable() else "\ufffd" for character in str(value))


if __name__ == "__main__":
    from engine.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
