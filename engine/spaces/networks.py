"""The fixed networks of few-shot learning: MLPs, Conv4, ResNet-12, WRN-28-k and the sinusoid regressor.

Plain ``nn.Module``s that need nothing of the engine. Every one has ``embed(x)``, the features (N, D), and a ``classifier`` behind
them, so ``forward(x) = classifier(embed(x))`` is (N, outputs). Batch normalisation takes the statistics of the batch at hand
and keeps no state unless ``running=True``, which gives torch's usual running statistics. Without state the networks are pure
functions of parameters and images, as ``torch.func`` wants them, and few-shot results are transductive: a query is classified
with the statistics of all queries of its task. Widths and initial values are those of the reference note, section 5 and 3.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from engine.errors import ConfigurationError

MLP_EPS = 1e-3
OMNIGLOT_WIDTHS = (256, 128, 64, 64)
COLOUR_WIDTHS = {3: (8192, 128), 4: (2048, 2048, 128), 5: (1024, 512, 256, 128)}
RESNET12_WIDTHS = (64, 128, 256, 512)


class _Network(nn.Module, ABC):
    """Features, then a linear classifier."""

    kaiming: ClassVar[Literal["fan_in", "fan_out"] | None] = "fan_in"
    classifier: nn.Module

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Features (N, D) of images (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.embed(x))


class LinearBlock(nn.Module):
    """Linear, BatchNorm1d (eps 1e-3), ReLU on (N, inputs)."""

    def __init__(self, inputs: int, outputs: int, *, running: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.normalize = nn.BatchNorm1d(outputs, eps=MLP_EPS, track_running_stats=running)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.normalize(self.linear(x)))


class MLP(_Network):
    """Blocks of linear, BatchNorm and ReLU, then a linear classifier; images are flattened.

    Weights are drawn from N(0, 2/fan_in), biases are 0. A bias in front of BatchNorm changes nothing and its gradient is zero
    up to rounding; it is there because the published networks have it.
    """

    def __init__(self, inputs: int, widths: Sequence[int], outputs: int, *, running: bool = False) -> None:
        super().__init__()
        sizes = [inputs, *widths]
        blocks = [LinearBlock(a, b, running=running) for a, b in pairwise(sizes)]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(sizes[-1], outputs)
        initialise(self)

    def embed(self, x: Tensor) -> Tensor:
        return self.features(x.flatten(1))


class SinusoidMLP(nn.Module):
    """1 - 40 - 40 - 1 with ReLU and no normalisation, for regression on (N, 1); ``factor`` widens the hidden layers.

    Weights and biases are torch's initial values, as in the published network.
    """

    kaiming = None

    def __init__(self, factor: int = 1) -> None:
        super().__init__()
        width = 40 * factor
        self.hidden1 = nn.Linear(1, width)
        self.hidden2 = nn.Linear(width, width)
        self.hidden3 = nn.Linear(width, 1)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden3(self.hidden2(self.hidden1(x).relu()).relu())


def _norm(channels: int, running: bool) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=running)


class Conv4(_Network):
    """Four blocks of 3x3 convolution, BatchNorm, ReLU and 2x2 max pooling, then a linear classifier on the flat features.

    Args:
        outputs: classes.
        channels_in: channels of the images.
        size: side of the square images, at least 16.
        width: channels of every block; 64 is usual, 32 in MAML's miniImageNet network.
        running: keep running statistics.
    """

    def __init__(self, outputs: int, *, channels_in: int = 3, size: int = 84, width: int = 64, running: bool = False) -> None:
        super().__init__()
        if size < 16:
            raise ConfigurationError(f"conv4: four poolings need images of at least 16 pixels, got {size}")
        blocks = [
            nn.Sequential(
                nn.Conv2d(channels_in if block == 0 else width, width, 3, padding=1, bias=False),
                _norm(width, running),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )
            for block in range(4)
        ]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * (size // 16) ** 2, outputs)
        initialise(self)

    def embed(self, x: Tensor) -> Tensor:
        return self.features(x).flatten(1)


class ResNet12Block(nn.Module):
    """Three 3x3 convolutions with BatchNorm beside a 1x1 shortcut, LeakyReLU(0.1), 2x2 max pooling."""

    def __init__(self, channels_in: int, channels: int, *, running: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False), _norm(channels, running)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), _norm(channels, running)
        self.conv3, self.bn3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), _norm(channels, running)
        self.downsample = nn.Sequential(nn.Conv2d(channels_in, channels, 1, bias=False), _norm(channels, running))
        self.activation = nn.LeakyReLU(0.1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.bn1(self.conv1(x)))
        y = self.activation(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y)) + self.downsample(x)
        return self.pool(self.activation(y))


class ResNet12(_Network):
    """Four :class:`ResNet12Block`, global average pooling, linear classifier.

    ``widths`` 64-128-256-512 are Meta-ticket's; (64, 160, 320, 640) is the network of RFS and MetaOptNet. Images of at least
    16 pixels. Convolutions are drawn from N(0, 2/fan_out).
    """

    kaiming = "fan_out"

    def __init__(
        self, outputs: int, *, channels_in: int = 3, widths: Sequence[int] = RESNET12_WIDTHS, running: bool = False
    ) -> None:
        super().__init__()
        sizes = [channels_in, *widths]
        for number, (source, channels) in enumerate(pairwise(sizes), start=1):
            setattr(self, f"layer{number}", ResNet12Block(source, channels, running=running))
        self.blocks = len(widths)
        self.classifier = nn.Linear(sizes[-1], outputs)
        initialise(self)

    def embed(self, x: Tensor, between: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
        """Features (N, D); ``between(number, maps)`` changes the output of each block, counted from 1 (DropBlock)."""
        for number in range(1, self.blocks + 1):
            x = getattr(self, f"layer{number}")(x)
            if between is not None:
                x = between(number, x)
        return x.mean((2, 3))


class WideBlock(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, twice; the stride is the second convolution's, the 1x1 shortcut sees the raw input."""

    def __init__(self, channels_in: int, channels: int, stride: int, *, running: bool = False) -> None:
        super().__init__()
        self.bn1, self.conv1 = _norm(channels_in, running), nn.Conv2d(channels_in, channels, 3, padding=1)
        self.bn2, self.conv2 = _norm(channels, running), nn.Conv2d(channels, channels, 3, stride, padding=1)
        same = stride == 1 and channels_in == channels
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1, stride)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.activation(self.bn1(x)))
        return self.conv2(self.activation(self.bn2(y))) + self.shortcut(x)


