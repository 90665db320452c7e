"""Small data sets on disk, in the layouts that the readers know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.image_set import ImageSet
from engine.errors import ConfigurationError


@pytest.fixture(scope="session")
def problem() -> Callable[..., str]:
    """Call a function and return the text of its configuration error, or nothing."""

    def call(function: Callable[..., object], *arguments: object) -> str:
        try:
            function(*arguments)
        except ConfigurationError as error:
            return str(error)
        return ""

    return call


@pytest.fixture
def write_class() -> Callable[..., list[np.ndarray]]:
    """Write ``count`` random PNGs into a class folder and return them as (H, W, 3), or (H, W) in mode L."""

    def write(folder: Path, count: int = 3, size: int = 8, mode: str = "RGB", prefix: str = "") -> list[np.ndarray]:
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(sum(str(folder.name).encode()))
        shape = (size, size, 3) if mode == "RGB" else (size, size)
        pixels = [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]
        for k, image in enumerate(pixels):
            Image.fromarray(image).save(folder / f"{prefix}{k:04d}.png")
        return pixels

    return write


@pytest.fixture
def make_set() -> Callable[..., ImageSet]:
    """Make a few-shot set whose image number i is filled with i, of classes with the given counts."""

    def make(counts: list[int], splits: dict[str, tuple[int, ...]] | None = None, channels: int = 1, size: int = 4) -> ImageSet:
        labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        images = (torch.arange(len(labels)) % 256).to(torch.uint8)[:, None, None, None]
        return ImageSet(
            name="made",
            images=images.expand(-1, channels, size, size).contiguous(),
            labels=labels,
            class_names=tuple(f"c{k}" for k in range(len(counts))),
            class_splits=splits or {"train": tuple(range(len(counts)))},
            sample_splits={},
            mean=(0.5,) * channels,
            std=(0.25,) * channels,
        )

    return make
