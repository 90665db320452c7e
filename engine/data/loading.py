"""``load``: find a data set, read the layout that is there, return it in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.data.building import Request
from engine.data.image_set import ImageSet
from engine.data.names import SETS, SPLITS, check_name
from engine.data.readers import arrays, cifar, class_folders, digits, few_shot_pickles, flowers, imagenet, omniglot
from engine.data.rotations import with_rotations
from engine.errors import ConfigurationError, MissingDataError

# Looks into one folder and returns the set, or None when the files of its layout are not there.
Reader = Callable[[Path, Request], ImageSet | None]

LAYOUTS: dict[str, tuple[Reader, ...]] = {
    "omniglot": (omniglot.official, omniglot.npz, omniglot.small),
    "cifar-fs": (cifar.few_shot_npz, class_folders.read, few_shot_pickles.read, cifar.regrouped),
    "cifar10": (cifar.official, cifar.subset_npz),
    "cifar100": (cifar.official,),
    "miniimagenet": (class_folders.read, class_folders.csv_lists, few_shot_pickles.read),
    "tieredimagenet": (class_folders.read, few_shot_pickles.read),
    "fc100": (class_folders.read, few_shot_pickles.read, cifar.regrouped),
    "cub": (class_folders.read,),
    "aircraft": (class_folders.aircraft_lists, class_folders.read),
    "vgg-flower": (flowers.read, class_folders.read),
    "cars": (class_folders.read,),
    "imagenet": (imagenet.read,),
}


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    size: int | None = None,
    *,
    splits: Sequence[str] = SPLITS,
    per_class: int | None = None,
    rotations: Sequence[str] | None = None,
) -> ImageSet:
    """Load a data set into memory on the CPU; nothing is ever downloaded.

    ``name`` is one of :data:`engine.data.names.SETS`, ``folder:PATH`` or ``npz:PATH``. ``root`` is the folder that holds
    the set's own folder (or files); without it ``ENGINE_DATA``, then ``./data``. ``size`` scales all images to
    ``size`` x ``size``. ``splits`` and ``per_class`` (the first images of each class and split) limit what is decoded.
    ``rotations`` names the splits whose classes are added again turned by 90, 180 and 270 degrees; by default
    Omniglot's training classes and no others (``digits`` is defined with its rotations).

    Raises :class:`MissingDataError` (what, where, how to get it) and :class:`ConfigurationError` (unusable files or
    arguments). Cost: the decoding; at most about twice the returned set in memory, or the largest file if that is more.
    """
    check_name(name)
    _check_arguments(name, size, splits, per_class, rotations)
    request = Request(name, size, tuple(s for s in SPLITS if s in splits), per_class)
    data = _read(request, root)
    turned = ("train",) if rotations is None and name == "omniglot" else tuple(rotations or ())
    return with_rotations(data, tuple(s for s in turned if s in request.splits))


def _check_arguments(
    name: str, size: int | None, splits: Sequence[str], per_class: int | None, rotations: Sequence[str] | None
) -> None:
    for option, values in (("splits", splits), ("rotations", rotations or ())):
        unknown = [value for value in values if value not in SPLITS]
        if isinstance(values, str) or unknown:
            raise ConfigurationError(f"{option} must be a sequence out of {', '.join(SPLITS)}, not {values!r}")
    if not splits:
        raise ConfigurationError(f"splits must name at least one of {', '.join(SPLITS)}")
    for option, number in (("size", size), ("per_class", per_class)):
        if number is not None and number < 1:
            raise ConfigurationError(f"{option} must be at least 1, not {number}")
    if rotations and name == "digits":
        raise ConfigurationError("digits already has its rotations as classes; leave rotations out")


def _read(request: Request, root: str | os.PathLike[str] | None) -> ImageSet:
    kind, _, path = request.name.partition(":")
    if kind == "digits":
        return digits.read(request)
    if kind == "folder":
        return class_folders.read_path(Path(path).expanduser(), request)
    if kind == "npz":
        return arrays.read_path(Path(path).expanduser(), request)

    home, source = data_root(root)
    info = SETS[request.name]
    places = [folder for folder in (*(home / name for name in info.folders), home) if folder.is_dir()]
    for folder in places:
        for read in LAYOUTS[request.name]:
            data = read(folder, request)
            if data is not None:
                return data
    raise MissingDataError(
        f"data set {request.name} not found: looked in {home.absolute()} ({source}) and its folders {', '.join(info.folders)}\n"
        f"name the folder that holds it with --data-root or ENGINE_DATA; to get it: {info.how_to_get}"
    )


def data_root(root: str | os.PathLike[str] | None) -> tuple[Path, str]:
    """Return the folder data sets are looked for in, and where its name came from."""
    if root is not None:
        return Path(root).expanduser(), "--data-root"
    if os.environ.get("ENGINE_DATA"):
        return Path(os.environ["ENGINE_DATA"]).expanduser(), "ENGINE_DATA"
    return Path("data"), "the default; neither --data-root nor ENGINE_DATA is set"
