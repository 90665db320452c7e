"""The pickles that miniImageNet, tieredImageNet, CIFAR-FS and FC100 are passed around in, one file (or two) a split.

- ``{"image_data": (M, H, W, 3), "class_dict": {class: [rows]}}`` (``mini-imagenet-cache-train.pkl``)
- ``{"data" or "images": (M, H, W, 3), "labels": [...]}``, with ``catname2label`` or not (``CIFAR_FS_train.pickle``)
- images in ``train_images_png.pkl`` (a list of encoded PNGs) or ``train_images.npz`` (``images``), labels beside them in
  ``train_labels.pkl`` (``labels``, or ``label_specific`` with ``label_specific_str``)
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.archives import read_npz
from engine.data.building import Part, Request, build, first_of_each
from engine.data.image_set import CHUNK, ImageSet
from engine.data.names import SETS
from engine.data.pictures import Picture, decode
from engine.data.safe_pickle import load_pickle
from engine.errors import ConfigurationError

# {phase} is the name that the RFS and MetaOptNet files give to a split.
WHOLE = {
    "miniimagenet": ("mini-imagenet-cache-{split}.pkl", "miniImageNet_category_split_{phase}.pickle"),
    "tieredimagenet": (),
    "cifar-fs": ("CIFAR_FS_{split}.pickle",),
    "fc100": ("FC100_{split}.pickle",),
}
IMAGES = ("{split}_images_png.pkl", "{split}_images.npz")
LABELS = "{split}_labels.pkl"
PHASES = {"train": "train_phase_train", "val": "val", "test": "test"}


def read(base: Path, request: Request) -> ImageSet | None:
    """Return the set from the pickles in ``base``, the first known file name of each split."""
    files = {split: found for split in request.splits if (found := _files(base, request.name, split))}
    if not files:
        return None
    origin = f"pickles {', '.join(str(paths[0]) for paths in files.values())}"
    return build(request, (part for split, paths in files.items() for part in _parts(request, split, paths)), origin)


def _files(base: Path, name: str, split: str) -> tuple[Path, ...]:
    """Return (file with everything,), (images, labels) or ()."""
    for pattern in WHOLE[name]:
        path = base / pattern.format(split=split, phase=PHASES[split])
        if path.is_file():
            return (path,)
    labels = base / LABELS.format(split=split)
    for pattern in IMAGES if name == "tieredimagenet" else ():
        path = base / pattern.format(split=split)
        if path.is_file() and labels.is_file():
            return path, labels
    return ()


def _parts(request: Request, split: str, paths: tuple[Path, ...]) -> Iterator[Part]:
    path = paths[0]
    content = load_pickle(path) if path.suffix != ".npz" else read_npz(path, ("images",))
    described = load_pickle(paths[1]) if len(paths) == 2 else content
    if isinstance(content, dict) and "class_dict" in content:
        images, labels, names = _by_class_dict(content, path)
    else:
        images = content if isinstance(content, list) else _get(content, ("data", "images"), path)
        labels, names = _by_labels(described, split, paths[-1])
    if len(images) != len(labels):
        raise ConfigurationError(f"{path}: {len(images)} images but {len(labels)} labels; the files do not belong together")
    if isinstance(images, list):
        yield from _encoded(request, split, images, labels, names, path)
        return
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ConfigurationError(f"{path}: images must be uint8 (M, H, W, 3)")
    yield Part(split, images.transpose(0, 3, 1, 2), labels, names)


def _by_class_dict(content: dict[str, Any], path: Path) -> tuple[Any, np.ndarray, list[str]]:
    images, rows = _get(content, ("image_data",), path), content["class_dict"]
    labels = np.full(len(images), -1, dtype=np.int64)
    try:
        for k, name in enumerate(rows):
            labels[np.asarray(rows[name], dtype=np.int64)] = k
    except (IndexError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{path}: class_dict must map each class to rows of image_data") from error
    if (labels < 0).any():
        raise ConfigurationError(f"{path}: class_dict leaves {int((labels < 0).sum())} of {len(images)} images without a class")
    return images, labels, [str(name) for name in rows]


def _by_labels(content: Any, split: str, path: Path) -> tuple[np.ndarray, list[str]]:
    found = _get(content, ("labels", "label_specific"), path)
    try:
        raw = np.asarray(found, dtype=np.int64)
        values, labels = np.unique(raw.reshape(-1), return_inverse=True)
        known = {int(label): str(name) for name, label in content.get("catname2label", {}).items()}
        known |= {label: str(name) for label, name in enumerate(content.get("label_specific_str", ()))}
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{path}: labels must be integers, class names a mapping or a list") from error
    return labels, [known.get(int(value), f"{split}-{value}") for value in values]


def _get(content: Any, keys: tuple[str, ...], path: Path) -> Any:
    for key in keys:
        if isinstance(content, dict) and key in content:
            return content[key]
    found = ", ".join(map(str, list(content)[:8])) if isinstance(content, dict) else type(content).__name__
    raise ConfigurationError(f"{path}: the pickle has no {' or '.join(keys)}; it holds {found}")


def _encoded(request: Request, split: str, images: list[Any], labels: np.ndarray, names: list[str], path: Path) -> Iterator[Part]:
    """Decode PNGs a chunk at a time, only as many of each class as are asked for."""
    size = request.size or SETS[request.name].size or 0
    kept = first_of_each(labels, request.per_class, {})
    for start in range(0, len(kept), CHUNK):
        rows = kept[start : start + CHUNK]
        yield Part(split, decode([_png(images[row], f"{path}[{row}]") for row in rows], (3, size, size)), labels[rows], names)


def _png(content: Any, name: str) -> Picture:
    """Return the picture of encoded bytes, which the files hold as uint8 arrays or as bytes."""
    return Picture(name, lambda: io.BytesIO(content.tobytes() if isinstance(content, np.ndarray) else bytes(content)))
