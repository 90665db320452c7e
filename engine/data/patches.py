"""Tiny crops for counting linear regions (reference note section 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.data.episodes import sample_images
from engine.data.image_set import ImageSet, resize
from engine.errors import ConfigurationError
from engine.runs.streams import stream


def region_patches(
    data: ImageSet,
    split: str,
    count: int,
    *,
    patch: int = 3,
    source_size: int | None = None,
    seed: int,
    address: tuple[int | str, ...] = (),
) -> Tensor:
    """Return float32 (count, 1, patch, patch): a random crop of one random channel of ``count`` different images.

    The images are drawn by :func:`engine.data.sample_images` with the address ``("regions", *address)``, crops and
    channels from ``stream(seed, "patches", *address)``. Only the drawn images are scaled, to ``source_size`` (default:
    as they are; the published setting is 32), and each value is normalised with the statistics of its channel.
    """
    images = data.images[sample_images(data, split, count, seed=seed, address=("regions", *address))]
    if source_size is not None:
        images = resize(images, source_size)
    channels, height, width = images.shape[1:]
    if not 1 <= patch <= min(height, width):
        raise ConfigurationError(
            f"linear regions are counted on crops of {patch}x{patch} pixels, which images of {height}x{width} do not hold; "
            "give a larger size"
        )
    generator = stream(seed, "patches", *address)
    tops = torch.randint(height - patch + 1, (count,), generator=generator).to(images.device)
    lefts = torch.randint(width - patch + 1, (count,), generator=generator).to(images.device)
    channel = torch.randint(channels, (count,), generator=generator).to(images.device)
    offsets = torch.arange(patch, device=images.device)
    rows, columns = tops[:, None] + offsets, lefts[:, None] + offsets
    sample = torch.arange(count, device=images.device)
    picked = images[sample[:, None, None], channel[:, None, None], rows[:, :, None], columns[:, None, :]]
    mean, std = (torch.tensor(values, device=images.device)[channel].view(-1, 1, 1, 1) for values in (data.mean, data.std))
    return (picked[:, None].float() / 255 - mean) / std
