"""ResNets (He et al. 2016) whose norms take the statistics of the batch, to learn beside a searched network.

They have no buffers, so they are pure functions of weights and images, and their convolutions and norms are differentiable again
at the price of a few passes (:mod:`engine.spaces.differentiable`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from engine.errors import ConfigurationError
from engine.spaces.differentiable import differentiable
from engine.spaces.networks import Conv4
from engine.spaces.norms import norm_factory
from engine.spaces.supernet import initialise


class Depth(NamedTuple):
    """Blocks of the four stages, and whether these are bottlenecks, which widen by four."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool


DEPTHS = {
    "resnet18": Depth((2, 2, 2, 2), False),
    "resnet50": Depth((3, 4, 6, 3), True),
    "resnet101": Depth((3, 4, 23, 3), True),
}
_norm = norm_factory("batchstat-trained-affine")


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and a widening 1x1, beside a shortcut; the 3x3 that comes first has the stride."""

    def __init__(self, source: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        target = 4 * width if bottleneck else width
        # (inputs, outputs, kernel, stride) of each convolution.
        plain = [(source, width, 3, stride), (width, width, 3, 1)]
        plan = [(source, width, 1, 1), (width, width, 3, stride), (width, target, 1, 1)] if bottleneck else plain
        layers: list[nn.Module] = []
        for number, (inputs, outputs, kernel, by) in enumerate(plan):
            layers += [nn.ReLU()] if number else []
            layers += [nn.Conv2d(inputs, outputs, kernel, by, kernel // 2, bias=False), _norm(outputs)]
        self.residual = nn.Sequential(*layers)
        self.shortcut = nn.Sequential()
        if stride > 1 or source != target:
            self.shortcut.extend([nn.Conv2d(source, target, 1, stride, bias=False), _norm(target)])

    def forward(self, x: Tensor) -> Tensor:
        return (self.residual(x) + self.shortcut(x)).relu()


class ResNet(nn.Module):
    """ResNet-18, -50 or -101: a stem, four stages of :class:`Block` (strides 1, 2, 2, 2), global average pooling, a classifier.

    ``width`` is that of the first stage, 64 as published. The stem is CIFAR's 3x3 convolution, or with ``strided`` the published
    7x7 of stride 2 and a max pooling. Parameters with 10 outputs and CIFAR's stem: 11 173 962, 23 520 842 and 42 512 970.
    """

    def __init__(self, depth: Depth, outputs: int, *, channels_in: int = 3, width: int = 64, strided: bool = False) -> None:
        super().__init__()
        kernel, stride = (7, 2) if strided else (3, 1)
        layers = [nn.Conv2d(channels_in, width, kernel, stride, kernel // 2, bias=False), _norm(width), nn.ReLU()]
        if strided:
            layers.append(nn.MaxPool2d(3, 2, 1))
        source = width
        for stage, blocks in enumerate(depth.blocks):
            for number in range(blocks):
                by = 2 if stage and not number else 1
                layers.append(Block(source, width << stage, by, bottleneck=depth.bottleneck))
                source = (width << stage) * (4 if depth.bottleneck else 1)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(source, outputs)

    def embed(self, x: Tensor) -> Tensor:
        """Features (N, D) of images (N, C, H, W)."""
        return self.features(x).mean((2, 3))


class FixedEncoder(nn.Module):
    """A network in the place of a searched encoder: images and any mixture -> features (N, D) and logits (N, K)."""

    def __init__(self, network: Conv4 | ResNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, mixture: object) -> tuple[Tensor, Tensor]:
        features = self.network.embed(x)
        return features, self.network.classifier(features)


def fixed_encoder(
    name: str,
    generator: torch.Generator,
    *,
    outputs: int,
    channels_in: int,
    size: int,
    width: int = 64,
    strided: bool = False,
) -> FixedEncoder:
    """``simple-cnn`` (Vinyals et al. 2016: Conv4), or a ResNet of :data:`DEPTHS`, with weights drawn from ``generator``.

    ``width`` channels in the first stage, or in all of the simple CNN, which needs images of ``size`` 16 at least.
    """
    network: Conv4 | ResNet
    if name == "simple-cnn":
        network = Conv4(outputs, channels_in=channels_in, size=size, width=width)
    elif name in DEPTHS:
        network = ResNet(DEPTHS[name], outputs, channels_in=channels_in, width=width, strided=strided)
    else:
        raise ConfigurationError(f"network: unknown {name!r}; known are simple-cnn, {', '.join(DEPTHS)}")
    initialise(network, generator)
    return FixedEncoder(differentiable(network))
