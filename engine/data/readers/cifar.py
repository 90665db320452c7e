"""CIFAR-10 and CIFAR-100 as published (batches or tar.gz), the few-shot sets regrouped from CIFAR-100, and npz subsets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.data.archives import read_npz, read_tar
from engine.data.building import Part, Request, build
from engine.data.class_splits import published_split
from engine.data.episodes import permutation
from engine.data.image_set import ImageSet
from engine.data.safe_pickle import load_pickle, parse_pickle
from engine.errors import ConfigurationError
from engine.runs.streams import stream


class Layout(NamedTuple):
    """File and key names of the official python version."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: str
    names: str


CIFAR10 = Layout(
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    train=tuple(f"data_batch_{k}" for k in range(1, 6)),
    test=("test_batch",),
    meta="batches.meta",
    labels="labels",
    names="label_names",
)
CIFAR100 = Layout(
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    train=("train",),
    test=("test",),
    meta="meta",
    labels="fine_labels",
    names="fine_label_names",
)


def official(base: Path, request: Request) -> ImageSet | None:
    """The official batches, unpacked or as tar.gz, with the training part halved into train and val."""
    layout = CIFAR10 if request.name == "cifar10" else CIFAR100
    needed = (layout.train if {"train", "val"} & set(request.splits) else ()) + (layout.test if "test" in request.splits else ())
    found = _batches(base, layout, needed)
    if found is None:
        return None
    batches, origin = found
    names = _class_names(batches, layout, origin)
    parts = []
    if needed[: len(layout.train)] == layout.train:
        images, labels = _stack(batches, layout.train, layout, len(names), origin)
        parts += halves(request.name, images, labels, names)
    if "test" in request.splits:
        parts.append(Part("test", *_stack(batches, layout.test, layout, len(names), origin), names))
    return build(request, parts, origin)


def regrouped(base: Path, request: Request) -> ImageSet | None:
    """CIFAR-FS or FC100 made from the official CIFAR-100: train and test images together, regrouped by class."""
    found = _batches(base, CIFAR100, CIFAR100.train + CIFAR100.test)
    if found is None:
        return None
    batches, origin = found
    names = _class_names(batches, CIFAR100, origin)
    images, labels = _stack(batches, CIFAR100.train + CIFAR100.test, CIFAR100, len(names), origin)
    published = published_split(request.name) or {}
    parts = []
    for split in request.splits:
        position = np.array([published[split].index(name) if name in published[split] else -1 for name in names])
        mine = position[labels] >= 0
        parts.append(Part(split, images[mine], position[labels[mine]], published[split]))
    return build(request, parts, origin)


def subset_npz(base: Path, request: Request) -> ImageSet | None:
    """``cifar10_subset.npz``: ``train_images`` uint8 (M, 3, 32, 32), ``train_label``, the same for test, ``class_names``."""
    path = base / "cifar10_subset.npz"
    if not path.is_file():
        return None
    parts = []
    for part in ("train", "test"):
        if part in request.splits or (part == "train" and "val" in request.splits):
            content = read_npz(path, (f"{part}_images", f"{part}_label", "class_names"))
            names = content["class_names"].tolist()
            images, labels = _checked(content[f"{part}_images"], content[f"{part}_label"], len(names), str(path))
            parts += halves(request.name, images, labels, names) if part == "train" else [Part("test", images, labels, names)]
    return build(request, parts, f"npz {path}")


def few_shot_npz(base: Path, request: Request) -> ImageSet | None:
    """``cifar_fs_<split>*.npz`` (one or several a split): ``images`` uint8 (M, 3, 32, 32), ``label``, ``class_names``."""
    files = [(split, path) for split in request.splits for path in sorted(base.glob(f"cifar_fs_{split}*.npz"))]
    if not files:
        return None

    def parts() -> Iterator[Part]:
        for split, path in files:
            content = read_npz(path, ("images", "label", "class_names"))
            names = content["class_names"].tolist()
            yield Part(split, *_checked(content["images"], content["label"], len(names), str(path)), names)

    return build(request, parts(), f"npz {', '.join(str(path) for _, path in files)}")


def halves(name: str, images: np.ndarray, labels: np.ndarray, class_names: list[str]) -> list[Part]:
    """Split the training images at random into two halves, train and val, as differentiable search needs them.

    The halves are drawn from the fixed address ``stream(0, "sample-split", name)``: 25,000 and 25,000 for full CIFAR.
    """
    order = permutation(len(images), stream(0, "sample-split", name)).numpy()
    first, second = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    return [
        Part("train", images[first], labels[first], class_names),
        Part("val", images[second], labels[second], class_names),
    ]


def _batches(base: Path, layout: Layout, needed: tuple[str, ...]) -> tuple[dict[str, Any], str] | None:
    """Return the unpickled files and where they came from."""
    wanted = (layout.meta, *needed)
    for folder in (base / layout.folder, base):
        if (folder / layout.meta).is_file() and all((folder / name).is_file() for name in needed):
            return {name: load_pickle(folder / name) for name in wanted}, f"batches {folder}"
    archive = base / layout.archive
    if not archive.is_file():
        return None
    content = read_tar(archive, wanted)
    missing = [name for name in wanted if name not in content]
    if missing:
        raise ConfigurationError(f"{archive}: {', '.join(missing)} not in the archive; get it again")
    return {name: parse_pickle(content[name], f"{archive}:{name}") for name in wanted}, f"archive {archive}"


def _class_names(batches: dict[str, Any], layout: Layout, origin: str) -> list[str]:
    meta = batches[layout.meta]
    names = meta.get(layout.names) if isinstance(meta, dict) else None
    if not isinstance(names, list) or not names:
        raise ConfigurationError(f"{origin}: {layout.meta} has no {layout.names}; get the official python version")
    return [str(name) for name in names]


def _stack(
    batches: dict[str, Any], names: tuple[str, ...], layout: Layout, classes: int, origin: str
) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for name in names:
        batch = batches[name]
        data = batch.get("data") if isinstance(batch, dict) else None
        if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072:
            raise ConfigurationError(f"{origin}: {name} has no data (N, 3072); get the official python version")
        pair = _checked(data.reshape(-1, 3, 32, 32), np.asarray(batch.get(layout.labels)), classes, f"{origin}: {name}")
        images.append(pair[0])
        labels.append(pair[1])
    return np.concatenate(images), np.concatenate(labels)


def _checked(images: np.ndarray, labels: np.ndarray, classes: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, 32, 32):
        raise ConfigurationError(f"{name}: images must be uint8 (N, 3, 32, 32), not {images.dtype} {images.shape}")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ConfigurationError(f"{name}: labels must be {len(images)} integers")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ConfigurationError(f"{name}: labels must lie between 0 and {classes - 1}, the number of class names less one")
    return images, labels.astype(np.int64)
