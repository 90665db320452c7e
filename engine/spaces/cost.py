"""What a network costs: parameters and multiply-adds, counted on tensors without data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.errors import ConfigurationError
from engine.spaces.genotype import Genotype
from engine.spaces.network import build_network
from engine.spaces.space import Space


@dataclass(frozen=True)
class Cost:
    """Parameters of a network, and multiply-adds of its convolutions and matrix products in one forward pass.

    As usual in the field, norms, activations, pools, biases and sums are not counted as multiply-adds.
    """

    parameters: int
    macs: int

    @property
    def flops(self) -> int:
        """Floating-point operations: a multiply-add is two."""
        return 2 * self.macs


def count(
    genotype: Genotype,
    *,
    channels: int,
    cells: int,
    size: int,
    classes: int,
    channels_in: int = 3,
    norm: str = "batchnorm",
    tail: bool = False,
    space: Space | None = None,
) -> Cost:
    """Cost of a genotype's network for one square image of ``size`` pixels.

    The other arguments and the errors are those of :func:`~engine.spaces.network.build_network`. The genotype of all operations,
    ``space.genotype(space.alive())``, with ``norm="groupnorm16"`` and ``tail=True`` costs what the supernet does.
    Takes about a tenth of a second and no memory: the network is built and run on the meta device.
    """
    if size < 1:
        raise ConfigurationError(f"size must be at least 1 pixel, got {size}")
    with torch.device("meta"):
        network = build_network(
            genotype, channels=channels, classes=classes, cells=cells, channels_in=channels_in, norm=norm, tail=tail, space=space
        )
        image = torch.empty(1, channels_in, size, size)
    return count_module(network.eval(), image)


def count_module(model: nn.Module, *inputs: Any) -> Cost:
    """Cost of one forward pass of any module on these inputs, without gradients; the multiply-adds are those of the whole batch.

    Runs the model as it is, on its device; in train mode norms may update their running statistics.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)
