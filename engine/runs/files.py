"""Writing to a run directory: strict JSON, whole files or none, and errors that say what to do. Reading what may be hostile."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.errors import ConfigurationError


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` (disk full, read-only, a file in the way) into a :class:`ConfigurationError` naming ``path``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(f"{path}: cannot be used ({reason}); make room or choose another --out") from None


def strict(value: Any) -> Any:
    """Return ``value`` with NaN and infinities as the strings ``"nan"``, ``"inf"`` and ``"-inf"``, which JSON can carry."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return value


def canonical(value: Any) -> bytes:
    """Return the one line of strict JSON that ``value`` always gives: sorted keys, no spaces, shortest exact floats."""
    return json.dumps(strict(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte of ``data``; a full disk may take only some of them at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_durable(path: Path, data: bytes) -> None:
    """Create or overwrite ``path`` and return once its bytes are on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` atomically: readers, and a machine that loses power, see the old file or the new one."""
    with storage(path):
        temporary = path.with_name(f".{path.name}.new")
        try:
            write_durable(temporary, data)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def read_regular(path: Path, limit: int) -> bytes:
    """Return the bytes of a regular file, of a longer one than ``limit`` the first ``limit`` + 1.

    Pipes and devices, which may never end, and folders are an ``OSError``.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read(min(limit, status.st_size) + 1)
