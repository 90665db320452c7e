"""Images in one folder a class, and image folders with published lists. Names from files are looked up in directory
listings, never joined to paths, so no list can point outside its data set."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.data.building import Request, build_from_pictures
from engine.data.class_splits import Split, published_split, user_split
from engine.data.image_set import ImageSet
from engine.data.names import SPLITS
from engine.data.pictures import OTHER_SUFFIXES, SUFFIXES, Picture, file_picture
from engine.errors import ConfigurationError, MissingDataError

MAX_LIST_BYTES = 50_000_000
FOLDER_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}

Classes = Mapping[str, Sequence[Picture]]


def read(base: Path, request: Request) -> ImageSet | None:
    """A named set as ``<split>/<class>/*``, or as ``<class>/*`` below ``base``, ``images``, ``data`` or ``jpg``.

    The split of flat class folders is ``split.json`` if there is one, then lists ``splits/**/<split>.txt``, then the
    published one; a set without one (``cars``) needs one of the others. Classes of a published list that are not there
    are left out; of a user's list they are an error.
    """
    published = published_split(request.name)
    found = _split_folders(base)
    if _overlaps(request.name, found, published):
        return build_from_pictures(request, _listed(request, found), f"class folders {base}")
    own = _own_split(base)
    for folder in (base / "images", base / "data", base / "jpg", base):
        classes = {_key(request.name, path.name): path for path in subfolders(folder)}
        split = own or published
        if split and any(_key(request.name, name) in classes for names in split.values() for name in names):
            return build_from_pictures(request, _flat(request, classes, split, strict=own is not None), f"class folders {folder}")
    return None


def read_path(base: Path, request: Request) -> ImageSet:
    """``folder:PATH``: ``<split>/<class>/*``, or ``<class>/*`` with a ``split.json``, or ``<class>/*`` all in train."""
    if not base.is_dir():
        raise MissingDataError(
            f"data set {request.name} not found: {base.absolute()} is not a folder\n"
            "write folder:PATH with the folder that holds <split>/<class>/* or <class>/* (any --data-root is not used)"
        )
    found = _split_folders(base)
    if found:
        table = _listed(request, found)
    else:
        classes = {path.name: path for path in subfolders(base)}
        if not classes:
            raise ConfigurationError(f"{base}: no class folders; expected <split>/<class>/* or <class>/*")
        split = user_split(base / "split.json") if (base / "split.json").is_file() else {"train": tuple(classes)}
        table = _flat(request, classes, split, strict=True)
    return build_from_pictures(request, table, f"class folders {base}")


def csv_lists(base: Path, request: Request) -> ImageSet | None:
    """miniImageNet as ``images/*`` with ``train.csv``, ``val.csv`` and ``test.csv`` (columns filename, label)."""
    images = base / "images"
    lists = {split: base / f"{split}.csv" for split in request.splits if (base / f"{split}.csv").is_file()}
    if not images.is_dir() or not lists:
        return None
    files = {path.name: path for path in images.iterdir()}
    table: dict[str, dict[str, list[Picture]]] = {}
    for split, path in lists.items():
        table[split] = {}
        for name, label in csv_table(path, ("filename", "label")):
            if name not in files:
                raise ConfigurationError(f"{path}: image {name!r} is not in {images}; complete the folder or the list")
            table[split].setdefault(label, []).append(file_picture(files[name]))
    return build_from_pictures(request, table, f"images and csv lists {base}")


def aircraft_lists(base: Path, request: Request) -> ImageSet | None:
    """FGVC-Aircraft as published: ``images/*.jpg`` with ``images_variant_trainval.txt`` and ``images_variant_test.txt``.

    Both official parts together are regrouped by class; images are cut to the centre, not to the bounding boxes.
    """
    lists = [path for part in ("trainval", "test") if (path := base / f"images_variant_{part}.txt").is_file()]
    if not lists or not (base / "images").is_dir():
        return None
    files = {path.stem: path for path in (base / "images").iterdir()}
    variants: dict[str, list[Picture]] = {}
    for path in lists:
        for line in lines(path):
            image, _, variant = line.partition(" ")
            if image not in files:
                raise ConfigurationError(f"{path}: image {image!r} is not in {base / 'images'}; unpack the archive again")
            variants.setdefault(variant, []).append(file_picture(files[image]))
    published = published_split(request.name) or {}
    table = {split: {name: variants[name] for name in published[split] if name in variants} for split in request.splits}
    return build_from_pictures(request, table, f"images and variant lists {base}")


def subfolders(folder: Path) -> list[Path]:
    """Return the visible folders in ``folder``, sorted by name; none if it is not there."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__")) and path.is_dir())


def class_pictures(folder: Path) -> list[Picture]:
    """Return the images of a class folder, sorted by name; none at all is a :class:`ConfigurationError`."""
    visible = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    foreign = [path for path in visible if path.suffix.lower() in OTHER_SUFFIXES]
    if foreign:
        raise ConfigurationError(f"{foreign[0]}: {foreign[0].suffix} images are not read; convert them to .png or remove them")
    found = [path for path in visible if path.suffix.lower() in SUFFIXES]
    if not found:
        raise ConfigurationError(f"{folder}: no images ({' '.join(SUFFIXES)}) in this class folder; fill it or remove it")
    return [file_picture(path) for path in found]


def _split_folders(base: Path) -> dict[str, list[Path]]:
    """Return the class folders of ``<split>/<class>/*``; empty where no such folder holds class folders."""
    found = {split: [path for name in FOLDER_NAMES[split] for path in subfolders(base / name)] for split in SPLITS}
    return {split: classes for split, classes in found.items() if classes}


def _listed(request: Request, found: Mapping[str, list[Path]]) -> dict[str, Classes]:
    return {split: {path.name: class_pictures(path) for path in found.get(split, ())} for split in request.splits}


def _flat(request: Request, classes: Mapping[str, Path], split: Split, *, strict: bool) -> dict[str, Classes]:
    table: dict[str, Classes] = {}
    for key in (key for key in SPLITS if key in request.splits and key in split):
        missing = [name for name in split[key] if _key(request.name, name) not in classes]
        if missing and strict:
            raise ConfigurationError(f"{request.name}: class {missing[0]!r} of the split's {key!r} list has no folder")
        present = [name for name in split[key] if name not in missing]
        table[key] = {name: class_pictures(classes[_key(request.name, name)]) for name in present}
    return table


def _overlaps(name: str, found: Mapping[str, list[Path]], published: Split | None) -> bool:
    """Whether any class folder is a published class, so that another set's folders are not mistaken for this one."""
    known = {_key(name, c) for classes in (published or {}).values() for c in classes}
    return any(_key(name, path.name) in known for classes in found.values() for path in classes)


def _own_split(base: Path) -> Split | None:
    if (base / "split.json").is_file():
        return user_split(base / "split.json")
    for folder in (base / "splits" / "bertinetto", base / "splits"):
        lists = {split: folder / f"{split}.txt" for split in SPLITS}
        if all(path.is_file() for path in lists.values()):
            return {split: tuple(lines(path)) for split, path in lists.items()}
    return None


def _key(name: str, label: str) -> str:
    """Return what a class folder and a listed class are compared by: flowers by number, aircraft by letters and digits."""
    if name == "vgg-flower":
        number = re.match(r"\d+", label)
        return str(int(number.group())) if number else label
    return re.sub(r"[^A-Za-z0-9]+", "-", label) if name == "aircraft" else label


def csv_table(path: Path, columns: tuple[str, str]) -> list[tuple[str, str]]:
    """Return two columns of a csv file of at most 50 MB; one that lacks them is a :class:`ConfigurationError`."""
    try:
        return [(row[columns[0]], row[columns[1]]) for row in csv.DictReader(lines(path), strict=True)]
    except (KeyError, csv.Error) as error:
        raise ConfigurationError(f"{path}: expected a csv file with the columns {' and '.join(columns)}") from error


def lines(path: Path) -> list[str]:
    """Return the lines of a list of at most 50 MB, stripped, without empty ones."""
    if path.stat().st_size > MAX_LIST_BYTES:
        raise ConfigurationError(f"{path}: a list of {path.stat().st_size} bytes is above the limit of {MAX_LIST_BYTES}")
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text; get the list again") from error
