"""The run directory (design rule 7): everything a run leaves, written as it goes, by one process at a time."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engine.errors import ConfigurationError
from engine.runs.checkpoints import Checkpoint, CheckpointStore, pack, unpack
from engine.runs.distribution import ALONE, Ranks
from engine.runs.files import canonical, replace_file, storage, strict, write_all
from engine.runs.locking import Lock
from engine.runs.loop import Pace

if TYPE_CHECKING:
    from torch import Tensor

    from engine.runs.signals import Stop

Loaded = tuple[dict[str, Any], "dict[str, Tensor]"]
Nonfinite = Literal["stop", "skip"]
LOGS = ("scores.jsonl", "metrics.jsonl")
MARKERS = ("config.toml", "result.json", "checkpoints", *LOGS)


def _to_stderr(line: str) -> None:
    print(f"note: {line}", file=sys.stderr, flush=True)


class Run:
    """One run directory, open for writing and locked against other writers.

    Use :meth:`create` or :meth:`resume`, and :meth:`close` (or ``with``) at the end. A resumed run must :meth:`load` before it
    appends, because loading cuts the logs back to where the checkpoint was made: so a run that was killed at any
    moment and resumed leaves the same bytes as one that was not. Every failing write is a :class:`ConfigurationError` that
    names the path, and leaves the last checkpoint whole.

    ``ranks`` are the processes that share the run; this one, their lead, writes, the others hold a :class:`FollowingRun`.
    ``nonfinite`` says what becomes of a training step with NaN or infinities, see :class:`~engine.runs.guard.Guard`.
    """

    nonfinite: Nonfinite = "stop"

    def __init__(self, directory: Path, lock: Lock, notice: Callable[[str], None], ranks: Ranks = ALONE) -> None:
        self.directory = directory
        self.ranks = ranks
        self._lock = lock
        self._notice = notice
        self._checkpoints = CheckpointStore(directory / "checkpoints")
        self._logs: dict[str, int] = {}
        self._pace = Pace()

    @classmethod
    def create(cls, out: Path, config_toml: str, environment: dict[str, Any], *, ranks: Ranks = ALONE) -> Run:
        """Start a run in ``out``, which may be missing or hold unrelated files, but no other run."""
        with storage(out):
            out.mkdir(parents=True, exist_ok=True)
        lock = Lock(out)
        try:
            if any((out / name).exists() for name in MARKERS):
                raise ConfigurationError(f"{out} already holds a run; add --resume or choose another --out")
            run = cls(out, lock, _to_stderr, ranks)
            run.write_text("config.toml", config_toml)
            run.write_json("env.json", environment)
            run._open_logs({})
        except BaseException:
            lock.release()
            raise
        return run

    @classmethod
    def resume(cls, out: Path, *, notice: Callable[[str], None] = _to_stderr, ranks: Ranks = ALONE) -> Run:
        """Open the run in ``out``. ``notice`` is told, in one line, of each damaged checkpoint that is skipped."""
        with storage(out):
            holds_run = (out / "config.toml").is_file()
        if not holds_run:
            raise ConfigurationError(f"{out} holds no run to resume; leave out --resume or give the --out of a run")
        return cls(out, Lock(out), notice, ranks)

    @property
    def finished(self) -> bool:
        """Whether the run has ended with a result."""
        return (self.directory / "result.json").is_file()

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Add one line to ``scores.jsonl`` or ``metrics.jsonl``, with NaN and infinities as strings.

        It outlives a killed process at once and a lost machine from the next :meth:`save` on. About ten microseconds.
        """
        self._check_open()
        with storage(self.directory / name):
            write_all(self._logs[name], canonical(record))

    def write_json(self, name: str, value: Any) -> None:
        """Write ``value`` atomically as indented strict JSON in its own order of keys (of a genotype: its canonical bytes)."""
        self.write_text(name, json.dumps(strict(value), indent=2, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write ``text`` atomically."""
        replace_file(self.directory / name, text.encode())

    def write_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Write ``tensors`` atomically as a safetensors file."""
        replace_file(self.directory / name, pack(tensors))

    def save(self, state: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> None:
        """Write a checkpoint of ``state`` (JSON types) and ``tensors``, with the lengths of the logs at this moment."""
        self._check_open()
        lengths = {}
        for name, descriptor in self._logs.items():
            with storage(self.directory / name):
                os.fsync(descriptor)
                status = os.fstat(descriptor)
                if not status.st_nlink:
                    raise FileNotFoundError(errno.ENOENT, "it was removed while the run was writing to it")
                lengths[name] = status.st_size
        self._checkpoints.save(Checkpoint(state, tensors or {}, lengths))

    def offer(self, state: Callable[[], dict[str, Any]], stop: Stop) -> None:
        """Save ``state()`` if a checkpoint is due at the run's own :class:`~engine.runs.loop.Pace`, or ``stop`` is requested.

        For work whose smallest pieces are worth keeping: call it after each of them, it costs a microsecond where nothing is due.
        """
        if stop.requested or self._pace.due():
            self.save(state())
            self._pace.saved()

    def load(self) -> Loaded | None:
        """Return (state, tensors) of the newest whole checkpoint, ``None`` if there is none, and cut the logs back to it.

        Damaged checkpoints are skipped with a notice; if all are damaged, a :class:`ConfigurationError` names the files
        and nothing is changed. The logs of a finished run stay as they are, and it takes no more lines.
        """
        found = self._checkpoints.newest({name: self._log_length(name) for name in LOGS})
        if found is None:
            self._open_logs({})
            return _shared(self.ranks, None)
        path, checkpoint, problems = found
        for problem in problems:
            self._notice(f"{problem}; going on from checkpoint {path.name}")
        self._open_logs(checkpoint.logs)
        return _shared(self.ranks, (checkpoint.state, checkpoint.tensors))

    def _check_open(self) -> None:
        if not self._logs:
            raise ValueError(
                f"{self.directory}: load() a resumed run before writing to it; a finished or closed one takes no more"
            )

    def _log_length(self, name: str) -> int:
        path = self.directory / name
        with storage(path):
            return path.stat().st_size if path.exists() else 0

    def _open_logs(self, lengths: dict[str, int]) -> None:
        """Open the logs at the given lengths (0 where none is given)."""
        self._close_logs()
        if self.finished:
            return
        for name in LOGS:
            path = self.directory / name
            with storage(path):
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK  # no waiting for a pipe's reader
                self._logs[name] = os.open(path, flags, 0o666)
                os.ftruncate(self._logs[name], lengths.get(name, 0))

    def _close_logs(self) -> None:
        while self._logs:
            os.close(self._logs.popitem()[1])

    def close(self) -> None:
        """Close the logs and release the lock; a second call does nothing."""
        self._close_logs()
        self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FollowingRun(Run):
    """The run as a rank sees it that is not the lead: it loads what the lead loaded, and leaves all writing to it."""

    def __init__(self, directory: Path, ranks: Ranks) -> None:
        self.directory = directory
        self.ranks = ranks

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Leave the line to the lead."""

    def write_text(self, name: str, text: str) -> None:
        """Leave the file to the lead."""

    def write_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Leave the file to the lead."""

    def save(self, state: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> None:
        """Leave the checkpoint to the lead."""

    def offer(self, state: Callable[[], dict[str, Any]], stop: Stop) -> None:
        """Leave the checkpoint to the lead."""

    def load(self) -> Loaded | None:
        """Return what the lead's :meth:`Run.load` returned."""
        return _shared(self.ranks, None)

    def close(self) -> None:
        """Nothing is open."""


def _shared(ranks: Ranks, loaded: Loaded | None) -> Loaded | None:
    """What the lead loaded, on every rank."""
    if ranks.world == 1:
        return loaded
    state = ranks.share("loaded", [loaded[0]] if loaded else [])
    data = ranks.share_bytes("tensors", pack(loaded[1]) if ranks.lead and loaded and loaded[1] else b"")
    return (state[0], unpack(data) if data else {}) if state else None
