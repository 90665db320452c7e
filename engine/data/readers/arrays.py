"""``npz:PATH``: a user's own arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.data.archives import read_npz
from engine.data.building import Part, Request, build
from engine.data.image_set import ImageSet
from engine.data.names import SPLITS
from engine.errors import ConfigurationError, MissingDataError


def read_path(path: Path, request: Request) -> ImageSet:
    """Return the set of an npz file.

    ``images`` uint8 (N, H, W) or (N, H, W, C) with C = 1 to 4; ``labels`` (N,) any integers, K different ones.
    Optional, one entry a class in the order of the sorted labels: ``split`` (K,) of ``train``, ``val`` or ``test``
    (default: all train), and ``class_names`` (K,) (default: the labels as text).
    """
    if not path.is_file():
        raise MissingDataError(
            f"data set {request.name} not found: {path.absolute()} is not a file\n"
            "write npz:PATH with a file of images and labels (any --data-root is not used)"
        )
    content = read_npz(path, ("images", "labels"), ("split", "class_names"))
    images, labels = content["images"], content["labels"]
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or not 1 <= images.shape[3] <= 4 or 0 in images.shape:
        raise ConfigurationError(
            f"{path}: images must be uint8 (N, H, W) or (N, H, W, C) with C of 1 to 4, not {content['images'].dtype} "
            f"{content['images'].shape}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ConfigurationError(f"{path}: labels must be {len(images)} integers, not {labels.dtype} {labels.shape}")
    values, inverse = np.unique(labels, return_inverse=True)
    names = _texts(content, "class_names", len(values), path) or [str(value) for value in values]
    splits = _texts(content, "split", len(values), path) or ["train"] * len(values)
    unknown = sorted(set(splits).difference(SPLITS))
    if unknown or len(set(names)) < len(names):
        what = f"split names {unknown[0]!r}, not train, val or test" if unknown else "class_names repeats a name"
        raise ConfigurationError(f"{path}: {what}")
    channels_first = images.transpose(0, 3, 1, 2)
    parts = []
    for split in request.splits:
        mine = np.isin(inverse, [k for k, name in enumerate(splits) if name == split])
        if mine.any():
            parts.append(Part(split, channels_first[mine], inverse[mine], names))
    return build(request, parts, f"npz {path}")


def _texts(content: dict[str, np.ndarray], key: str, count: int, path: Path) -> list[str]:
    if key not in content:
        return []
    array = content[key]
    if array.dtype.kind != "U" or array.shape != (count,):
        raise ConfigurationError(f"{path}: {key} must be {count} texts, one a class, not {array.dtype} {array.shape}")
    return array.tolist()
