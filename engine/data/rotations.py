"""Classes turned by quarter turns as further classes (Santoro et al. 2016, the usual Omniglot protocol)."""

from __future__ import annotations

from dataclasses import replace

import torch

from engine.data.image_set import ImageSet
from engine.errors import ConfigurationError


def with_rotations(data: ImageSet, splits: tuple[str, ...]) -> ImageSet:
    """Return ``data`` with every class of ``splits`` added three times, turned counter-clockwise by 90, 180, 270 degrees.

    The new classes follow the old ones, one turn after the other, and are named ``<class>/rot090`` and so on. Needs
    square images and a set without sample splits. Memory: the new set, beside the old one.
    """
    if not splits:
        return data
    if data.sample_splits:
        raise ConfigurationError(f"{data.name} is split by sample, not by class; rotated classes are for few-shot sets")
    if data.images.shape[2] != data.images.shape[3]:
        raise ConfigurationError(f"{data.name}: only square images can be turned; give a size")
    chosen = [split for split in splits if data.class_splits.get(split)]
    turned = torch.tensor(sorted(k for split in chosen for k in data.classes(split)), device=data.labels.device)
    rows = torch.nonzero(torch.isin(data.labels, turned)).flatten()
    position = {int(k): place for place, k in enumerate(turned)}

    names, images, labels = list(data.class_names), [data.images], [data.labels]
    class_splits = {split: list(classes) for split, classes in data.class_splits.items()}
    for quarter in (1, 2, 3):
        first = len(names)
        names += [f"{data.class_names[k]}/rot{90 * quarter:03d}" for k in position]
        images.append(torch.rot90(data.images[rows], quarter, (2, 3)))
        labels.append(first + torch.searchsorted(turned, data.labels[rows]))
        for split in chosen:
            class_splits[split] += [first + position[k] for k in data.classes(split)]
    return replace(
        data,
        images=torch.cat(images),
        labels=torch.cat(labels),
        class_names=tuple(names),
        class_splits={split: tuple(classes) for split, classes in class_splits.items()},
    )
