"""A data set in memory: uint8 images, labels, and both kinds of split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from engine.data.names import SPLITS
from engine.errors import ConfigurationError

CHUNK = 4096
HOW_TO_SPLIT = {
    "npz": " (an array 'split' gives each class train, val or test)",
    "folder": " (folders train/, val/ and test/ or a split.json name the classes of each)",
}


class Members(NamedTuple):
    """The images of one split, grouped by class: class ``classes[k]`` owns ``order[starts[k] : starts[k] + counts[k]]``.

    All are int64 on the CPU: ``classes``, ``starts`` and ``counts`` (K,), ``order`` (M,).
    """

    classes: Tensor
    starts: Tensor
    counts: Tensor
    order: Tensor


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images on a device with their class split and, for single-task sets, their sample split.

    ``images`` uint8 (M, C, H, W); ``labels`` int64 (M,) into ``class_names``. ``class_splits`` maps ``train``, ``val``
    and ``test`` to class ids. ``sample_splits`` is empty for few-shot sets; where it is not, it maps a split to the
    int64 indices (CPU) of its images, and the classes may be the same in every split. ``mean`` and ``std`` are per
    channel, in units of the full range (0 to 1). ``origin`` says where the images came from.
    """

    name: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    class_splits: Mapping[str, tuple[int, ...]]
    sample_splits: Mapping[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str = ""
    _members: dict[str, Members] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or not len(self.images):
            raise ConfigurationError(f"{self.name}: images must be a uint8 (M, C, H, W) tensor with at least one image")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ConfigurationError(f"{self.name}: labels must be an int64 ({len(self.images)},) tensor")
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= len(self.class_names):
            raise ConfigurationError(f"{self.name}: labels must lie between 0 and {len(self.class_names) - 1}")
        if len(self.mean) != self.images.shape[1] or len(self.std) != self.images.shape[1] or min(self.std) <= 0:
            raise ConfigurationError(f"{self.name}: mean and std need one number a channel, std above zero")

    def classes(self, split: str) -> tuple[int, ...]:
        """Return the class ids of a split; an unknown or absent split is a :class:`ConfigurationError`."""
        if split not in SPLITS:
            raise ConfigurationError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
        if not self.class_splits.get(split):
            present = ", ".join(s for s in SPLITS if self.class_splits.get(s))
            message = f"data set {self.name} holds no classes in split {split!r}; it has {present or 'no split'}"
            raise ConfigurationError(f"{message}{HOW_TO_SPLIT.get(self.name.partition(':')[0], '')}")
        return self.class_splits[split]

    def members(self, split: str) -> Members:
        """Return the images of a split grouped by class (computed once a split: one sort of M labels)."""
        if split not in self._members:
            classes = torch.tensor(sorted(self.classes(split)))
            labels = self.labels.cpu()
            order = self.sample_splits[split] if self.sample_splits else torch.arange(len(labels))
            order = order[torch.isin(labels[order], classes)]
            order = order[torch.argsort(labels[order], stable=True)]
            counts = torch.bincount(labels[order], minlength=len(self.class_names))[classes]
            self._members[split] = Members(classes, counts.cumsum(0) - counts, counts, order)
        return self._members[split]

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the set with images and labels on ``device``; split indices stay on the CPU."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def resized(self, size: int) -> ImageSet:
        """Return the set at ``size`` x ``size`` (see :func:`resize`); the set itself where it already is."""
        return self if self.images.shape[2:] == (size, size) else replace(self, images=resize(self.images, size))

    def content_hash(self) -> str:
        """Return the SHA-256 of images, labels, class names and splits. Cost: one pass over the images (about 1 GB/s)."""
        header = {
            "shape": list(self.images.shape),
            "class_names": self.class_names,
            "class_splits": {s: self.class_splits[s] for s in sorted(self.class_splits)},
            "sample_splits": {s: self.sample_splits[s].tolist() for s in sorted(self.sample_splits)},
        }
        digest = hashlib.sha256(json.dumps(header).encode())
        for tensor in (self.labels, self.images):
            for chunk in tensor.split(CHUNK):
                digest.update(chunk.contiguous().cpu().numpy())
        return digest.hexdigest()


def resize(images: Tensor, size: int) -> Tensor:
    """Scale uint8 images (M, C, H, W) to ``size`` x ``size``: centre square, then bilinear with antialiasing, in uint8.

    Works in float32 on chunks of 4096 images, so the extra memory is that of one chunk.
    """
    if size < 1:
        raise ConfigurationError(f"size must be at least 1, not {size}")
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[:, :, top : top + side, left : left + side]
    if side == size:
        return square.contiguous()
    out = torch.empty(*images.shape[:2], size, size, dtype=torch.uint8, device=images.device)
    for start in range(0, len(images), CHUNK):
        chunk = square[start : start + CHUNK].float()
        scaled = interpolate(chunk, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        out[start : start + CHUNK] = scaled.round_().clamp_(0, 255).to(torch.uint8)
    return out


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of uint8 images, in units of the full range, from exact counts.

    A channel that never changes gets the standard deviation 1/255, so that dividing by it stays defined.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.unbind(1):
        counts = torch.bincount(channel.reshape(-1), minlength=256).cpu().double()
        weights = counts / counts.sum()
        mean = (weights * levels).sum()
        means.append(mean.item())
        deviations.append(max((weights * (levels - mean) ** 2).sum().sqrt().item(), 1 / 255))
    return tuple(means), tuple(deviations)
