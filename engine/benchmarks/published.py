"""Scores that others published for the architectures of a table (NAS-Bench-Suite-Zero's columns)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.data.archives import read_npz
from engine.errors import ConfigurationError
from engine.spaces.nas_bench_201 import Codes

# The columns that measure what a proxy of this library does, by the proxy's name.
COLUMNS = {
    "naswot": "nwot",
    "synflow": "synflow",
    "snip": "snip",
    "grasp": "grasp",
    "fisher": "fisher",
    "grad_norm": "grad_norm",
    "jacov": "jacov",
    "epe_nas": "epe_nas",
    "params": "params",
    "flops": "flops",
}


@dataclass(frozen=True)
class Published:
    """Architectures that have published scores, and the scores by column name, each float64 (n,), NaN and infinities included."""

    cells: tuple[Codes, ...]
    columns: Mapping[str, np.ndarray]


def load_published(path: Path, codes: np.ndarray, dataset: str) -> Published:
    """Read ``zc_names``, ``zc_index_<data set>`` and ``zc_scores_<data set>`` of a table whose rows are ``codes`` (M, 6).

    A table without them, or whose indices are not all in its own ``official_index``, is a :class:`ConfigurationError`.
    """
    if path.suffix != ".npz":
        raise ConfigurationError(f"{path}: published scores are read from an npz table")
    stored = "ImageNet16-120" if dataset == "imagenet16-120" else dataset
    names = (f"zc_index_{stored}", f"zc_scores_{stored}")
    content = read_npz(path, ("official_index", "zc_names", *names))
    rows = {index: row for row, index in enumerate(content["official_index"].tolist())}
    indices, scores = content[names[0]], content[names[1]]
    if scores.shape != (len(indices), len(content["zc_names"])) or scores.dtype.kind != "f" or len(rows) != len(codes):
        raise ConfigurationError(f"{path}: {names[1]} must hold a number for each of {names[0]} and zc_names")
    if not set(indices.tolist()) <= rows.keys():
        raise ConfigurationError(f"{path}: {names[0]} has architectures that the table lacks")
    cells = tuple(tuple(codes[rows[index]].tolist()) for index in indices.tolist())
    return Published(cells, dict(zip(map(str, content["zc_names"].tolist()), scores.astype(np.float64).T, strict=True)))
