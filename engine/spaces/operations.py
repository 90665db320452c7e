"""The operations that an edge can carry, each defined once and shared by every space.

An operation is a name and a builder ``build(channels, stride, norm, odd) -> nn.Module``. Its module computes
``forward(x, groups=1, alive=None)``: ``x`` is the source state, or its ReLU where the operation ``reads_relu`` (the cell
rectifies a state once for all operations that read it). ``groups`` candidates lie behind one another along the batch
axis, and ``alive`` (G,) says for which of them the operation exists; outputs are computed for all, so ``alive`` matters only to
those who watch activations (:func:`gated_relu`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary

from engine.errors import ConfigurationError
from engine.spaces.differentiable import POINTWISE, Convolution, convolution, halves
from engine.spaces.norms import NoNorm, Norm


def gated_relu(x: Tensor, alive: Tensor | None = None, readers: int | Tensor = 1) -> Tensor:
    """ReLU whose pattern belongs only to the groups that are ``alive`` ((G,) bool, None for all).

    The value is plain ``relu(x)``. A ``TorchFunctionMode`` sees the call with its gate, so that activations of operations of
    weight zero stay out of region patterns although they were computed beside others in one batch, and with its ``readers``:
    the operations that share it, (G,) where groups differ, each of which would have a rectifier of its own in the published
    networks.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(gated_relu, (x,), x, alive, readers)
    return F.relu(x)


