"""Augmentation of whole batches on the device.

Every function is pure: the same batch and a generator in the same state give the same result. Random numbers are drawn
on the generator's device (addressed streams live on the CPU, see :mod:`engine.runs.streams`) and moved to the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from engine.errors import ConfigurationError


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (x - mean) / std per channel as float32; uint8 input (N, C, H, W) is divided by 255 first."""
    scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    shape = (1, -1, 1, 1)
    return (scaled - scaled.new_tensor(mean).view(shape)) / scaled.new_tensor(std).view(shape)


def random_crop(images: Tensor, generator: torch.Generator, *, padding: int = 4, size: int | None = None) -> Tensor:
    """Pad images (N, C, H, W) with zeros and cut one ``size`` x ``size`` window of each (default: the original H x W)."""
    if padding < 0:
        raise ConfigurationError(f"padding must not be negative, but is {padding}")
    count, _, height, width = images.shape
    crop_height, crop_width = (height, width) if size is None else (size, size)
    spare_height, spare_width = height + 2 * padding - crop_height, width + 2 * padding - crop_width
    if min(crop_height, crop_width) < 1 or min(spare_height, spare_width) < 0:
        raise ConfigurationError(f"a {crop_height}x{crop_width} crop does not fit {height}x{width} images padded by {padding}")
    tops = torch.randint(spare_height + 1, (count,), generator=generator, device=generator.device).to(images.device)
    lefts = torch.randint(spare_width + 1, (count,), generator=generator, device=generator.device).to(images.device)
    rows = tops[:, None] + torch.arange(crop_height, device=images.device)
    columns = lefts[:, None] + torch.arange(crop_width, device=images.device)
    sample = torch.arange(count, device=images.device)
    # Advanced indices around a slice put their axes first: (N, h, w, C).
    windows = pad(images, (padding,) * 4)[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return windows.permute(0, 3, 1, 2).contiguous()


def horizontal_flip(images: Tensor, generator: torch.Generator, *, probability: float = 0.5) -> Tensor:
    """Mirror each image (N, C, H, W) left to right with the given probability."""
    draws = torch.rand(len(images), generator=generator, device=generator.device)
    flipped = (draws < probability).to(images.device)[:, None, None, None]
    return torch.where(flipped, images.flip(-1), images)


def support_transform(images: Tensor, generator: torch.Generator, *, padding: int = 4) -> Tensor:
    """TE-NAS's transform of support images: flip, then pad and crop at the same size (reference note section 3).

    The padding is zero in raw pixels, so apply it before :func:`normalise`.
    """
    return random_crop(horizontal_flip(images, generator), generator, padding=padding)
