"""Small residual networks that a found cell is compared with: plain, thrifty, and strong at equal processor time."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut, which is a 1x1 convolution where width or resolution change."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H/stride, W/stride)."""
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class SmallResNet(nn.Module):
    """A 3x3 stem, residual blocks, mean pooling and a linear classifier.

    ``widths`` and ``strides`` have one number a block. ``pools``: blocks before which the map is max-pooled by two.
    """

    def __init__(
        self, widths: Sequence[int], strides: Sequence[int], pools: Sequence[int], *, channels_in: int, classes: int
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels_in, widths[0], 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        before = [widths[0], *widths[:-1]]
        self.blocks = nn.ModuleList(ResidualBlock(*sizes) for sizes in zip(before, widths, strides, strict=True))
        self.pools = tuple(pools)
        self.classifier = nn.Linear(widths[-1], classes)

    def embed(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> the pooled features (B, F)."""
        x = F.relu(self.stem_norm(self.stem(x)))
        for index, block in enumerate(self.blocks):
            x = block(F.max_pool2d(x, 2) if index in self.pools else x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> logits (B, classes)."""
        return self.classifier(self.embed(x))


def res5(*, channels_in: int, classes: int) -> SmallResNet:
    """Five blocks of width 16, 32, 32, 64, 64, the second and fourth of stride 2: 169,648 parameters for one channel, 64
    features."""
    return SmallResNet((16, 32, 32, 64, 64), (1, 2, 1, 2, 1), (), channels_in=channels_in, classes=classes)


def res3(*, channels_in: int, classes: int) -> SmallResNet:
    """Three blocks of width 48, 96, 192 with pooling before each: 689,904 parameters for three channels, 192 features."""
    return SmallResNet((48, 96, 192), (1, 1, 1), (0, 1, 2), channels_in=channels_in, classes=classes)
