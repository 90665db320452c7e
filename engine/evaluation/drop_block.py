"""Dropout and DropBlock behind the blocks of a ResNet-12, as RFS trains its network (its released ``models/resnet.py``).

Behind the first two blocks single activations are dropped, behind the others squares of them (Ghiasi et al. 2018). All draws of a
step come from one addressed generator, so the network's own modules know nothing of it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.spaces.networks import ResNet12

SIDE = 5  # of a dropped square
RAMP = 40_000  # steps over which DropBlock's rate rises from zero
PLAIN = 2  # blocks behind which single activations are dropped


def drop_block_logits(network: ResNet12, images: Tensor, rate: float, step: int, generator: torch.Generator) -> Tensor:
    """(B, C, H, W) -> logits (B, classes) of a training pass in step ``step`` (from 0).

    ``rate`` 0.1 is published. Squares are as large as the map where that is smaller than :data:`SIDE`.
    """

    def between(block: int, x: Tensor) -> Tensor:
        if block <= PLAIN:
            kept = _uniform(x.shape, generator, x.device) >= rate
            return x * kept / (1 - rate)
        return drop_squares(x, rate * min(1.0, (step + 1) / RAMP), generator)

    return network.classifier(network.embed(images, between))


def drop_squares(x: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Drop squares of (B, C, H, W) so that about the share ``rate`` is zero, and scale the others by what is left of the batch.

    Seeds of squares are drawn for each channel where the square fits in, with the published probability
    rate / side^2 * H^2 / (H - side + 1)^2, which ignores overlaps. A batch of which nothing is left stays as it is.
    """
    height, width = x.shape[-2:]
    side = min(SIDE, height, width)
    probability = rate / side**2 * height * width / ((height - side + 1) * (width - side + 1))
    shape = (*x.shape[:2], height - side + 1, width - side + 1)
    seeds = (_uniform(torch.Size(shape), generator, x.device) < probability).to(x.dtype)
    kept = 1 - F.max_pool2d(F.pad(seeds, (side - 1,) * 4), side, stride=1)
    total = kept.sum()
    return torch.where(total > 0, x * kept * (kept.numel() / total.clamp(min=1)), x)


def _uniform(shape: torch.Size, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device).to(device)
