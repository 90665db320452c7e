"""A smooth surrogate of the number of linear regions, so that it too has derivatives by operation weights.

TE-NAS counts the distinct activation patterns of n samples as sum_i 1/m_i, m_i the number of samples with sample i's pattern.
Here a bit is a sigmoid of the neuron's input, and a sample counts in another's m_i by exp(-d), d the squared distance of their
bits, which for hard bits is the number of neurons that differ. As sigmoid and exponential sharpen this becomes the count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from engine.scoring.regions import ACTIVATIONS

# A bit bends over this share of the root mean square of the activation's inputs.
WIDTH = 0.1
# What one differing neuron takes off the logarithm of likeness.
SHARPNESS = 1.0


def smooth_regions(forward: Callable[[Tensor], object], batches: Sequence[Tensor]) -> Tensor:
    """The surrogate, a differentiable float64 scalar between 1 and the number of samples, of all samples of all ``batches``.

    ``forward`` runs the network on one batch (n, ...). Activations are those that :func:`engine.linear_regions` knows; that an
    operation takes the neurons inside it along when it is removed is not seen by the derivative. Costs the forward passes and one
    product of (samples, neurons) with itself.
    """
    found = []
    for batch in batches:
        watch = _SoftPatterns(len(batch))
        with watch:
            forward(batch)
        found.append(torch.cat(watch.bits, 1))
    bits = torch.cat(found).double()
    products = bits @ bits.T
    squares = products.diagonal()
    distance = squares[:, None] + squares[None, :] - 2 * products
    return (1 / torch.exp(-SHARPNESS * distance).sum(1)).sum()


class _SoftPatterns(TorchFunctionMode):
    """Keeps the bits (samples, neurons) of every ReLU-like call, and the graph behind them."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.bits: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        activation = ACTIVATIONS.get(func)
        if activation is not None:
            x, knees, _, _ = activation(*args, **kwargs)
            rows = x.reshape(self.samples, -1)
            width = WIDTH * rows.detach().square().mean().sqrt().clamp(min=torch.finfo(rows.dtype).tiny)
            self.bits += [torch.sigmoid((rows - knee) / width) for knee in knees]
        return func(*args, **kwargs)
