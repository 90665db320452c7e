"""ImageNet's ends of a cell network: the strided stem, and the auxiliary tower of both data sets (DARTS's published code)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import ConfigurationError
from engine.spaces.norms import Norm
from engine.spaces.operations import gated_relu


class StridedStem(nn.Module):
    """Three 3x3 convolutions of stride 2 with norms, for large images; published as ``stem0`` and ``stem1``.

    ``width`` C is that of the first cells in evaluation networks and three times it in PC-DARTS's search.
    """

    def __init__(self, channels_in: int, width: int, norm: Norm) -> None:
        super().__init__()
        widths = (width // 2, width, width)
        before = (channels_in, *widths[:-1])
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False) for a, b in zip(before, widths, strict=True)
        )
        self.norms = nn.ModuleList(norm(channels) for channels in widths)

    def forward(self, x: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
        """(B, C_in, H, W) -> what the first cell reads: (B, C, H/4, W/4) rectified, and (B, C, H/8, W/8) as it is."""
        states: list[Tensor] = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(gated_relu(x) if states else x), groups)
            states.append(x)
        return gated_relu(states[1]), x


class AuxiliaryTower(nn.Module):
    """A second classifier on the output of the last reduction cell, for training only (reference note tetlo-darts, section 7).

    ReLU, 5x5 average pooling, 1x1 convolution to 128, 2x2 convolution to 768, linear. The published maps are 8x8 (CIFAR: pooling
    of stride 3) and 7x7 (``imagenet``: stride 2, and no norm behind the 768, an oversight that later papers kept); of larger ones
    the positions are averaged, smaller ones are a :class:`ConfigurationError`.
    """

    def __init__(self, channels: int, classes: int, norm: Norm, *, imagenet: bool = False) -> None:
        super().__init__()
        self.stride = 2 if imagenet else 3
        self.conv1, self.norm1 = nn.Conv2d(channels, 128, 1, bias=False), norm(128)
        self.conv2, self.norm2 = nn.Conv2d(128, 768, 2, bias=False), None if imagenet else norm(768)
        self.classifier = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes)."""
        if min(x.shape[-2:]) < 5 + self.stride:
            raise ConfigurationError(
                f"--auxiliary: the tower needs maps of at least {5 + self.stride} pixels, got {min(x.shape[-2:])}; "
                "take larger images or --auxiliary 0"
            )
        x = F.relu(self.norm1(self.conv1(F.avg_pool2d(F.relu(x), 5, self.stride))))
        x = self.conv2(x)
        return self.classifier(F.relu(x if self.norm2 is None else self.norm2(x)).mean((2, 3)))
