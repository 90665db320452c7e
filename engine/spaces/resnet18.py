"""The first layers of ResNet-18 (He et al., 2016) as a feature extractor for small images.

What LAMANAS puts before its networks as an option, and finds to hurt (paper 002; reference note on MetaNAS, section 5).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ENLARGED = 8


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with norms beside the input, which a strided 1x1 convolution brings to size where the block halves."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = _norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = _norm(channels)
        self.downsample = nn.Sequential()
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), _norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(y)) + self.downsample(x)).relu()


class FirstLayers(nn.Module):
    """ResNet-18 up to its second group of blocks, parameters named as torchvision names them: (N, 3, H, W) -> (N, 128, H/8, W/8).

    Norms take the statistics of the batch and keep none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = _norm(64)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        return self.layer2(self.layer1(x))


class ResNet18Extractor(nn.Module):
    """Images (N, C, H, W) -> maps of the same shape: enlarged eightfold (nearest), a 5x5 convolution to three channels,
    :class:`FirstLayers`, and a 5x5 convolution back to C channels.

    686,351 parameters at C = 1. About 1.2 G multiply-adds an image of 28x28, thirty times a MetaNAS supernet of 14 channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, 3, 5, padding=2)
        self.layers = FirstLayers()
        self.leave = nn.Conv2d(128, channels, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=ENLARGED, mode="nearest")
        return self.leave(self.layers(self.enter(x).contiguous(memory_format=torch.channels_last)))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)
