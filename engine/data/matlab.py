"""Variables of MATLAB level-5 files from outside, read here because SciPy's reader crashes on damaged ones.

Layout ("MAT-File Format", MathWorks): a header of 128 bytes, then elements, each a tag (type, bytes) and its data, padded to
eight bytes; a compressed element holds another one, a matrix element holds flags, dimensions, name and content as elements.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import ConfigurationError

# The files that data sets come with have some hundred kilobytes.
MAX_FILE_BYTES = 4 * 2**20
MAX_UNPACKED_BYTES = 64 * 2**20
MAX_DEPTH = 4
HEADER_BYTES = 128
MATRIX, COMPRESSED = 14, 15
TYPES = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8", 16: "u1", 17: "<u2"}
STRUCT, CHAR, NUMBERS = 2, 4, range(6, 16)


def read_mat(path: Path, name: str) -> Any:
    """Return the variable ``name`` of a ``.mat`` file of at most 4 MB.

    Numbers are an array, text is a ``str``, an array of structures is a ``dict`` from field to the list of its values; other
    kinds are None. A file that is damaged, of another level or byte order, lacks the variable or unpacks to more than 64 MB is a
    :class:`ConfigurationError`.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigurationError(f"{path}: larger than such a file is ({MAX_FILE_BYTES} bytes); get it again")
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        if content[126:HEADER_BYTES] != b"IM":
            raise ValueError("not level 5, little-endian")
        for kind, data in _elements(content[HEADER_BYTES:]):
            if kind == COMPRESSED:
                kind, data = next(_elements(_inflated(data)), (0, b""))
            found, value = _matrix(data, MAX_DEPTH) if kind == MATRIX else ("", None)
            if found == name:
                return value
    except (ValueError, OverflowError, struct.error, zlib.error) as error:
        raise ConfigurationError(f"{path}: not a readable MATLAB file ({error}); get it again") from None
    raise ConfigurationError(f"{path}: holds no variable {name!r}; get the official file")


def _inflated(data: bytes) -> bytes:
    inflated = zlib.decompressobj().decompress(data, MAX_UNPACKED_BYTES + 1)
    if len(inflated) > MAX_UNPACKED_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_UNPACKED_BYTES} bytes")
    return inflated


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, content) of the elements that follow each other in ``data``."""
    place = 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, place)
        small = kind >> 16  # up to four bytes stand in the tag itself
        if small:
            kind, size = kind & 0xFFFF, small
        start = place + (4 if small else 8)
        if start + size > len(data) or small > 4:
            raise ValueError("an element is longer than what holds it")
        yield kind, data[start : start + size]
        place = place + 8 if small else start + size + (0 if kind == COMPRESSED else -size % 8)


def _matrix(data: bytes, depth: int) -> tuple[str, Any]:
    """(name, value) of a matrix element."""
    if not data:
        return "", None  # an empty structure field
    if not depth:
        raise ValueError("structures within structures within structures")
    parts = _elements(data)
    flags, shape, name = (_numbers(parts) for _ in range(3))
    kind = int(flags[0]) & 0xFF if len(flags) else 0
    label = bytes(name.astype(np.uint8)).decode("latin1")
    sides = [int(side) for side in shape]
    if kind in NUMBERS:
        values = _numbers(parts)
        if min(sides, default=0) < 0 or math.prod(sides) != len(values):
            raise ValueError("a shape that does not fit its numbers")
        return label, values.reshape(sides, order="F").squeeze()
    if kind == CHAR:
        return label, "".join(map(chr, _numbers(parts).tolist()))
    return label, _structures(parts, depth) if kind == STRUCT else None


def _structures(parts: Iterator[tuple[int, bytes]], depth: int) -> dict[str, list[Any]]:
    width = int(_numbers(parts).sum())
    text = bytes(_numbers(parts).astype(np.uint8))
    if width < 1:
        raise ValueError("structures without field names")
    names = [text[i : i + width].split(b"\0")[0].decode("latin1") for i in range(0, len(text), width)]
    values = [_matrix(data, depth - 1)[1] for kind, data in parts if kind == MATRIX]
    return {name: values[k :: len(names)] for k, name in enumerate(names)}


def _numbers(parts: Iterator[tuple[int, bytes]]) -> np.ndarray:
    """The next element's numbers, as they are stored."""
    kind, data = next(parts, (0, b""))
    if kind not in TYPES:
        raise ValueError(f"an element of type {kind} where numbers belong")
    return np.frombuffer(data, dtype=TYPES[kind])
