"""Networks whose weights are fixed at random and whose masks are learned, from any module by a predicate on parameter names.

A masked parameter is used as w = m phi, m = 1 where its score is not below its layer's threshold (:mod:`engine.kernels.masked`).
Its score is a parameter beside it, of inner rate zero, so inner loops and outer gradients need not know of masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from engine.errors import ConfigurationError
from engine.kernels.masked import mask, masked, threshold
from engine.learning.inner import Params
from engine.runs.streams import stream
from engine.spaces.networks import fan_in

WeightInit = Literal[
    "kaiming-normal",
    "kaiming-uniform",
    "signed-constant",
    "positive-constant",
    "positive-normal",
    "positive-uniform",
    "uniform",
    "keep-sign",
    "asymptotic",
]
Scale = Literal["naive", "normalized"]


def score_name(name: str) -> str:
    """The name of the score beside the parameter ``name``."""
    return f"{name}_score"


def scale_name(name: str) -> str:
    """The name of the learned scale beside the parameter ``name``."""
    return f"{name}_scale"


def draw_weight(shape: torch.Size, init: WeightInit, generator: torch.Generator) -> Tensor:
    """phi of one layer, float32 (reference note meta-ticket, section 1).

    N(0, 2/fan_in), U(+-sqrt(6/fan_in)), the sign of a normal draw times sqrt(2/fan_in), sqrt(2/fan_in) itself, magnitudes of the
    first two, or U(-1, 1). "keep-sign" and "asymptotic" are the uniform and the normal draw at the start and differ in what
    :func:`rerandomise` makes of them.
    """
    if init not in get_args(WeightInit):
        raise ConfigurationError(f"weights: unknown {init!r}; known are {', '.join(get_args(WeightInit))}")
    scale = math.sqrt(2 / math.prod(shape[1:]))
    if init == "positive-constant":
        return torch.full(shape, scale)
    if init in ("kaiming-uniform", "positive-uniform", "uniform", "keep-sign"):
        draw = 2 * torch.rand(shape, generator=generator) - 1
        draw *= 1 if init == "uniform" else math.sqrt(3) * scale
    else:
        draw = torch.randn(shape, generator=generator) * scale
    if init == "signed-constant":
        return torch.where(draw < 0, -scale, scale)
    return draw.abs() if init.startswith("positive") else draw


@dataclass(frozen=True)
class MaskedNetwork:
    """A module with masked parameters.

    ``names``: the masked parameters. ``thresholds``: sigma of each, 0-dim, fixed for the whole training. ``scale``: whether each
    is multiplied by 1 + d (naive) or 1 + d / n (normalized) too, d a meta-parameter of its own and n the number of its weights;
    in the published code, but off in all its configurations.
    """

    module: nn.Module
    thresholds: Mapping[str, Tensor]
    scale: Scale | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The masked parameters in the module's order."""
        return tuple(self.thresholds)

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of their scores."""
        return tuple(map(score_name, self.thresholds))

    @property
    def scales(self) -> tuple[str, ...]:
        """The names of their scales d; none where weights are not scaled."""
        return tuple(map(scale_name, self.thresholds)) if self.scale else ()

    def effective(self, params: Params) -> Params:
        """The module's own parameters, masked ones as m phi, differentiable straight through to the scores."""
        own = {name: value for name, value in params.items() if name not in (*self.scores, *self.scales)}
        kept = {n: masked(params[n], params[score_name(n)], sigma) for n, sigma in self.thresholds.items()}
        return own | {n: value * self._factor(params, n) if self.scale else value for n, value in kept.items()}

    def _factor(self, params: Params, name: str) -> Tensor:
        return 1 + params[scale_name(name)] / (params[name].numel() if self.scale == "normalized" else 1)

    def predict(self, params: Params, x: Tensor) -> Tensor:
        """Outputs of the masked module."""
        return functional_call(self.module, self.effective(params), (x,))

    def masks(self, params: Params) -> dict[str, Tensor]:
        """m of every masked parameter, bool."""
        return {name: mask(params[score_name(name)], sigma) for name, sigma in self.thresholds.items()}

    def sparsity(self, params: Params) -> dict[str, float]:
        """Share of pruned weights by layer. Synchronises with the device."""
        return {name: 1 - float(m.float().mean()) for name, m in self.masks(params).items()}


def mask_parameters(
    module: nn.Module,
    values: Params,
    predicate: Callable[[str], bool],
    *,
    seed: int,
    sparsity: float = 0.0,
    init: WeightInit = "kaiming-normal",
    scale: Scale | None = None,
) -> tuple[MaskedNetwork, Params]:
    """Mask the parameters whose name the predicate accepts.

    Args:
        module: used as a function of its parameters; it may live on the meta device.
        values: all its parameters.
        predicate: called with each parameter name.
        seed: phi and scores are drawn from ``stream(seed, "ticket-weights" or "ticket-scores", name)``.
        sparsity: pruned share at the start, in [0, 1). Published: 0, so pruning is learned from a dense network.
        init: how phi is drawn.
        scale: how weights are scaled by a learned number a layer, which starts at 0; None for not at all.

    Returns:
        The masked network and its parameters: ``values`` with phi drawn anew, the scores, U(+-sqrt(6/fan_in)), and the scales.

    Raises:
        ConfigurationError: nothing is masked, or the sparsity is outside [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise ConfigurationError(f"sparsity must be at least 0 and below 1, got {sparsity}")
    names = [name for name in values if predicate(name)]
    if not names:
        raise ConfigurationError(f"the predicate masks no parameter; there are {', '.join(values)}")
    params, thresholds = dict(values), {}
    for name in names:
        like = values[name]
        params[name] = draw_weight(like.shape, init, stream(seed, "ticket-weights", name)).to(like)
        bound = math.sqrt(6 / fan_in(like))
        draw = torch.rand(like.shape, generator=stream(seed, "ticket-scores", name), dtype=torch.float64)
        params[score_name(name)] = (bound * (2 * draw - 1)).to(like)
        thresholds[name] = threshold(params[score_name(name)], sparsity)
    network = MaskedNetwork(module, thresholds, scale)
    return network, params | {name: values[names[0]].new_zeros(1) for name in network.scales}


def rerandomise(network: MaskedNetwork, params: Params, rate: float, init: WeightInit, *, seed: int, step: int) -> None:
    """IteRand: draw each pruned weight anew with probability ``rate``, in place; kept weights and scores stay.

    Draws come from ``stream(seed, "iterand", step, name)`` (reference note meta-ticket, section 3). With "keep-sign" a new weight
    has the sign of the old one; with "asymptotic" every pruned weight becomes sqrt(1 - rate^2) of itself plus ``rate`` of the
    draw.
    """
    for name, kept in network.masks(params).items():
        old, generator = params[name], stream(seed, "iterand", step, name)
        fresh = draw_weight(old.shape, init, generator)
        chosen = torch.rand(fresh.shape, generator=generator) < rate
        fresh, chosen = fresh.to(old), chosen.to(kept.device)
        if init == "asymptotic":
            fresh, chosen = math.sqrt(1 - rate * rate) * old + rate * fresh, torch.ones_like(kept)
        elif init == "keep-sign":
            fresh = fresh.copysign(old)
        old.copy_(torch.where(chosen & ~kept, fresh, old))


def fix_weights(network: MaskedNetwork, params: Params, constant: float) -> None:
    """Set all masked weights of a layer to ``constant`` sqrt(2/fan_in): units then differ by their masks alone
    (Meta-ticket, section 4.1.2)."""
    for name in network.names:
        params[name].fill_(constant * math.sqrt(2 / fan_in(params[name])))
