"""``imagenet``: class folders, with the sample split of PC-DARTS (Xu et al. 2020)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from engine.data.building import Request, build_from_pictures
from engine.data.episodes import permutation
from engine.data.image_set import ImageSet
from engine.data.matlab import read_mat
from engine.data.pictures import SUFFIXES, Picture, file_picture
from engine.data.readers.class_folders import class_pictures, csv_table, lines, subfolders
from engine.errors import ConfigurationError
from engine.runs.streams import stream

TRAIN_SHARE, VAL_SHARE = 0.10, 0.025
DEVKIT = "ILSVRC2012_devkit_t12"


def read(base: Path, request: Request) -> ImageSet | None:
    """``train/<class>/*`` and ``val``: per class 10 % of train as train, another 2.5 % as val; val as test.

    ``val`` holds class folders, or all images, with Kaggle's ``LOC_val_solution.csv`` (in ``base``, in ``val`` or beside
    ``ILSVRC/``) or the development kit's ``ILSVRC2012_validation_ground_truth.txt`` and ``meta.mat`` (in ``base`` or in the
    kit's own folder there).

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
        table["test"] = {folder.name: class_pictures(folder) for folder in subfolders(base / "val")} or _flat_val(base)
    return build_from_pictures(request, table, f"class folders {base}")


def _flat_val(base: Path) -> dict[str, Sequence[Picture]]:
    """The images of a ``val`` without class folders, by class; none where there are no images."""
    files = {path.stem: path for path in (base / "val").glob("*") if path.suffix.lower() in SUFFIXES}
    if not files:
        return {}
    found: dict[str, list[Picture]] = {}
    for name, label in sorted(_truth(base, sorted(files))):
        if name not in files:
            raise ConfigurationError(f"{base / 'val'}: image {name} of the ground truth is not there; unpack the archive again")
        found.setdefault(label, []).append(file_picture(files[name]))
    return {label: found[label] for label in sorted(found)}


def _truth(base: Path, names: list[str]) -> list[tuple[str, str]]:
    """(image, class) of the official validation part, from the first file that knows."""
    for folder in (base, base / "val", *base.parents[2:3]):
        path = folder / "LOC_val_solution.csv"
        if path.is_file():
            rows = csv_table(path, ("ImageId", "PredictionString"))
            return [(image, boxes.partition(" ")[0]) for image, boxes in rows]
    for folder in (base, base / DEVKIT / "data"):
        path, meta = folder / "ILSVRC2012_validation_ground_truth.txt", folder / "meta.mat"
        if path.is_file() and meta.is_file():
            known = _synsets(meta)
            numbers = list(lines(path))
            if len(numbers) != len(names) or not set(numbers) <= known.keys():
                raise ConfigurationError(f"{path}: not one known class for each of the {len(names)} images of {base / 'val'}")
            return [(name, known[number]) for name, number in zip(names, numbers, strict=True)]
    raise ConfigurationError(
        f"{base / 'val'}: its images are not sorted into class folders; add LOC_val_solution.csv, or "
        "ILSVRC2012_validation_ground_truth.txt and meta.mat of the development kit"
    )


def _synsets(meta: Path) -> dict[str, str]:
    """The development kit's class numbers, as text, with their WordNet names."""
    table = read_mat(meta, "synsets")
    try:
        return {str(int(number)): str(name) for number, name in zip(table["ILSVRC2012_ID"], table["WNID"], strict=True)}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{meta}: synsets has no ILSVRC2012_ID and WNID; get the official file") from error


def _shares(name: str, pictures: list[Picture]) -> tuple[list[Picture], list[Picture]]:
    first = max(1, round(TRAIN_SHARE * len(pictures)))
    second = first + max(1, round(VAL_SHARE * len(pictures)))
    order = permutation(len(pictures), stream(0, "sample-split", "imagenet", name)).tolist()
    return [pictures[k] for k in sorted(order[:first])], [pictures[k] for k in sorted(order[first:second])]