class ReLU(nn.Module):
    """The rectifier inside an operation."""

    def forward(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        return gated_relu(x, alive)


class Chain(nn.ModuleList):
    """Convolutions, norms and rectifiers one after the other, each given what it takes of ``groups`` and ``alive``."""

    @property
    def norm(self) -> nn.Module | None:
        """The last layer."""
        return self[-1] if len(self) else None

    def forward(self, x: Tensor, groups: int = 1, alive: Tensor | None = None) -> Tensor:
        return self._through(x, groups, alive, len(self))

    def unnormalised(self, x: Tensor, groups: int = 1, alive: Tensor | None = None) -> Tensor:
        """What the last norm reads."""
        return self._through(x, groups, alive, len(self) - 1)

    def _through(self, x: Tensor, groups: int, alive: Tensor | None, layers: int) -> Tensor:
        for layer in list(self)[:layers]:
            if isinstance(layer, nn.Conv2d):
                x = layer(x)
            elif isinstance(layer, ReLU):
                x = layer(x, alive)
            else:
                x = layer(x, groups)
        return x


class Identity(nn.Module):
    """The skip connection at stride 1."""

    def forward(self, x: Tensor, groups: int = 1, alive: Tensor | None = None) -> Tensor:
        return x


class FactorizedReduce(nn.Module):
    """Two 1x1 convolutions of stride 2 on maps shifted by one pixel, concatenated and normalised; reads ReLU(x).

    Maps ``channels_in`` to ``channels`` (the second convolution gets the rounded-up half). At even sizes the second map
    starts one pixel further down and right. At odd sizes published spaces differ, so ``odd`` says what happens:
    ``"pad"`` shifts after zero-padding at the bottom and right (MetaNTK-NAS), ``"unshifted"`` does not shift (MetaNAS).
    """

    def __init__(self, channels_in: int, channels: int, norm: Norm, odd: str = "pad") -> None:
        super().__init__()
        if odd not in ("pad", "unshifted"):
            raise ConfigurationError(f"odd: {odd!r} is not 'pad' or 'unshifted'")
        if channels < 2:
            raise ConfigurationError(f"channels: FactorizedReduce needs at least 2, got {channels}")
        half = channels // 2
        self.convs = nn.ModuleList(nn.Conv2d(channels_in, width, 1, stride=2, bias=False) for width in (half, channels - half))
        self.norm = norm(channels)
        self.odd = odd

    def forward(self, x: Tensor, groups: int = 1, alive: Tensor | None = None) -> Tensor:
        return self.norm(self.unnormalised(x), groups)

    def unnormalised(self, x: Tensor, groups: int = 1, alive: Tensor | None = None) -> Tensor:
        """What the norm reads."""
        first, second = self.convs
        if isinstance(first, Convolution) and isinstance(second, Convolution) and x.shape[2] % 2 == x.shape[3] % 2 == 0:
            # Half of the rows and columns are all that is read: neither maps nor gradients are formed at the others.
            pairs = zip(halves(x), (first.weight, second.weight), strict=True)
            return torch.cat([convolution(half, weight, POINTWISE) for half, weight in pairs], 1)
        return torch.cat([first(x), second(self._shifted(x))], 1)

    def _shifted(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % 2 == 0 and width % 2 == 0:
            return F.pad(x, (-1, 0, -1, 0))  # a slice's gradient would lose the memory format
        return F.pad(x, (0, 1, 0, 1))[..., 1:, 1:] if self.odd == "pad" else x


class Pool(nn.Module):
    """3x3 pooling with padding 1 (averages leave the padding out), then the norm; no parameters of its own."""

    def __init__(self, kind: str, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.kind, self.stride = kind, stride
        self.norm = norm(channels)

    def forward(self, x: Tensor, groups: int = 1, alive: Tensor | None = None) -> Tensor:
        return self.norm(self.unnormalised(x), groups)

    def unnormalised(self, x: Tensor, groups: int = 1, alive: Tensor | None = None) -> Tensor:
        """What the norm reads."""
        if self.kind == "max":
            return F.max_pool2d(x, 3, self.stride, 1)
        return F.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False)


class ResidualReduction(nn.Module):
    """NAS-Bench-201's block between stages: two 3x3 convolutions (ReLU, convolution, norm; the first of stride 2), beside a 2x2
    average and a 1x1 convolution. Maps (B, ``channels_in``, H, W) to (B, ``channels``, ceil(H/2), ceil(W/2)).
    """

    def __init__(self, channels_in: int, channels: int, norm: Norm) -> None:
        super().__init__()
        first = nn.Conv2d(channels_in, channels, 3, 2, 1, bias=False)
        second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.body = Chain([ReLU(), first, norm(channels), ReLU(), second, norm(channels)])
        self.shortcut = nn.Conv2d(channels_in, channels, 1, bias=False)

    def forward(self, x: Tensor, groups: int = 1) -> Tensor:
        # The original refuses odd sides; rounding up agrees with it at even ones.
        return self.body(x, groups) + self.shortcut(F.avg_pool2d(x, 2, 2, ceil_mode=True))


class Twice(nn.ModuleList):
    """Two modules with weights of their own, added: one operation twice on the same edge, which a genotype cannot list."""

    def forward(self, x: Tensor, groups: int = 1, alive: Tensor | None = None) -> Tensor:
        first, second = self
        return first(x, groups, alive) + second(x, groups, alive)


def depthwise(channels: int, kernel: int, stride: int, dilation: int, norm: Norm) -> list[nn.Module]:
    """The layers of a depthwise convolution, its pointwise partner and the norm (the rectifier before them is the caller's)."""
    padding = dilation * (kernel - 1) // 2
    return [
        nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        norm(channels),
    ]


class Unit(nn.Module):
    """Ones of the output's shape, whatever the input: what a supernet multiplies with noise."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor, groups: int = 1, alive: Tensor | None = None) -> Tensor:
        size = [-(-n // self.stride) for n in x.shape[2:]]
        return x.new_ones(()).expand(*x.shape[:2], *size)


def _unit(channels: int, stride: int, norm: Norm, odd: str) -> nn.Module:
    return Unit(stride)


def _skip(channels: int, stride: int, norm: Norm, odd: str) -> nn.Module:
    return Identity() if stride == 1 else FactorizedReduce(channels, channels, norm, odd)


def _separable(channels: int, stride: int, norm: Norm, odd: str, kernel: int = 3) -> nn.Module:
    return Chain([*depthwise(channels, kernel, stride, 1, norm), ReLU(), *depthwise(channels, kernel, 1, 1, norm)])


def _dilated(channels: int, stride: int, norm: Norm, odd: str, kernel: int = 3) -> nn.Module:
    return Chain(depthwise(channels, kernel, stride, 2, norm))


def _depthwise_3x3(channels: int, stride: int, norm: Norm, odd: str) -> nn.Module:
    return Chain(depthwise(channels, 3, stride, 1, norm))


def _twice_depthwise_3x3(channels: int, stride: int, norm: Norm, odd: str) -> nn.Module:
    return Twice(_depthwise_3x3(channels, stride, norm, odd) for _ in range(2))


def _average(channels: int, stride: int, norm: Norm, odd: str) -> nn.Module:
    return Pool("average", channels, stride, norm)


def _max(channels: int, stride: int, norm: Norm, odd: str) -> nn.Module:
    return Pool("max", channels, stride, norm)


def _pair_1x5_5x1(channels: int, stride: int, norm: Norm, odd: str) -> nn.Module:
    first = nn.Conv2d(channels, channels, (1, 5), stride, (0, 2), bias=False)
    second = nn.Conv2d(channels, channels, (5, 1), 1, (2, 0), bias=False)
    return Chain([first, second, norm(channels)])


@dataclass(frozen=True)
class Operation:
    """One row of the table of operations: its builder, and whether it reads the rectified state (at a given stride)."""

    build: Callable[[int, int, Norm, str], nn.Module]
    reads_relu: Callable[[int], bool]


def _always(stride: int) -> bool:
    return True


def _never(stride: int) -> bool:
    return False


def _plain_average(channels: int, stride: int, norm: Norm, odd: str) -> nn.Module:
    return Pool("average", channels, stride, NoNorm)


def _plain_max(channels: int, stride: int, norm: Norm, odd: str) -> nn.Module:
    return Pool("max", channels, stride, NoNorm)


def _dense_1x1(channels: int, stride: int, norm: Norm, odd: str) -> nn.Module:
    return Chain([nn.Conv2d(channels, channels, 1, stride, bias=False), norm(channels)])


def _dense_3x3(channels: int, stride: int, norm: Norm, odd: str) -> nn.Module:
    return Chain([nn.Conv2d(channels, channels, 3, stride, 1, bias=False), norm(channels)])


OPERATIONS: dict[str, Operation] = {
    "skip_connect": Operation(_skip, lambda stride: stride > 1),
    "sep_conv_3x3": Operation(_separable, _always),
    "dil_conv_3x3": Operation(_dilated, _always),
    "avg_pool_3x3BN": Operation(_average, _never),
    "max_pool_3x3BN": Operation(_max, _never),
    "conv_1x5_5x1": Operation(_pair_1x5_5x1, _always),
    "conv_3x3": Operation(_depthwise_3x3, _always),
    "conv_3x3_twice": Operation(_twice_depthwise_3x3, _always),
    "avg_pool_3x3": Operation(_plain_average, _never),
    "max_pool_3x3": Operation(_plain_max, _never),
    "sep_conv_5x5": Operation(partial(_separable, kernel=5), _always),
    "dil_conv_5x5": Operation(partial(_dilated, kernel=5), _always),
    "nor_conv_1x1": Operation(_dense_1x1, _always),
    "nor_conv_3x3": Operation(_dense_3x3, _always),
    # In supernets only: a skip connection beside the searched ones (DARTS-), and what noise multiplies (RobustDARTS, S4).
    "auxiliary_skip": Operation(_skip, lambda stride: stride > 1),
    "unit": Operation(_unit, _never),
}


def register_operation(name: str, build: Callable[[int, int, Norm, str], nn.Module], *, reads_relu: bool) -> None:
    """Add an operation of your own to the table, so that spaces can name it.

    ``build(channels, stride, norm, odd)`` returns a module with ``forward(x, groups=1, alive=None)`` that keeps the channels and
    divides the resolution by ``stride`` (rounding up). A name that is taken, or that PyTorch cannot give a submodule, is a
    :class:`ConfigurationError`.
    """
    if name in OPERATIONS or name == "none":
        raise ConfigurationError(f"operation {name!r} exists already; choose another name")
    if not name or "." in name or hasattr(nn.ModuleDict, name):
        raise ConfigurationError(
            f"operation {name!r} cannot name a submodule; choose a name without dots that is no method of one"
        )
    OPERATIONS[name] = Operation(build, _always if reads_relu else _never)


def operation(name: str) -> Operation:
    """Look an operation up; an unknown name is a configuration error that lists the known ones."""
    if name not in OPERATIONS:
        raise ConfigurationError(f"operation: unknown {name!r}; known are {', '.join(OPERATIONS)}")
    return OPERATIONS[name]
