"""Reading npz, zip and tar files from outside: nothing is extracted, every declared size is checked first."""

from __future__ import annotations

import io
import math
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from engine.errors import ConfigurationError

MAX_ARRAY_BYTES = 12 * 2**30
MAX_MEMBER_BYTES = 64 * 2**20
MAX_ARCHIVE_BYTES = 4 * 2**30
MAX_MEMBERS = 500_000


def read_npz(path: Path, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Return the named arrays of an npz file; only they are read.

    A file that is no npz, a missing array, an object array, a declared size above 12 GiB or beyond the data, and damaged
    data are a :class:`ConfigurationError` naming file and array.
    """
    required = tuple(required)
    with open_zip(path) as archive:
        present = {name.removesuffix(".npy") for name in archive.namelist()}
        missing = [key for key in required if key not in present]
        if missing:
            found = ", ".join(sorted(present)[:12]) or "nothing"
            raise ConfigurationError(f"{path}: the npz has no array {', '.join(missing)}; it holds {found}")
        return {key: _read_array(archive, key, path) for key in (*required, *optional) if key in present}


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip or npz file; one that cannot be read is a :class:`ConfigurationError`."""
    try:
        return zipfile.ZipFile(path)
    except Exception as error:
        # A damaged or hostile directory raises nearly anything; all of it means the same to the user.
        raise ConfigurationError(f"{path}: not a readable {path.suffix[1:]} file ({error}); get or write it again") from error


def _read_array(archive: zipfile.ZipFile, key: str, path: Path) -> np.ndarray:
    try:
        info = archive.getinfo(f"{key}.npy")
        with archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
            held = info.file_size - file.tell()
        size = math.prod(shape) * dtype.itemsize
        fits = min(shape, default=0) >= 0 and size <= min(held, MAX_ARRAY_BYTES)
        if fits and not dtype.hasobject:
            with archive.open(info) as file:
                return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:
        # Hostile headers and damaged compressed data raise nearly anything; all of it means the same to the user.
        raise ConfigurationError(f"{path}: array {key!r} is damaged ({type(error).__name__}); write the file again") from error
    if dtype.hasobject:
        raise ConfigurationError(
            f"{path}: array {key!r} holds Python objects, which are never loaded; save it as numbers or text"
        )
    raise ConfigurationError(
        f"{path}: array {key!r} declares shape {shape} ({size} bytes), more than the file or the limit allows"
    )


def zip_members(archive: zipfile.ZipFile, suffix: str) -> list[zipfile.ZipInfo]:
    """Return the members whose name ends with ``suffix``, sorted by name, after checking names, number and sizes.

    Absolute names, names with ``..``, a member above 64 MiB, more than 500,000 members or 4 GiB in all are refused.
    """
    chosen = sorted((info for info in archive.infolist() if info.filename.endswith(suffix)), key=lambda info: info.filename)
    total = 0
    for info in archive.infolist():
        _check_member(str(archive.filename), info.filename, info.file_size, MAX_MEMBER_BYTES)
        total += info.file_size
    if total > MAX_ARCHIVE_BYTES or len(archive.infolist()) > MAX_MEMBERS:
        raise ConfigurationError(f"{archive.filename}: refused, it declares {len(archive.infolist())} members of {total} bytes")
    return chosen


def read_zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> io.BytesIO:
    """Return one checked member in memory."""
    try:
        return io.BytesIO(archive.read(info))
    except Exception as error:
        # As above: whatever damaged compressed data raises.
        raise ConfigurationError(f"{archive.filename}: member {info.filename} is damaged; get the archive again") from error


def read_tar(path: Path, wanted: Collection[str]) -> dict[str, bytes]:
    """Return the members of a tar.gz whose last name part is in ``wanted``: {last name part: content}.

    Limits are those of :func:`zip_members`, with 512 MiB a member; links and devices are never followed.
    """
    found: dict[str, bytes] = {}
    total = 0
    try:
        with tarfile.open(path, "r|gz") as archive:
            for count, member in enumerate(archive):
                _check_member(str(path), member.name, member.size, 8 * MAX_MEMBER_BYTES)
                total += member.size
                if total > MAX_ARCHIVE_BYTES or count > MAX_MEMBERS:
                    raise ConfigurationError(f"{path}: refused, it unpacks to more than {MAX_ARCHIVE_BYTES} bytes")
                name = PurePosixPath(member.name).name
                file = archive.extractfile(member) if member.isfile() and name in wanted else None
                if file is not None:
                    found[name] = file.read()
    except ConfigurationError:
        raise
    except (tarfile.TarError, EOFError, OSError, TypeError, ValueError, zlib.error) as error:
        # TypeError is how the standard library meets a header that ends too soon.
        raise ConfigurationError(f"{path}: not a readable tar.gz ({type(error).__name__}); get the archive again") from error
    return found


def _check_member(archive: str, name: str, size: int, limit: int) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise ConfigurationError(f"{archive}: refused, member {name!r} points outside the archive")
    if size > limit:
        raise ConfigurationError(f"{archive}: refused, member {name!r} declares {size} bytes, above the limit of {limit}")
