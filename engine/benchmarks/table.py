"""Tables of trained architectures of NAS-Bench-201: the true accuracy of what a search found."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engine.data.archives import read_npz
from engine.errors import ConfigurationError, MissingDataError
from engine.spaces.nas_bench_201 import Codes, canonical, parse, to_string
from engine.spaces.space import NAS_BENCH_201

MAX_BYTES = 50_000_000
CHANCE = {"cifar10": 10.0, "cifar100": 1.0, "imagenet16-120": 100 / 120}


@dataclass(frozen=True)
class Answer:
    """What a table says of an architecture.

    ``found`` is ``"exact"`` where the architecture itself is in the table, ``"twin"`` where one is that has the same function
    (:func:`~engine.spaces.nas_bench_201.canonical`), else ``"unknown"``, with no accuracies. ``source`` is the architecture whose
    row it is. ``accuracy`` maps data sets to test accuracy in percent.
    """

    found: Literal["exact", "twin", "unknown"]
    source: Codes | None = None
    accuracy: Mapping[str, float] = field(default_factory=dict)


class Table:
    """Test accuracies of M architectures on D data sets: ``codes`` uint8 (M, 6), ``accuracy`` float64 (M, D) in percent.

    A lookup takes about 10 microseconds. 15,625 architectures take about 8 MB and a second to index.
    """

    def __init__(self, codes: np.ndarray, accuracy: np.ndarray, datasets: Sequence[str]) -> None:
        self.codes, self.accuracy, self.datasets = codes, accuracy, tuple(datasets)
        cells: list[Codes] = [tuple(row) for row in codes.tolist()]
        self._rows = {cell: row for row, cell in enumerate(cells)}
        if len(self._rows) < len(cells):
            raise ConfigurationError("table: an architecture is listed twice")
        self._twins: dict[tuple[object, ...], int] = {}
        for row, cell in enumerate(cells):
            self._twins.setdefault(canonical(cell), row)

    def __len__(self) -> int:
        return len(self.codes)

    def lookup(self, cell: Codes) -> Answer:
        """The row of ``cell``, else that of its first twin, else ``unknown``; never that of a neighbour."""
        row = self._rows.get(cell)
        if row is not None:
            return self._answer("exact", row)
        row = self._twins.get(canonical(cell))
        return Answer("unknown") if row is None else self._answer("twin", row)

    def _answer(self, found: Literal["exact", "twin"], row: int) -> Answer:
        accuracy = dict(zip(self.datasets, self.accuracy[row].tolist(), strict=True))
        return Answer(found, tuple(self.codes[row].tolist()), accuracy)

    def best(self, dataset: str) -> Answer:
        """The most accurate architecture of the table on a data set."""
        return self._answer("exact", int(self.accuracy[:, self.column(dataset)].argmax()))

    def column(self, dataset: str) -> int:
        """The column of a data set; an unknown one is a :class:`ConfigurationError`."""
        if dataset not in self.datasets:
            raise ConfigurationError(f"table: it has no data set {dataset!r}, only {', '.join(self.datasets)}")
        return self.datasets.index(dataset)

    def summary(self, cell: Codes) -> dict[str, Any]:
        """What goes to result.json of a search that found ``cell``: accuracies, the table's best, and the distance to it."""
        answer = self.lookup(cell)
        best = {name: self.best(name).accuracy[name] for name in self.datasets}
        return {
            "architectures": len(self),
            "found": answer.found,
            "row": None if answer.source is None else to_string(answer.source),
            "accuracy": dict(answer.accuracy),
            "best": best,
            "distance": {name: round(best[name] - value, 6) for name, value in answer.accuracy.items()},
        }


def load_table(path: Path) -> Table:
    """Read a table: npz with ``ops`` (M, 6), ``op_names``, ``edge_order``, ``test_acc_200ep`` (M, D) and ``datasets``, or csv
    with the columns ``arch`` and ``<data set>_test``.

    Data sets keep their names in lower case. A missing file is a :class:`MissingDataError`; one that does not fit, is larger than
    50 MB, lists an architecture twice or holds a value outside 0 to 100 is a :class:`ConfigurationError` that names it.
    """
    if not path.is_file():
        raise MissingDataError(f"benchmark: {path} is not a file; name a table of NAS-Bench-201 (npz or csv)")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigurationError(f"{path}: larger than a table can be ({MAX_BYTES} bytes)")
    readers = {".npz": _from_npz, ".csv": _from_csv}
    if path.suffix not in readers:
        raise ConfigurationError(f"{path}: a table is an .npz or a .csv file")
    try:
        codes, accuracy, datasets = readers[path.suffix](path)
        if not len(codes):
            raise ConfigurationError("table: it holds no architectures")
        if not ((accuracy >= 0) & (accuracy <= 100)).all():
            raise ConfigurationError("table: an accuracy is not a number from 0 to 100")
        return Table(codes, accuracy, [name.lower() for name in datasets])
    except ConfigurationError as error:
        if str(error).startswith(str(path)):
            raise
        raise ConfigurationError(f"{path}: {error}") from None


def _from_npz(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    content = read_npz(path, ("ops", "op_names", "edge_order", "test_acc_200ep", "datasets"))
    ops, accuracy = content["ops"], content["test_acc_200ep"]
    names, datasets = content["op_names"].tolist(), content["datasets"].tolist()
    edges = [f"{source}->{target}" for source, target in NAS_BENCH_201.edges]
    if sorted(map(str, names)) != sorted(NAS_BENCH_201.operations) or content["edge_order"].tolist() != edges:
        raise ConfigurationError(f"table: op_names or edge_order are not those of {NAS_BENCH_201.name}")
    if ops.dtype.kind not in "iu" or ops.ndim != 2 or ops.shape[1] != len(edges) or not ((ops >= 0) & (ops < len(names))).all():
        raise ConfigurationError(f"table: ops must be (M, {len(edges)}) numbers into op_names, not {ops.dtype} {ops.shape}")
    if accuracy.dtype.kind != "f" or accuracy.shape != (len(ops), len(datasets)):
        raise ConfigurationError(f"table: test_acc_200ep must be ({len(ops)}, {len(datasets)}), not {accuracy.shape}")
    order = np.array([NAS_BENCH_201.operations.index(name) for name in names], dtype=np.uint8)
    return order[ops], accuracy.astype(np.float64), [str(name) for name in datasets]


def _from_csv(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            columns = [name for name in rows.fieldnames or () if name.endswith("_test")]
            if "arch" not in (rows.fieldnames or ()) or not columns:
                raise ConfigurationError("table: the csv needs a column arch and one or more <data set>_test")
            cells, values = [], []
            for row in rows:
                cells.append(parse(row["arch"] or ""))
                values.append([float(row[name]) for name in columns])
    except ConfigurationError:
        raise
    except (ValueError, TypeError, csv.Error, OSError) as error:
        raise ConfigurationError(f"table: not a readable csv ({error})") from None
    names = [name.removesuffix("_test").replace("imagenet16_120", "imagenet16-120") for name in columns]
    return np.array(cells, dtype=np.uint8).reshape(-1, 6), np.array(values).reshape(-1, len(columns)), names
