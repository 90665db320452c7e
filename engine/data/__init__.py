"""Data sets on disk -> uint8 tensors -> episodes by address -> augmented batches.

>>> from engine.data import load, sample_episodes
>>> data = load("digits")
>>> episodes = sample_episodes(data, "train", ways=5, shots=1, queries=1, tasks=3, seed=0)
>>> data.images[episodes.query_index].shape
torch.Size([3, 5, 1, 8, 8])

The names are loaded on first use, so that :mod:`engine.data.names` stays importable without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.data.augment import horizontal_flip, normalise, random_crop, support_transform
    from engine.data.episodes import Episodes, sample_episodes, sample_images
    from engine.data.image_set import ImageSet
    from engine.data.loading import load
    from engine.data.names import check_name
    from engine.data.patches import region_patches

_HOMES = {
    "Episodes": "episodes",
    "ImageSet": "image_set",
    "check_name": "names",
    "horizontal_flip": "augment",
    "load": "loading",
    "normalise": "augment",
    "random_crop": "augment",
    "region_patches": "patches",
    "sample_episodes": "episodes",
    "sample_images": "episodes",
    "support_transform": "augment",
}

__all__ = [
    "Episodes",
    "ImageSet",
    "check_name",
    "horizontal_flip",
    "load",
    "normalise",
    "random_crop",
    "region_patches",
    "sample_episodes",
    "sample_images",
    "support_transform",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
