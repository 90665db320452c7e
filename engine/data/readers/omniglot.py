"""``omniglot``: official folders, official zips, and an npz of 28x28 drawings.

Every layout gives the same set: classes ``Alphabet/characterNN`` in the order of the Vinyals split, drawings in the
order of their file names, 1x28x28 with ink 255 on paper 0, scaled from 105x105 with Lanczos and then inverted.
Characters of the split that are not there are left out.
"""

from __future__ import annotations

import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from engine.data.archives import open_zip, read_npz, read_zip_member, zip_members
from engine.data.building import Part, Request, build
from engine.data.class_splits import published_split
from engine.data.image_set import ImageSet
from engine.data.pictures import Picture, decode, file_picture
from engine.errors import ConfigurationError

SIZE = 28
HALVES = ("images_background", "images_evaluation")
SMALL = ("images_background_small1", "images_background_small2")

Drawings = Mapping[str, Mapping[str, Picture]]  # class -> file name -> drawing


def official(base: Path, request: Request) -> ImageSet | None:
    """``images_background`` and, beside it, ``images_evaluation``: each as a folder, or as a zip that is not unpacked."""
    return _read(base, HALVES, request)


def small(base: Path, request: Request) -> ImageSet | None:
    """``images_background_small1`` and ``images_background_small2``, likewise; characters in both are taken once."""
    return _read(base, SMALL, request)


def _read(base: Path, names: Iterable[str], request: Request) -> ImageSet | None:
    drawings: dict[str, dict[str, Picture]] = defaultdict(dict)
    sources = []
    with ExitStack() as stack:
        for folder, path in ((base / name, base / f"{name}.zip") for name in names):
            if folder.is_dir():
                sources.append(f"folder {folder}")
                for file in folder.glob("*/*/*.png"):
                    drawings[f"{file.parent.parent.name}/{file.parent.name}"][file.name] = file_picture(file)
            elif path.is_file():
                sources.append(f"zip {path}")
                archive = stack.enter_context(open_zip(path))
                for info in zip_members(archive, ".png"):
                    *_, alphabet, character, name = ("", "", *info.filename.split("/"))
                    drawings[f"{alphabet}/{character}"][name] = Picture(f"{path}:{info.filename}", _opener(archive, info))
        return build(request, _parts(request, drawings), ", ".join(sources)) if sources else None


def _opener(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], BytesIO]:
    return lambda: read_zip_member(archive, info)


def _parts(request: Request, drawings: Drawings) -> Iterator[Part]:
    published = published_split("omniglot") or {}
    for split in request.splits:
        names = [name for name in published[split] if name in drawings]
        chosen = [[drawings[name][file] for file in sorted(drawings[name])[: request.per_class]] for name in names]
        pictures = [picture for drawn in chosen for picture in drawn]
        labels = np.repeat(np.arange(len(names)), [len(drawn) for drawn in chosen])
        yield Part(split, 255 - decode(pictures, (1, SIZE, SIZE), Image.Resampling.LANCZOS), labels, names)


def npz(base: Path, request: Request) -> ImageSet | None:
    """``omniglot28.npz``: ``images`` uint8 (M, 28, 28), ``char_index`` (M,), ``char_alphabet`` and ``char_name`` (K,),
    ``alphabet_names`` (A,)."""
    path = base / "omniglot28.npz"
    if not path.is_file():
        return None
    content = read_npz(path, ("images", "char_index", "char_alphabet", "char_name", "alphabet_names"))
    images, labels = content["images"], content["char_index"]
    if images.dtype != np.uint8 or images.shape[1:] != (SIZE, SIZE) or labels.shape != images.shape[:1]:
        raise ConfigurationError(f"{path}: images must be uint8 (M, 28, 28) and char_index (M,)")
    try:
        alphabets = content["alphabet_names"][content["char_alphabet"]]
        names = [f"{alphabet}/{character}" for alphabet, character in zip(alphabets, content["char_name"], strict=True)]
    except (IndexError, ValueError) as error:
        raise ConfigurationError(f"{path}: char_alphabet, char_name and alphabet_names do not fit together") from error
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise ConfigurationError(f"{path}: char_index must lie between 0 and {len(names) - 1}")
    index = {name: k for k, name in enumerate(names)}
    return build(request, _npz_parts(request, images[:, None], labels, index), f"npz {path}")


def _npz_parts(request: Request, images: np.ndarray, labels: np.ndarray, index: dict[str, int]) -> Iterator[Part]:
    published = published_split("omniglot") or {}
    for split in request.splits:
        names = [name for name in published[split] if name in index]
        position = np.full(len(index), -1)
        position[[index[name] for name in names]] = np.arange(len(names))
        mine = position[labels] >= 0
        yield Part(split, images[mine], position[labels[mine]], names)
