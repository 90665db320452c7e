"""Watching and leaving out a network's normalisation, whatever modules it is made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from engine.spaces.norms import batch_statistics

BATCH_NORMS = frozenset({F.batch_norm, torch.batch_norm, batch_statistics})
SAMPLE_NORMS = frozenset(
    {
        F.group_norm,
        torch.group_norm,
        F.layer_norm,
        torch.layer_norm,
        F.instance_norm,
        torch.instance_norm,
        F.rms_norm,
        torch.rms_norm,
    }
)


class WithoutNorms(TorchFunctionMode):
    """Every normalisation is the identity, statistics and affine parameters included."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in BATCH_NORMS or func in SAMPLE_NORMS:
            return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


class NormScales(TorchFunctionMode):
    """Keeps the log of the scale that every normalisation takes out, half the log of the mean variance, and the last map made."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.logarithms: list[float] = []
        self.last_map: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in BATCH_NORMS or func in SAMPLE_NORMS:
            x = args[0] if args else (kwargs or {})["input"]
            kept = x.transpose(0, 1) if func in BATCH_NORMS else x
            # The mean of the variances, without the library's slow variance over several axes.
            variance = x.square().mean() - kept.flatten(1).mean(1).square().mean()
            self.logarithms.append(float(variance.log() / 2))
        y = func(*args, **(kwargs or {}))
        if isinstance(y, Tensor) and y.dim() > 2 and y.shape[0] == self.samples and y.is_floating_point():
            self.last_map = y
        return y
