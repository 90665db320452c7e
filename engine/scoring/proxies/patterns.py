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

PATTERNS = ("naswot", "swap", "regions")
SWAP_IMAGES = 16


class Patterns(TorchFunctionMode):
    """Sees a forward pass of ``groups`` networks (G), one behind the other along the batch axis, of N images each, and keeps what
    the proxies need of its ReLU-like calls: N^2 counts and 64 KiB of flags a network.

    An activation that does not exist in a network (:func:`~engine.spaces.operations.gated_relu`) does not count there.
    """

    def __init__(self, samples: int, groups: int = 1) -> None:
        super().__init__()
        self.samples, self.groups = samples, groups
        self.neurons = torch.zeros(groups, dtype=torch.int64)
        self.finite = torch.ones(groups, dtype=torch.bool)
        self.constant = torch.zeros(groups, dtype=torch.bool)
        self.agreement = torch.zeros(groups, samples, samples, dtype=torch.float64)
        self.columns = torch.zeros(groups, 2**SWAP_IMAGES, dtype=torch.bool)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        activation = ACTIVATIONS.get(func)
        if activation is not None:
            x, knees, alive, readers = activation(*args, **kwargs)
            if knees and x.is_floating_point() and x.numel():
                with torch.no_grad():
                    rows = x.detach().reshape(self.groups, self.samples, -1)
                    self._record(rows, knees, self._readers(alive, readers))
        return func(*args, **kwargs)

    def _readers(self, alive: Tensor | None, readers: int | Tensor) -> Tensor:
        """How many operations of each network have this activation as theirs, (G,)."""
        counts = torch.as_tensor(readers).expand(self.groups)
        return counts if alive is None else counts * alive

    def _record(self, x: Tensor, knees: tuple[float, ...], readers: Tensor) -> None:
        exists = readers > 0
        self.finite &= x.flatten(1).sum(1).isfinite().cpu() | ~exists
        first = min(self.samples, SWAP_IMAGES)
        place = 2.0 ** torch.arange(first, device=x.device)
        for knee in knees:
            codes = (x > knee).to(torch.float32)
            # Neurons that agree: both active, or both not. Counts below 2^24 are exact in float32.
            both = codes @ codes.mT
            counts = both.diagonal(dim1=1, dim2=2)
            agree = x.shape[2] - counts[:, :, None] - counts[:, None, :] + 2 * both
            self.agreement += readers[:, None, None] * agree.double().cpu()
            patterns = (place @ codes[:, :first]).to(torch.int64).cpu()
            for group in exists.nonzero().flatten().tolist():
                self.columns[group, patterns[group]] = True
            self.neurons += readers * x.shape[2]

    def see_outputs(self, y: Tensor) -> None:
        """Take note of what the forward pass returned, (G*N, ...): where it is the same for all images, no pattern reaches it."""
        grouped = y.detach().reshape(self.groups, self.samples, -1)
        self.constant = (grouped == grouped[:, :1]).flatten(1).all(1).cpu() & (self.samples > 1)

    def scores(self) -> list[dict[str, Score]]:
        """All three, network by network; patterns with NaN or infinity are ``nonfinite``, of constant outputs ``singular``."""
        if not bool(self.neurons.any()):
            raise ValueError("model: no ReLU-like activation was seen in its forward pass, so it has no patterns to score")
        return [self._scores(group) for group in range(self.groups)]

    def _scores(self, group: int) -> dict[str, Score]:
        if not self.finite[group]:
            return {name: scored(name, math.nan) for name in PATTERNS}
        if self.constant[group]:
            return {name: degenerate(name) for name in PATTERNS}
        agreement = self.agreement[group]
        sign, logarithm = torch.linalg.slogdet(agreement)
        # An image opens a region of its own unless all neurons agree with an earlier image's.
        regions = int((torch.triu(agreement == self.neurons[group], 1).sum(0) == 0).sum())
        return {
            "naswot": scored("naswot", float(logarithm)) if sign > 0 else degenerate("naswot"),
            "swap": scored("swap", float(self.columns[group].sum())),
            "regions": scored("regions", float(regions)),
        }
