"""The same command for many seeds or methods as one SLURM array, through submitit (an extra); a job that is preempted goes on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engine.errors import ConfigurationError, Preempted


class Executor(Protocol):
    """What is used of ``submitit.AutoExecutor`` and executors like it."""

    def batch(self) -> AbstractContextManager[Any]:
        """Submit all that is submitted inside the ``with`` statement as one array, when it ends."""

    def submit(self, fn: Any) -> Any:
        """Submit one call of ``fn`` and return its job."""


@dataclass(frozen=True)
class Command:
    """One command line of ``engine`` as a picklable function, such as ``Command(("search", "darts", "--out", "runs/a"))``.

    Called once more, it resumes its run directory: submitit does so by itself (:meth:`checkpoint`) when the job is preempted or
    its time is up. Returns the exit code, 75 where another signal stopped the run between two steps; errors of the command are
    raised, so that the job is marked as failed.
    """

    words: tuple[str, ...]

    def __call__(self) -> int:
        from importlib import import_module

        from engine.cli import COMMANDS

        name, *rest = self.words
        out = self.out
        resumes = (out / "config.toml").is_file() and "--resume" not in rest
        try:
            return import_module(COMMANDS[name][0]).main([*rest, *(["--resume"] if resumes else [])]) or 0
        except Preempted as stopped:
            return stopped.exit_code

    def checkpoint(self) -> Any:
        """What submitit submits again when SLURM preempts the job or its time is up."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    @property
    def out(self) -> Path:
        """The run directory."""
        return Path(self.words[self.words.index("--out") + 1])


def submit(commands: Sequence[Sequence[str]], executor: Executor) -> list[Any]:
    """Submit commands as one array and return its jobs.

    Each command begins with a name of ``engine --help`` and has an ``--out`` of its own, which all machines of the array see;
    anything else is a :class:`~engine.errors.ConfigurationError` before anything is submitted.
    """
    from engine.cli import COMMANDS

    outs: list[str] = []
    for words in commands:
        if not words or words[0] not in COMMANDS:
            raise ConfigurationError(f"command {' '.join(words)!r}: expected it to begin with one of {', '.join(COMMANDS)}")
        if "--out" not in words[:-1]:
            raise ConfigurationError(f"command {' '.join(words)!r}: give each command an --out of its own, so that it can go on")
        outs.append(str(Command(tuple(words)).out))
    twice = sorted({out for out in outs if outs.count(out) > 1})
    if twice:
        raise ConfigurationError(f"--out {twice[0]}: several commands of the array would write to it; give each its own")
    with executor.batch():
        return [executor.submit(Command(tuple(words))) for words in commands]


def slurm_executor(folder: Path, **parameters: Any) -> Executor:
    """``submitit.AutoExecutor`` for SLURM with ``parameters`` (``timeout_min=60, slurm_partition="gpu"``); logs go to ``folder``.

    Without the package a :class:`~engine.errors.ConfigurationError`.
    """
    try:
        from submitit import AutoExecutor
    except ImportError:
        raise ConfigurationError("SLURM arrays need the submitit package; pip install 'nas-engine[slurm]'") from None
    executor = AutoExecutor(folder=folder)
    executor.update_parameters(**parameters)
    return executor
