"""``imagenet``: class folders, with the sample split of PC-DARTS (Xu et al. 2020)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from engine.data.building import Request, build_from_pictures
from engine.data.episodes import permutation
from engine.data.image_set import ImageSet
from engine.data.pictures import Picture
from engine.data.readers.class_folders import class_pictures, subfolders
from engine.runs.streams import stream

TRAIN_SHARE, VAL_SHARE = 0.10, 0.025


def read(base: Path, request: Request) -> ImageSet | None:
    """``train/<class>/*`` and ``val/<class>/*``: per class 10 % of train as train, another 2.5 % as val; val as test.

    Which images is drawn a class from ``stream(0, "sample-split", "imagenet", class)``; only they are decoded.
    """
    classes = [folder for folder in subfolders(base / "train") if re.fullmatch(r"n\d{8}", folder.name)]
    if not classes:
        return None
    table: dict[str, dict[str, Sequence[Picture]]] = {"train": {}, "val": {}, "test": {}}
    if {"train", "val"} & set(request.splits):
        for folder in classes:
            table["train"][folder.name], table["val"][folder.name] = _shares(folder.name, class_pictures(folder))
    if "test" in request.splits:
        table["test"] = {folder.name: class_pictures(folder) for folder in subfolders(base / "val")}
    return build_from_pictures(request, table, f"class folders {base}")


def _shares(name: str, pictures: list[Picture]) -> tuple[list[Picture], list[Picture]]:
    first = max(1, round(TRAIN_SHARE * len(pictures)))
    second = first + max(1, round(VAL_SHARE * len(pictures)))
    order = permutation(len(pictures), stream(0, "sample-split", "imagenet", name)).tolist()
    return [pictures[k] for k in sorted(order[:first])], [pictures[k] for k in sorted(order[first:second])]
