"""Reading data sets that ship as pickles without running anything from them (design rule 8).

No class named in the file is ever imported. NumPy's arrays, scalars and types arrive as plain stand-ins; the arrays
are rebuilt from checked bytes once the file has been read.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from engine.errors import ConfigurationError

MAX_BYTES = 12 * 2**30  # the largest known file, tieredImageNet's training images, takes 9.5 GB

_TYPE_CODE = re.compile(r"b1|[iu][1248]|f[248]|[SU][1-9]\d{0,4}")


class _Refused(Exception):
    """The pickle asks for something that a data set does not need."""


class _Type:
    """Stand-in for ``numpy.dtype``: a type code and, once its state is known, a byte order."""

    def __init__(self, code: str | bytes, align: bool = False, copy: bool = False) -> None:
        code = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _TYPE_CODE.fullmatch(code):
            raise _Refused(f"the array type {code!r}")
        self.code = code
        self.type = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, *structure = state[1:5]
        order = order.decode("latin1") if isinstance(order, bytes) else order
        if order not in ("<", ">", "|", "=") or any(part is not None for part in structure):
            raise _Refused("a structured array type")
        self.type = np.dtype(order + self.code)


class _Array:
    """Stand-in for ``numpy.ndarray``: shape, type and raw bytes."""

    def __init__(self, subtype: Any = None, shape: Any = None, code: Any = None) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, kind, fortran, raw = state[-4:]
        self.array = _rebuild(raw, kind, shape, "F" if fortran else "C")


def _rebuild(raw: Any, kind: Any, shape: Any, order: str) -> np.ndarray:
    """Return the array of raw bytes after checking that type and shape account for every one of them."""
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(kind, _Type) or not isinstance(raw, (bytes, bytearray)) or not isinstance(shape, tuple):
        raise _Refused("an array that is not raw bytes")
    if any(not isinstance(side, int) or side < 0 for side in shape):
        raise _Refused(f"the array shape {shape!r}")
    if math.prod(shape) * kind.type.itemsize != len(raw):
        raise _Refused(f"an array of shape {shape!r} with {len(raw)} bytes")
    return np.frombuffer(raw, dtype=kind.type).reshape(shape, order="F" if order == "F" else "C")


def _scalar(kind: Any, raw: Any) -> Any:
    return _rebuild(raw, kind, (), "C").item()


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    return _rebuild(raw, kind, shape, order)


def _encode(text: Any, encoding: Any = None) -> bytes:
    """Python 3 writes bytes in old protocols as a call of ``_codecs.encode(text, "latin1")``; only that is allowed."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused(f"the text encoding {encoding!r}")
    return text.encode("latin1")


def _bytes(*parts: Any) -> bytes:
    if parts:
        raise _Refused("bytes from a call")
    return b""


def _bytearray(*parts: Any) -> bytearray:
    if parts and not (len(parts) == 1 and isinstance(parts[0], bytes)):
        raise _Refused("a bytearray that is not given by its bytes")
    return bytearray(*parts)


class _Call(tuple):
    """A function that a pickle may call, as an immutable value: the state that a pickle can set must not reach our code."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        return self[0](*arguments)


_PYTHONS = ("builtins", "__builtin__")
_CORES = ("numpy.core", "numpy._core")
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "numpy.ndarray",  # named as an argument of _reconstruct, never called
    ("numpy", "dtype"): _Call((_Type,)),
    ("_codecs", "encode"): _Call((_encode,)),
    ("collections", "OrderedDict"): _Call((dict,)),
    **{(module, "bytes"): _Call((_bytes,)) for module in _PYTHONS},
    **{(module, "bytearray"): _Call((_bytearray,)) for module in _PYTHONS},
    **{(module, "set"): _Call((set,)) for module in _PYTHONS},
    **{(module, "frozenset"): _Call((frozenset,)) for module in _PYTHONS},
    **{(f"{core}.multiarray", "_reconstruct"): _Call((_Array,)) for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _Call((_scalar,)) for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _Call((_from_buffer,)) for core in _CORES},
}


def _load_bytearray8(unpickler: Any) -> None:
    # The standard library fills a bytearray of the declared size before it looks whether the file has so much.
    (size,) = struct.unpack("<Q", unpickler.read(8))
    if size > MAX_BYTES:
        raise _Refused(f"a bytearray of {size} bytes")
    unpickler.append(bytearray(unpickler.read(size)))


class _Unpickler(pickle._Unpickler):
    # The unpickler written in Python: the C one lets six damaged bytes ask for a memo table of tens of gigabytes.
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _Refused(repr(f"{module}.{name}"))
        return _ALLOWED[module, name]

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _load_bytearray8}


def load_pickle(path: Path) -> Any:
    """Return the content of a pickle made of containers, numbers, text and numeric arrays; arrays are read-only.

    Anything else in the file, a file above 12 GiB and a damaged file are a :class:`ConfigurationError`. Python 2
    pickles are read as latin-1. Cost: the file is read once; arrays share its bytes (one copy more for Python 2).
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ConfigurationError(f"{path}: a pickle of {size} bytes is above the limit of {MAX_BYTES}")
    try:
        with path.open("rb") as file:
            return _read(file, str(path))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error


def parse_pickle(content: bytes, name: str) -> Any:
    """Return the content of a pickle held in memory, like :func:`load_pickle`; ``name`` is for messages."""
    return _read(io.BytesIO(content), name)


def _read(file: BinaryIO, name: str) -> Any:
    try:
        return _resolve(_Unpickler(file, encoding="latin1").load(), {})
    except _Refused as error:
        raise ConfigurationError(f"{name}: refused, the pickle holds {error}, which a data set does not need") from error
    except Exception as error:
        # A damaged or hostile pickle can raise nearly anything while it is parsed; none of it is more than "unreadable".
        raise ConfigurationError(f"{name}: not a readable pickle ({type(error).__name__}); get the file again") from error


def _resolve(value: Any, seen: dict[int, Any]) -> Any:
    """Replace array stand-ins by their arrays; ``seen`` keeps shared containers shared, so their cost stays linear."""
    if isinstance(value, _Array):
        if value.array is None:
            raise _Refused("an array without content")
        return value.array
    if not isinstance(value, (dict, list, tuple)):
        return value
    if id(value) not in seen:
        if isinstance(value, dict):
            seen[id(value)] = {key: _resolve(item, seen) for key, item in value.items()}
        else:
            seen[id(value)] = [_resolve(item, seen) for item in value]
    return seen[id(value)]
