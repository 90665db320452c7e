"""Images that are set aside to tune hyper-parameters on, before anything else is done with a set (paper 004, section M.6)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from engine.data.episodes import permutation
from engine.data.image_set import ImageSet
from engine.errors import ConfigurationError
from engine.runs.streams import stream


def set_aside(data: ImageSet, count: int) -> tuple[ImageSet, Tensor]:
    """The set without ``count`` images of each of its splits ``train`` and ``val``, and the indices of these images.

    They are drawn from an address that holds no seed, so every search and every training sets the same ones aside. A set that is
    not split by image, or whose splits are not larger, is a :class:`ConfigurationError`.
    """
    if not count:
        return data, torch.empty(0, dtype=torch.int64)
    splits = {name: data.sample_splits[name] for name in ("train", "val") if name in data.sample_splits}
    if len(splits) < 2:
        raise ConfigurationError(f"--reserve: {data.name} does not come with training images in two halves, as CIFAR does")
    kept, taken = {}, []
    for name, members in splits.items():
        if count >= len(members):
            raise ConfigurationError(f"--reserve: {count} of the {len(members)} images of {name} leave none; take fewer")
        order = permutation(len(members), stream(0, "set-aside", data.name, name))
        kept[name] = members[order[count:].sort().values]
        taken.append(members[order[:count].sort().values])
    return replace(data, sample_splits={**data.sample_splits, **kept}), torch.cat(taken)
