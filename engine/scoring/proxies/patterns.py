"""Proxies of activation patterns: naswot, swap, regions. One forward pass shows them all."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from engine.scoring.proxies.values import degenerate, scored
from engine.scoring.regions import ACTIVATIONS
from engine.scoring.result import Score

SWAP_IMAGES = 16


class Patterns(TorchFunctionMode):
    """Sees a forward pass of N images and keeps what the proxies need of its ReLU-like calls: N^2 counts and 64 KiB of flags."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.neurons = 0
        self.finite = True
        self.constant = False
        self.agreement = torch.zeros(samples, samples, dtype=torch.float64)
        self.columns = torch.zeros(2**SWAP_IMAGES, dtype=torch.bool)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        activation = ACTIVATIONS.get(func)
        if activation is not None:
            x, knees, _, readers = activation(*args, **kwargs)
            if knees and x.is_floating_point() and x.numel():
                with torch.no_grad():
                    self._record(x.detach().reshape(self.samples, -1), knees, readers)
        return func(*args, **kwargs)

    def _record(self, x: Tensor, knees: tuple[float, ...], readers: int) -> None:
        self.finite = self.finite and bool(x.sum().isfinite())
        first = x[:SWAP_IMAGES]
        place = 2.0 ** torch.arange(len(first), device=x.device)
        for knee in knees:
            codes = (x > knee).to(torch.float32)
            # Neurons that agree: both active, or both not. Counts below 2^24 are exact in float32.
            both = codes @ codes.T
            counts = both.diagonal()
            self.agreement += readers * (x.shape[1] - counts[:, None] - counts[None, :] + 2 * both).double().cpu()
            self.columns[(place @ codes[: len(first)]).to(torch.int32).cpu()] = True
            self.neurons += readers * x.shape[1]

    def see_outputs(self, y: Tensor) -> None:
        """Take note of what the forward pass returned, (N, ...): where it is the same for all images, no pattern reaches it."""
        self.constant = self.samples > 1 and bool((y.detach() == y[:1].detach()).all())

    def scores(self) -> dict[str, Score]:
        """All three; patterns with NaN or infinities are ``nonfinite``, those of constant outputs ``singular``."""
        if not self.neurons:
            raise ValueError("model: no ReLU-like activation was seen in its forward pass, so it has no patterns to score")
        if not self.finite:
            return {name: scored(name, math.nan) for name in ("naswot", "swap", "regions")}
        if self.constant:
            return {name: degenerate(name) for name in ("naswot", "swap", "regions")}
        sign, logarithm = torch.linalg.slogdet(self.agreement)
        # An image opens a region of its own unless all neurons agree with an earlier image's.
        regions = int((torch.triu(self.agreement == self.neurons, 1).sum(0) == 0).sum())
        return {
            "naswot": scored("naswot", float(logarithm)) if sign > 0 else degenerate("naswot"),
            "swap": scored("swap", float(self.columns.sum())),
            "regions": scored("regions", float(regions)),
        }
