"""Image files -> uint8 arrays, with Pillow."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from engine.errors import ConfigurationError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif")
OTHER_SUFFIXES = (".tif", ".tiff", ".jp2", ".heic", ".avif")  # leaving these out without a word would be a smaller data set
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "GIF")
GREY_MODES = ("1", "L", "LA")
MAX_PIXELS = 64_000_000


class Picture(NamedTuple):
    """An image that is opened when it is needed: its name for messages, and a function that returns a binary file."""

    name: str
    open: Callable[[], BinaryIO]


def file_picture(path: Path) -> Picture:
    """Return the picture of a file on disk."""
    # Without waiting: nobody may ever write to a pipe.
    return Picture(str(path), lambda: open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)))


def decode(
    pictures: Sequence[Picture],
    shape: tuple[int, int, int],
    resample: Image.Resampling = Image.Resampling.BILINEAR,
) -> np.ndarray:
    """Return uint8 (N, C, H, W) for ``shape`` = (C, H, W), C = 1 (grey) or 3 (RGB).

    An image of another size is cut to its largest centred area of the same aspect and scaled with ``resample``
    (Pillow's filters are antialiased). A file that is no 8-bit image of at most 64 million pixels is a
    :class:`ConfigurationError`. Cost: about 0.1 ms for a 32x32 PNG, several ms for an ImageNet JPEG.
    """
    out = np.empty((len(pictures), *shape), dtype=np.uint8)
    for row, picture in zip(out, pictures, strict=True):
        _decode_into(row, picture, resample)
    return out


def probe(pictures: Sequence[Picture]) -> tuple[int, set[tuple[int, int]]]:
    """Return the channels (1 when every image is grey, else 3) and the (height, width) that occur; reads headers only."""
    sizes, channels = set(), 1
    for picture in pictures:
        with _opened(picture) as image:
            sizes.add((image.height, image.width))
            channels = channels if image.mode in GREY_MODES else 3
    return channels, sizes


@contextmanager
def _opened(picture: Picture) -> Iterator[Image.Image]:
    try:
        with picture.open() as file, Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}x{image.height}"
                raise ConfigurationError(f"{picture.name}: {size} is above the limit of {MAX_PIXELS} pixels; scale it down")
            if image.mode[0] in "IF":
                raise ConfigurationError(f"{picture.name}: images of more than 8 bits are not supported; convert it to 8 bits")
            yield image
    except ConfigurationError:
        raise
    except Exception as error:
        # Pillow raises nearly anything on damaged files; all of it means the same to the user.
        raise ConfigurationError(
            f"{picture.name}: not a readable image ({type(error).__name__}); replace or remove it"
        ) from error


def _decode_into(row: np.ndarray, picture: Picture, resample: Image.Resampling) -> None:
    channels, height, width = row.shape
    mode = "L" if channels == 1 else "RGB"
    with _opened(picture) as image:
        # Large JPEGs are decoded at a fraction of their size, never below twice the target.
        image.draft(mode, (2 * width, 2 * height))
        converted = image.convert(mode)
    if converted.size != (width, height):
        scale = min(converted.width / width, converted.height / height)
        kept = round(width * scale), round(height * scale)
        left, top = (converted.width - kept[0]) // 2, (converted.height - kept[1]) // 2
        converted = converted.crop((left, top, left + kept[0], top + kept[1])).resize((width, height), resample)
    pixels = np.asarray(converted)
    row[:] = pixels if channels == 1 else pixels.transpose(2, 0, 1)
