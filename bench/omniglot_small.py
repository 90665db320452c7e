"""Write the few-shot split of the official small Omniglot archives as one npz file, for ``--data npz:FILE``.

``python -m bench.omniglot_small DATA_ROOT FILE.npz``: training classes are those of images_background_small1 (5 alphabets, 136
characters), test classes those of images_background_small2 without Greek and Latin, which are in both (3 alphabets, 106
characters); quarter turns are further classes in both (reference note meta-ticket, sections 9.18 and 10).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.cli import run_command
from engine.data import ImageSet, load
from engine.data.rotations import with_rotations
from engine.errors import ConfigurationError

TRAIN = ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")


def small_split(root: str) -> ImageSet:
    """The set with classes split by alphabet, turned ones included; ``root`` holds the folder ``omniglot``."""
    data = load("omniglot", root, rotations=())
    inside = [name.partition("/")[0] in TRAIN for name in data.class_names]
    splits = {
        "train": tuple(k for k, mine in enumerate(inside) if mine),
        "test": tuple(k for k, mine in enumerate(inside) if not mine),
    }
    return with_rotations(replace(data, class_splits=splits), ("train", "test"))


def main(argv: Sequence[str]) -> int:
    """Write the file."""
    if len(argv) != 2:
        raise ConfigurationError("usage: python -m bench.omniglot_small DATA_ROOT FILE.npz")
    data = small_split(argv[0])
    tests = set(data.classes("test"))
    np.savez_compressed(
        Path(argv[1]),
        images=data.images[:, 0].numpy(),
        labels=data.labels.numpy(),
        split=np.array(["test" if k in tests else "train" for k in range(len(data.class_names))]),
        class_names=np.array(data.class_names),
    )
    print(f"{len(data.classes('train'))} training and {len(tests)} test classes in {argv[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
