"""``digits``: the 8x8 handwritten digits that come with scikit-learn, so that a fresh install has real images."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from engine.data.building import Part, Request, build
from engine.data.episodes import permutation
from engine.data.image_set import ImageSet
from engine.data.names import SPLITS
from engine.errors import MissingDataError
from engine.runs.streams import stream

SPLIT_SIZES = {"train": 24, "val": 8, "test": 8}


def read(request: Request) -> ImageSet:
    """Return 1797 digits in four quarter turns as 40 classes ``<digit>/rot<degrees>``, 7188 images of 1x8x8.

    The (digit, turn) pairs are split at random, by the fixed address ``stream(0, "class-split", "digits")``, into 24
    train, 8 val and 8 test classes. Values 0 to 16 become 0 to 255. A toy: turned digits of one kind share their
    drawings across splits, and some look alike (0, 1 and 8 upside down; 6 and 9), so test accuracy here means little.
    """
    grey, digit = _table()
    names = [f"{number}/rot{90 * turn:03d}" for turn in range(4) for number in range(10)]
    images = np.concatenate([np.rot90(grey, turn, (1, 2)) for turn in range(4)])[:, None]
    labels = np.concatenate([digit + 10 * turn for turn in range(4)])
    order = permutation(len(names), stream(0, "class-split", "digits")).numpy()
    ends = np.cumsum([SPLIT_SIZES[split] for split in SPLITS])
    parts = []
    for split, members in zip(SPLITS, np.split(order, ends[:-1]), strict=True):
        if split in request.splits:
            mine = np.isin(labels, members)
            parts.append(Part(split, images[mine], labels[mine], names))
    return build(request, parts, "the digits embedded in scikit-learn")


def _table() -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 (1797, 8, 8) and digits (1797,) from scikit-learn's file; importing it would take a second."""
    spec = find_spec("sklearn")
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz" if spec and spec.origin else None
    if file is None or not file.is_file():
        raise MissingDataError(
            f"data set digits not found: scikit-learn's digits.csv.gz is not at {file or 'any place, it is not installed'}\n"
            "install scikit-learn, or name another set with --data and its folder with --data-root or ENGINE_DATA"
        )
    with gzip.open(file, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",")
    grey = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    return grey, table[:, -1].astype(np.int64)
