"""Checkpoints that survive a crash at any moment and notice damage.

``checkpoints/NNNNNN/`` holds ``state.json``, ``tensors.safetensors`` (only when there are tensors) and ``manifest.json``, the
sizes and SHA-256 of both, written last. A checkpoint is written as a hidden sibling and renamed, so a directory with a
number as its name is whole. ``LATEST`` names the newest for other readers; this module trusts only the manifests.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigurationError
from engine.runs.files import canonical, read_regular, storage, sync_directory, write_durable

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1
KEEP = 2
MAX_MANIFEST = 100_000
STATE, TENSORS, MANIFEST = "state.json", "tensors.safetensors", "manifest.json"


class Damaged(Exception):
    """A checkpoint that is not what was written; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: ``state`` (JSON types), ``tensors`` on the CPU, and the byte length of each log at that moment."""

    state: dict[str, Any]
    tensors: dict[str, Tensor]
    logs: dict[str, int]


class CheckpointStore:
    """The checkpoints of one run directory; the newest :data:`KEEP` whole ones stay."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._whole: list[Path] = []

    def numbered(self) -> list[Path]:
        """Return the checkpoint directories, newest first, whole or not."""
        with storage(self.directory):
            names = os.listdir(self.directory) if self.directory.is_dir() else []
        numbers = sorted((name for name in names if name.isascii() and name.isdigit()), key=int, reverse=True)
        return [self.directory / name for name in numbers]

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write ``checkpoint`` durably and forget the ones before the last. Costs six fsyncs, a few milliseconds on an SSD.

        ``state`` must be JSON; its NaN and infinities come back as floats. Tensors are copied to the CPU; tied tensors
        come back untied. A full disk is a :class:`ConfigurationError`, and the checkpoints before it stay as they are.
        """
        older = self.numbered()
        final = self.directory / f"{int(older[0].name) + 1 if older else 1:06d}"
        temporary = self.directory / ".new"
        with storage(final):
            try:
                self._write(temporary, checkpoint)
                os.replace(temporary, final)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            sync_directory(self.directory)
            if not older:
                sync_directory(self.directory.parent)
            self._point_to(final)
            self._whole = [*self._whole, final][-KEEP:]
            for path in older:
                if path not in self._whole:
                    shutil.rmtree(path)
        return final

    def _write(self, directory: Path, checkpoint: Checkpoint) -> None:
        if directory.exists():
            shutil.rmtree(directory)
        # Not with parents: a run directory that has vanished is an error, not one to begin anew.
        directory.parent.mkdir(exist_ok=True)
        directory.mkdir()
        record = {"logs": checkpoint.logs, "state": checkpoint.state}
        contents = {STATE: json.dumps(record, separators=(",", ":")).encode() + b"\n"}
        if checkpoint.tensors:
            contents[TENSORS] = pack(checkpoint.tensors)
        for name, data in contents.items():
            write_durable(directory / name, data)
        entries = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
        write_durable(directory / MANIFEST, canonical({"files": entries, "schema": SCHEMA}))
        sync_directory(directory)

    def _point_to(self, final: Path) -> None:
        """Rewrite ``LATEST``: atomic, but not worth an fsync, since nothing is lost with it."""
        temporary = self.directory / ".LATEST.new"
        temporary.write_text(final.name + "\n", "utf-8")
        os.replace(temporary, self.directory / "LATEST")

    def newest(self, log_lengths: dict[str, int]) -> tuple[Path, Checkpoint, list[str]] | None:
        """Return the newest whole checkpoint and what is wrong with newer ones; ``None`` where nothing was ever saved.

        ``log_lengths`` are the lengths of the logs now: a checkpoint that counts on more than there is is damaged too.
        Raises :class:`ConfigurationError` naming the files when checkpoints exist and none is whole.
        """
        problems: list[str] = []
        for path in self.numbered():
            try:
                checkpoint = _read(path)
                _check_logs(checkpoint.logs, log_lengths)
            except Damaged as error:
                problems.append(f"{path}: {error}")
            else:
                self._whole = [path]
                return path, checkpoint, problems
        if problems:
            remedy = "restore one from a copy or start again with another --out"
            raise ConfigurationError(f"no checkpoint can be used: {'; '.join(problems)}; {remedy}")
        return None


def pack(tensors: dict[str, Tensor]) -> bytes:
    """Return ``tensors`` as the bytes of a safetensors file."""
    import torch
    from safetensors.torch import save

    # A clone each, since safetensors refuses tensors that share or skip memory.
    return save({name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()})


def unpack(data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; anything else is :class:`Damaged`."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except SafetensorError as error:
        raise Damaged(f"{TENSORS} is not a safetensors file ({error})") from None


def _read(directory: Path) -> Checkpoint:
    entries = _read_manifest(directory / MANIFEST)
    contents = {name: _read_checked(directory / name, entry) for name, entry in entries.items()}
    try:
        record = json.loads(contents[STATE])
        state, logs = record["state"], {str(name): int(length) for name, length in record["logs"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Damaged(f"{STATE} is not the state of a checkpoint") from None
    return Checkpoint(state, unpack(contents[TENSORS]) if TENSORS in contents else {}, logs)


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    try:
        text = read_regular(path, MAX_MANIFEST)
        if len(text) > MAX_MANIFEST:
            raise Damaged(f"{path.name} is too large")
        manifest = json.loads(text)
        entries = manifest["files"]
        known = manifest["schema"] == SCHEMA and canonical(manifest) == text and set(manifest) == {"files", "schema"}
        known = known and set(entries) in ({STATE}, {STATE, TENSORS})
        known = known and all(set(entry) == {"bytes", "sha256"} for entry in entries.values())
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        raise Damaged(f"{path.name} is damaged")
    return entries


def _read_checked(path: Path, entry: dict[str, Any]) -> bytes:
    try:
        size = path.stat().st_size
        data = read_regular(path, size) if size == entry["bytes"] else b""
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read ({error.strerror})") from None
    if size != entry["bytes"]:
        raise Damaged(f"{path.name} has {size} bytes instead of {entry['bytes']}")
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise Damaged(f"{path.name} does not match its checksum")
    return data


def _check_logs(recorded: dict[str, int], lengths: dict[str, int]) -> None:
    for name, length in recorded.items():
        if not 0 <= length <= lengths.get(name, 0):
            raise Damaged(f"{name} has {lengths.get(name, 0)} bytes where the checkpoint counts on {length}")
