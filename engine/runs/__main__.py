"""``python -m engine.runs``: list runs, show, compare and follow them, write their reports again."""

from __future__ import annotations

import argparse
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from engine.errors import ConfigurationError
from engine.runs.differences import differences
from engine.runs.progress import duration
from engine.runs.records import RunFiles, number, read_run

LOGS = ("scores.jsonl", "metrics.jsonl")
MAX_TAIL = 1_000_000
FOLLOW_SECONDS = 1.0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; {self.prog} --help tells more")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code (``diff``: 1 if the runs differ); errors are :class:`ConfigurationError`."""
    parser = _Parser(prog="python -m engine.runs", description="List runs, show, compare and follow them, write their reports.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="one line for each run in a folder")
    listing.add_argument("directory", type=Path, nargs="?", default=Path("runs"), help="the folder (default: runs)")
    for name, text in (("show", "the result and the genotype of a run"), ("report", "write report.html from the files of a run")):
        commands.add_parser(name, help=text).add_argument("directory", type=Path, help="the run directory")
    comparing = commands.add_parser("diff", help="what tells two runs apart")
    comparing.add_argument("directory", type=Path, help="the first run directory")
    comparing.add_argument("other", type=Path, help="the second run directory")
    watching = commands.add_parser("tail", help="the last lines of a run's scores, or of its metrics if it has no scores")
    watching.add_argument("directory", type=Path, help="the run directory")
    watching.add_argument("-n", "--lines", type=int, default=10, help="how many (default: %(default)s)")
    watching.add_argument("-f", "--follow", action="store_true", help="go on until the run has ended")
    exporting = commands.add_parser("tensorboard", help="write the numbers of a run's metrics for TensorBoard")
    exporting.add_argument("directory", type=Path, help="the run directory")
    exporting.add_argument("--out", type=Path, required=True, help="folder of the event file")
    arguments = parser.parse_args(argv)
    if arguments.command == "tensorboard":
        return _tensorboard(arguments.directory, arguments.out)
    if arguments.command == "tail":
        return _tail(arguments.directory, arguments.lines, follow=arguments.follow)
    if arguments.command == "diff":
        found = differences(read_run(arguments.directory), read_run(arguments.other))
        print("\n".join(map(_printable, found)) or "no difference but the time that they took")
        return int(bool(found))
    lines = {"list": _list, "show": _show, "report": _report}[arguments.command](arguments.directory)
    print("\n".join(lines))
    return 0


def _list(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: no such folder; name the one that holds the runs")
    # Hidden names include the temporary files of a run that is being written.
    found = [path.parent for path in sorted(folder.glob("[!.]*/config.toml")) if path.is_file()]
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


def _tensorboard(directory: Path, out: Path) -> int:
    from engine.runs.tensorboard import summary_writer, write

    read_run(directory, scores=False)  # refused before a folder is made
    print(f"{write(directory, summary_writer(out))} numbers in {out}")
    return 0


def _tail(directory: Path, lines: int, *, follow: bool) -> int:
    if lines < 0:
        raise ConfigurationError(f"--lines must be at least 0, got {lines}")
    run = read_run(directory, scores=False)
    name = next((name for name in LOGS if _size(directory / name)), LOGS[0])
    text, place = last_lines(directory / name, lines)
    print(f"{_printable(run.name)}: {_state(run)}, {name}", *map(_printable, text), sep="\n", flush=True)
    while follow and directory.is_dir() and not (directory / "result.json").exists():
        time.sleep(FOLLOW_SECONDS)
        text, place = last_lines(directory / name, None, place)
        print(*map(_printable, text), sep="\n", end="\n" if text else "", flush=True)
    return 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def last_lines(path: Path, count: int | None, start: int = 0) -> tuple[list[str], int]:
    """The last ``count`` whole lines of a log (all for None) from the byte ``start`` on, and the byte after them.

    At most the last megabyte is read. A log that has become shorter, because its run was resumed, is read from its new end on.
    """
    size = _size(path)
    start = max(min(start, size), size - MAX_TAIL)
    if not size:
        return [], 0
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(size - start)
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.decode("utf-8", "replace").splitlines()
    return lines if count is None else lines[len(lines) - min(count, len(lines)) :], start + len(whole)


def _printable(value: object) -> str:
    """Return text that cannot steer the terminal it is printed on."""
    return "".join(character if character.isprintable() else "\ufffd" for character in str(value))


if __name__ == "__main__":
    from engine.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
