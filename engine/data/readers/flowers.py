"""``vgg-flower`` as published: all images in one folder, their classes in a MATLAB file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.data.building import Request, build_from_pictures
from engine.data.class_splits import published_split
from engine.data.image_set import ImageSet
from engine.data.matlab import read_mat
from engine.data.pictures import Picture, file_picture
from engine.errors import ConfigurationError


def read(base: Path, request: Request) -> ImageSet | None:
    """``jpg/image_NNNNN.jpg`` with ``imagelabels.mat``, whose k-th label (1 to 102) is that of image k, regrouped by class."""
    labels_file = base / "imagelabels.mat"
    files = {path.name: path for path in (base / "jpg").iterdir()} if (base / "jpg").is_dir() else {}
    if not labels_file.is_file() or "image_00001.jpg" not in files:
        return None
    labels = read_mat(labels_file, "labels")
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ConfigurationError(f"{labels_file}: labels must be one integer an image; get the official file")
    pictures: dict[str, list[Picture]] = {}
    for number, label in enumerate(labels.tolist(), start=1):
        name = f"image_{number:05d}.jpg"
        if name not in files:
            raise ConfigurationError(f"{labels_file}: image {name} is not in {base / 'jpg'}; unpack 102flowers.tgz again")
        pictures.setdefault(str(label), []).append(file_picture(files[name]))
    published = published_split(request.name) or {}
    table = {split: {name: pictures[name] for name in published.get(split, ()) if name in pictures} for split in request.splits}
    return build_from_pictures(request, table, f"images and labels {base}")