class WRN28(_Network):
    """WRN-28-k: a stem of 16 channels, three groups of four :class:`WideBlock` of 16k, 32k, 64k channels (strides 1, 2, 2),
    BatchNorm, ReLU, global average pooling, linear classifier. Convolutions have biases; torch's initial values."""

    kaiming = None

    def __init__(self, outputs: int, *, k: int = 10, channels_in: int = 3, running: bool = False) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(channels_in, 16, 3, padding=1)]
        source = 16
        for width, stride in ((16 * k, 1), (32 * k, 2), (64 * k, 2)):
            for block in range(4):
                blocks.append(WideBlock(source, width, stride if block == 0 else 1, running=running))
                source = width
        self.features = nn.Sequential(*blocks, _norm(source, running), nn.ReLU())
        self.classifier = nn.Linear(source, outputs)

    def embed(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3))


def initialise(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw the initial values of a network of this module again, its layers in order, from ``generator``.

    MLPs: weights N(0, 2/fan_in), biases 0. Conv4 and ResNet-12: convolutions N(0, 2/fan_in) and N(0, 2/fan_out), the classifier
    as torch does it. WRN-28 and the sinusoid regressor: all as torch does it, U(-1, 1)/sqrt(fan_in). BatchNorm: 1 and 0.
    """
    mode = model.kaiming if isinstance(model, _Network | SinusoidMLP) else "fan_in"
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Conv2d):
            if mode is None or (isinstance(module, nn.Linear) and isinstance(model, Conv4 | ResNet12)):
                _initialise_as_torch(module, generator)
            else:
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _initialise_as_torch(module: nn.Linear | nn.Conv2d, generator: torch.Generator | None) -> None:
    """U(-1, 1)/sqrt(fan_in), the published initial values of what the papers leave to torch."""
    bound = 1 / math.sqrt(fan_in(module.weight))
    nn.init.uniform_(module.weight, -bound, bound, generator=generator)
    if module.bias is not None:
        nn.init.uniform_(module.bias, -bound, bound, generator=generator)


def _mlp(layers: int) -> Callable[..., nn.Module]:
    def build(outputs: int, channels_in: int, size: int, factor: int, running: bool) -> nn.Module:
        colour = channels_in == 3 or layers != 5
        widths = COLOUR_WIDTHS[layers] if colour else OMNIGLOT_WIDTHS
        return MLP(channels_in * size * size, [factor * width for width in widths], outputs, running=running)

    return build


def _conv4(outputs: int, channels_in: int, size: int, factor: int, running: bool) -> nn.Module:
    return Conv4(outputs, channels_in=channels_in, size=size, width=64 * factor, running=running)


def _resnet12(outputs: int, channels_in: int, size: int, factor: int, running: bool) -> nn.Module:
    widths = [factor * width for width in RESNET12_WIDTHS]
    return ResNet12(outputs, channels_in=channels_in, widths=widths, running=running)


def _wrn28(k: int) -> Callable[..., nn.Module]:
    def build(outputs: int, channels_in: int, size: int, factor: int, running: bool) -> nn.Module:
        return WRN28(outputs, k=k * factor, channels_in=channels_in, running=running)

    return build


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "3-mlp": _mlp(3),
    "4-mlp": _mlp(4),
    "5-mlp": _mlp(5),
    "conv4": _conv4,
    "resnet12": _resnet12,
    "wrn28-5": _wrn28(5),
    "wrn28-10": _wrn28(10),
}


def build_network(name: str, *, outputs: int, channels_in: int, size: int, factor: int = 1, running: bool = False) -> nn.Module:
    """A network of :data:`NETWORKS` for ``channels_in`` x ``size`` x ``size`` images.

    ``factor`` multiplies the widths. The 5-MLP has 256-128-64-64 units on images of one channel (Omniglot) and
    1024-512-256-128 on colour. An unknown name is a :class:`~engine.errors.ConfigurationError`.
    """
    if name not in NETWORKS:
        raise ConfigurationError(f"network: unknown {name!r}; known are {', '.join(NETWORKS)}")
    return NETWORKS[name](outputs, channels_in, size, factor, running)


def fan_in(weight: Tensor) -> int:
    """Inputs that one output of a linear or convolution weight (out, in, ...) sums over."""
    return math.prod(weight.shape[1:])
