"""What a cell of NAS-Bench-101 reaches when it is trained: a table, or a function of one's own, asked by the cell."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np

from engine.data.archives import read_npz
from engine.errors import ConfigurationError, MissingDataError
from engine.spaces.nas_bench_101 import CONV1, CONV3, INPUT, OUTPUT, POOL, Cell101, parse

MAX_BYTES = 200_000_000  # all 423,624 cells take about 60 MB as csv
# How npz tables number operations.
CODES = (INPUT, CONV3, CONV1, POOL, OUTPUT)

Oracle = Callable[[Cell101], float | None]


def load_oracle(name: str) -> Oracle:
    """What ``--oracle`` names: a table (.csv, .npz), or ``package.module:function``.

    Oracles answer with test accuracy in percent; a table with None for a cell of which it holds no isomorphic one. The function
    takes the matrix as nested lists and the list of operations, "input" first and "output" last.
    """
    if Path(name).suffix in (".csv", ".npz"):
        return Table101.load(Path(name).expanduser()).accuracy
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigurationError(f"--oracle: {name!r} is neither a .csv or .npz table nor package.module:function")
    try:
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"--oracle: cannot import {name!r} ({error})") from None
    if not callable(function):
        raise ConfigurationError(f"--oracle: {name!r} is a {type(function).__name__}, not a function")

    def ask(cell: Cell101) -> float:
        return _percent(function([list(row) for row in cell.matrix], list(cell.operations)), name)

    return ask


class Table101:
    """Accuracies in percent by fingerprint, so that isomorphic cells share a row; the mean where a cell is listed several times.

    A lookup takes about 0.14 milliseconds, and so does the reading of a row (423,624 rows: about a minute).
    """

    def __init__(self, rows: Iterator[tuple[Cell101, float]]) -> None:
        found: dict[str, list[float]] = {}
        for cell, accuracy in rows:
            found.setdefault(cell.fingerprint(), []).append(_percent(accuracy, "table"))
        if not found:
            raise ConfigurationError("table: it holds no cells")
        self._accuracy = {key: sum(values) / len(values) for key, values in found.items()}

    def __len__(self) -> int:
        return len(self._accuracy)

    def accuracy(self, cell: Cell101) -> float | None:
        """Of the cell or an isomorphic one; None where the table has neither."""
        return self._accuracy.get(cell.fingerprint())

    @classmethod
    def load(cls, path: Path) -> Table101:
        """Read a csv with the columns ``matrix`` (rows of 0 and 1 with spaces between), ``operations`` (names with commas) and
        ``accuracy``, or an npz with ``matrix`` (M, V, V), ``operations`` (M, V) numbers into :data:`CODES` and ``accuracy`` (M,).

        A missing file is a :class:`MissingDataError`; one that does not fit or is larger than 200 MB is a
        :class:`ConfigurationError` that names it.
        """
        if not path.is_file():
            raise MissingDataError(f"--oracle: {path} is not a file; name a table of NAS-Bench-101 (csv or npz)")
        if path.stat().st_size > MAX_BYTES:
            raise ConfigurationError(f"{path}: larger than a table can be ({MAX_BYTES} bytes)")
        try:
            return cls(_from_npz(path) if path.suffix == ".npz" else _from_csv(path))
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def _percent(value: object, name: str) -> float:
    number = float(value) if isinstance(value, int | float | np.floating) else float("nan")
    if not 0 <= number <= 100:
        raise ConfigurationError(f"{name}: an accuracy is a number from 0 to 100, not {value!r:.40}")
    return number


def _from_csv(path: Path) -> Iterator[tuple[Cell101, float]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if not {"matrix", "operations", "accuracy"} <= {*(rows.fieldnames or ())}:
                raise ConfigurationError("table: the csv needs the columns matrix, operations and accuracy")
            for row in rows:
                yield parse(row["matrix"] or "", row["operations"] or ""), float(row["accuracy"])
    except (ValueError, TypeError, csv.Error, OSError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"table: not a readable csv ({error})") from None


def _from_npz(path: Path) -> Iterator[tuple[Cell101, float]]:
    content = read_npz(path, ("matrix", "operations", "accuracy"))
    matrix, codes, accuracy = (content[name] for name in ("matrix", "operations", "accuracy"))
    count = len(accuracy) if accuracy.ndim == 1 else -1
    if matrix.ndim != 3 or matrix.shape[0] != count or codes.shape != matrix.shape[:2]:
        shapes = f"{matrix.shape}, {codes.shape}, {accuracy.shape}"
        raise ConfigurationError(f"table: matrix, operations, accuracy must be (M, V, V), (M, V), (M,), not {shapes}")
    if codes.dtype.kind not in "iu" or not ((codes >= 0) & (codes < len(CODES))).all():
        raise ConfigurationError(f"table: operations must be whole numbers from 0 to {len(CODES) - 1}")
    if matrix.dtype.kind not in "biu" or accuracy.dtype.kind not in "fiu":
        raise ConfigurationError(f"table: matrix and accuracy must be numbers, not {matrix.dtype} and {accuracy.dtype}")
    for edges, names, value in zip(matrix.tolist(), codes.tolist(), accuracy.tolist(), strict=True):
        yield Cell101(tuple(map(tuple, edges)), tuple(CODES[code] for code in names)), value
