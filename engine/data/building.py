"""From what a reader finds to an :class:`ImageSet`: selection, scaling, class numbering, splits, statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from engine.data.image_set import CHUNK, ImageSet, channel_statistics, resize
from engine.data.names import SETS, SPLITS
from engine.data.pictures import Picture, decode, probe
from engine.errors import ConfigurationError

MAX_SET_BYTES = 16 * 2**30

Table = Mapping[str, Mapping[str, Sequence[Picture]]]  # split -> class -> pictures


@dataclass(frozen=True)
class Request:
    """What :func:`engine.data.load` was asked for; readers leave out what is not in it before they decode it."""

    name: str
    size: int | None
    splits: tuple[str, ...]
    per_class: int | None


class Part(NamedTuple):
    """Images of one split: uint8 (N, C, H, W), and for each the index of its class in ``class_names``."""

    split: str
    images: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]


def build_from_pictures(request: Request, table: Table, origin: str) -> ImageSet:
    """Decode the pictures that are asked for and build the set.

    Named sets are decoded at their usual size, RGB; a set without one (``folder:``) needs ``size`` or images of one
    size. Memory: the decoded set at most twice; above 16 GiB it is a :class:`ConfigurationError` that names the remedy.
    """
    chosen = [
        (split, name, picture)
        for split in request.splits
        for name, pictures in table.get(split, {}).items()
        for picture in pictures[: request.per_class]
    ]
    shape = _decoded_shape(request, [picture for _, _, picture in chosen])
    _check_memory(request, len(chosen), shape)

    def parts() -> Iterator[Part]:
        for split in request.splits:
            mine = [(name, picture) for s, name, picture in chosen if s == split]
            names = list(dict.fromkeys(name for name, _ in mine))
            index = {name: k for k, name in enumerate(names)}
            for start in range(0, len(mine), CHUNK):
                chunk = mine[start : start + CHUNK]
                labels = np.array([index[name] for name, _ in chunk])
                yield Part(split, decode([picture for _, picture in chunk], shape), labels, names)

    return build(request, parts(), origin)


def _decoded_shape(request: Request, pictures: list[Picture]) -> tuple[int, int, int]:
    known = SETS.get(request.name)
    if known is not None:
        size = request.size or known.size or 0
        return 3, size, size
    channels, sizes = probe(pictures)
    if request.size is not None:
        return channels, request.size, request.size
    if len(sizes) > 1:
        (a, b), (c, d) = sorted(sizes)[:2]
        raise ConfigurationError(
            f"{request.name}: the images differ in size ({a}x{b}, {c}x{d}, ...); give a size to scale them to"
        )
    return channels, *next(iter(sizes), (1, 1))


def _check_memory(request: Request, count: int, shape: Sequence[int]) -> None:
    size = count * int(np.prod(shape))
    if size > MAX_SET_BYTES:
        raise ConfigurationError(
            f"{request.name}: {count} images of {'x'.join(map(str, shape))} need {size / 2**30:.1f} GiB, above the limit of "
            f"{MAX_SET_BYTES >> 30} GiB; give a smaller size or a limit per class"
        )


def build(request: Request, parts: Iterable[Part], origin: str) -> ImageSet:
    """Build the set from arrays, which are consumed one part at a time.

    Classes are numbered in the order of their first appearance and images are grouped by class. A class that appears in
    more than one split makes a sample split of the whole set. ``request.per_class`` keeps the first images of each class
    and split. Memory: the largest part, the set, and the set once more where its images have to be grouped.
    """
    ids: dict[str, int] = {}
    used: dict[str, dict[int, int]] = {}
    images, labels, splits = [], [], []
    for part in parts:
        found, inverse = np.unique(part.labels, return_inverse=True)
        numbers = np.array([ids.setdefault(str(part.class_names[k]), len(ids)) for k in found], dtype=np.int64)[inverse]
        keep = first_of_each(numbers, request.per_class, used.setdefault(part.split, {}))
        images.append(_converted(request, part.images, keep))
        labels.append(torch.from_numpy(numbers[keep]))
        splits.append(torch.full((len(keep),), SPLITS.index(part.split)))
    if not any(map(len, images)):
        raise ConfigurationError(f"{request.name}: {origin} holds no images in split {', '.join(request.splits)}")
    if len({tuple(i.shape[1:]) for i in images}) > 1:
        raise ConfigurationError(f"{request.name}: {origin} mixes image shapes; give a size, and one number of channels")
    label, split = torch.cat(labels), torch.cat(splits)
    order = torch.argsort(label, stable=True)
    image = torch.cat(images) if len(images) > 1 else images[0]
    images.clear()
    if not torch.equal(order, torch.arange(len(order))):
        image, label, split = image[order], label[order], split[order]
    return _with_splits(request, image, label, split, tuple(ids), origin)


def first_of_each(labels: np.ndarray, limit: int | None, used: dict[int, int]) -> np.ndarray:
    """Return the positions of the first ``limit`` images of each label; ``used`` counts those of earlier parts."""
    if limit is None:
        return np.arange(len(labels))
    keep = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels).tolist():
        mine = np.flatnonzero(labels == label)[: limit - used.get(label, 0)]
        used[label] = used.get(label, 0) + len(mine)
        keep[mine] = True
    return np.flatnonzero(keep)


def _converted(request: Request, images: np.ndarray, keep: np.ndarray) -> torch.Tensor:
    """Copy the kept images into a tensor at the requested size, a chunk at a time."""
    shape = images.shape[1:] if request.size is None else (images.shape[1], request.size, request.size)
    _check_memory(request, len(keep), shape)
    out = torch.empty(len(keep), *shape, dtype=torch.uint8)
    for start in range(0, len(keep), CHUNK):
        chunk = torch.from_numpy(images[keep[start : start + CHUNK]])
        out[start : start + CHUNK] = chunk if request.size is None else resize(chunk, request.size)
    return out


def _with_splits(
    request: Request, images: torch.Tensor, labels: torch.Tensor, split: torch.Tensor, names: tuple[str, ...], origin: str
) -> ImageSet:
    indices = {name: torch.nonzero(split == k).flatten() for k, name in enumerate(SPLITS)}
    classes = {name: tuple(labels[index].unique().tolist()) for name, index in indices.items() if len(index)}
    shared = sum(map(len, classes.values())) > len(names)
    known = SETS.get(request.name)
    statistics = known.statistics if known is not None else None
    if statistics is None:
        train = indices["train"]
        statistics = channel_statistics(images[train] if 0 < len(train) < len(images) else images)
    return ImageSet(
        name=request.name,
        images=images,
        labels=labels,
        class_names=names,
        class_splits=classes,
        sample_splits={name: indices[name] for name in classes} if shared else {},
        mean=statistics[0],
        std=statistics[1],
        origin=origin,
    )
