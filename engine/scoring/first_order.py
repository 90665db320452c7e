"""How a number made of tangent kernels answers to all operation weights of a supernet at once: one second-order pass.

A kernel is Theta = sum over layers of J_l J_l^T, J_l a layer's per-sample gradients. With M = d value / d Theta held fixed, the
derivative of the value by a weight w of the mixture is sum_l <(M + M^T) J_l, dJ_l/dw>. J_l is bilinear in the layer's input A_l
and the gradient B_l of its output: the rows of (M + M^T) J_l, taken as weights that each sample has of its own and applied to
A_l, are the cotangents of B_l, and applied backwards to B_l those of A_l. One backward pass, through the backward pass and then
the forward pass, turns them into the derivatives by every weight of the mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from engine.errors import ConfigurationError
from engine.kernels.gram import add_gram, one_blas_pool
from engine.kernels.sample_gradient import ConvGeometry, conv_sample_gradient, linear_sample_gradient
from engine.scoring.capture import graph_leaves
from engine.scoring.plain import run_on, stand_ins
from engine.spaces.differentiable import Geometry, convolution

Kernels = Mapping[str, Tensor]

# Forward passes that one call costs: forward, backward, per-sample gradients, the two products with them, and backward through
# the backward and the forward pass.
PASSES = 7


@dataclass(frozen=True)
class Slope:
    """A number ``value`` of ``kernels`` (float64 (N, N) by set), and its derivatives ``gradient`` by the mixture's weights."""

    kernels: Kernels
    value: Tensor
    gradient: Tensor


def slope(
    model: nn.Module,
    forward: Callable[[], Tensor],
    weights: Tensor,
    assign: Callable[[str, nn.Parameter], str | None],
    value: Callable[[Kernels], Tensor],
) -> Slope:
    """The derivative of ``value(kernels)`` by ``weights``, the kernels being those of :func:`engine.scoring.kernels.gram`.

    ``forward()`` runs ``model`` on N samples that do not interact, (N, K), as a differentiable function of ``weights``, a leaf.
    ``assign`` names the set that a parameter counts in, or None. ``value`` is a differentiable scalar of the sets' kernels.

    Where activations have kinks, this is the derivative away from them: what neurons that switch contribute is left out.

    Costs :data:`PASSES` forward passes and N^2 P float64 multiply-adds for P parameters; holds the graph of forward and backward
    and N * P gradients. The parameters that count must be weights of 2-D convolutions and linear layers, each used once; others
    are a :class:`~engine.errors.ConfigurationError`. The model is not touched.
    """
    sets = {name: key for name, p in model.named_parameters() if (key := assign(name, p)) is not None}
    stands = stand_ins(model, set(sets))
    watch = LayerWatch({id(stands[name]): name for name in sets})

    def body() -> tuple[Tensor, Sequence[Tensor | None]]:
        with watch:
            y = forward()
        _check(watch.layers, stands, sets, y)
        return y, torch.autograd.grad(y.sum(), [layer.y for layer in watch.layers], create_graph=True, allow_unused=True)

    with torch.enable_grad(), one_blas_pool():
        y, found = run_on(model, stands, body)
        # A layer whose output nothing reads has no gradient.
        reached = [(layer, g) for layer, g in zip(watch.layers, found, strict=True) if g is not None]
        rows = [layer.rows(g.detach()) for layer, g in reached]
        kernels = _kernels([layer for layer, _ in reached], rows, sets, y)
        number, derivatives = _derivatives(kernels, value)
        given: list[tuple[Tensor, Tensor]] = []
        for (layer, g), own in zip(reached, rows, strict=True):
            given += layer.pulled(g, derivatives[sets[layer.name]].to(own.dtype) @ own)
        ends, cotangents = [at for at, _ in given], [cotangent for _, cotangent in given]
        gradient = torch.autograd.grad(ends, [weights], cotangents, allow_unused=True)[0] if given else None
    return Slope(kernels, number, torch.zeros_like(weights) if gradient is None else gradient)


@dataclass(frozen=True)
class WatchedLayer:
    """One use of one weight: its input and output in the graph, and its geometry (None: a linear layer)."""

    name: str
    x: Tensor
    y: Tensor
    geometry: ConvGeometry | None

    def rows(self, g: Tensor) -> Tensor:
        """Per-sample gradients (N, P) from the gradient of the output."""
        x = self.x.detach()
        if self.geometry is None:
            return linear_sample_gradient(x.unsqueeze(1), g[:, None, None])[:, 0]
        return conv_sample_gradient(x, g.unsqueeze(1), self.geometry)[:, 0]

    def pulled(self, g: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The cotangents that <v, rows(g)> with v (N, P) held fixed gives to ``g`` and to the input, where these have a graph."""
        with torch.no_grad():
            of_g, of_x = self._cotangents(self.x.detach(), g.detach(), v)
        return [(at, cotangent) for at, cotangent in ((g, of_g), (self.x, of_x)) if at.requires_grad]

    def _cotangents(self, x: Tensor, g: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        samples, geometry = len(v), self.geometry
        if geometry is None or (geometry.pointwise and set(geometry.stride) == {1}):
            matrix = v.view(samples, g.shape[1], x.shape[1])
            of_g = matrix @ x.reshape(*x.shape[:2], -1)
            of_x = matrix.mT @ g.reshape(*g.shape[:2], -1)
            return of_g.view(g.shape), of_x.view(x.shape)
        # Every sample is a group of channels of one convolution, with kernels of its own.
        outputs, *rest = geometry.weight_shape
        own = Geometry(_pair(geometry.stride), _pair(geometry.padding), _pair(geometry.dilation), samples * geometry.groups)
        kernels = v.reshape(samples * outputs, *rest)
        wide_x, wide_g = (tensor.reshape(1, -1, *tensor.shape[2:]) for tensor in (x, g))
        of_g, of_x = own.forward(wide_x, kernels), own.input_gradient(wide_g, kernels, x.shape[2:])
        return of_g.reshape(g.shape), of_x.reshape(x.shape)


class LayerWatch(TorchFunctionMode):
    """Sees the layers of a forward pass and runs them with their weights as constants."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.layers: list[WatchedLayer] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        run = {torch.conv2d: self._convolution, F.linear: self._linear}.get(func)
        name = self.names.get(id(args[1])) if run is not None and len(args) > 1 else None
        if run is None or name is None:
            return func(*args, **(kwargs or {}))
        return run(name, *args, **(kwargs or {}))

    def _linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if x.dim() != 2:
            raise ConfigurationError(f"--screen: {name} is applied to {tuple(x.shape)}, only (N, F) is known")
        return self._seen(name, x, F.linear(x, weight.detach(), bias), None)

    def _convolution(
        self,
        name: str,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if isinstance(padding, str) or bias is not None:
            raise ConfigurationError(f"--screen: the convolution of {name} has a bias or padding by name, which are not known")
        geometry = Geometry(_pair(stride), _pair(padding), _pair(dilation), groups)
        y = convolution(x, weight.detach(), geometry)
        return self._seen(name, x, y, ConvGeometry(tuple(weight.shape), *geometry))

    def _seen(self, name: str, x: Tensor, y: Tensor, geometry: ConvGeometry | None) -> Tensor:
        y = y if y.requires_grad else y.requires_grad_()
        self.layers.append(WatchedLayer(name, x, y, geometry))
        return y


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _check(layers: list[WatchedLayer], stands: Mapping[str, Tensor], sets: Mapping[str, str], y: Tensor) -> None:
    leaves, names = graph_leaves(y), [layer.name for layer in layers]
    other = [name for name in sets if id(stands[name]) in leaves or names.count(name) > 1]
    if other:
        raise ConfigurationError(f"--screen: {other[0]} is used more than once, or by something else than a layer; leave it out")


def _kernels(layers: list[WatchedLayer], rows: list[Tensor], sets: Mapping[str, str], y: Tensor) -> dict[str, Tensor]:
    totals = {key: y.new_zeros(1, len(y), len(y), dtype=torch.float64) for key in set(sets.values())}
    for layer, own in zip(layers, rows, strict=True):
        add_gram(totals[sets[layer.name]], own.unsqueeze(0))
    return {key: total[0] for key, total in totals.items()}


def _derivatives(kernels: Kernels, value: Callable[[Kernels], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The value and, by set, M + M^T."""
    leaves = {key: kernel.clone().requires_grad_() for key, kernel in kernels.items()}
    number = value(leaves)
    found = torch.autograd.grad(number, list(leaves.values()), allow_unused=True)
    zero = torch.zeros_like(next(iter(kernels.values())))
    filled = {key: zero if m is None else m for key, m in zip(leaves, found, strict=True)}
    return number.detach(), {key: m + m.mT for key, m in filled.items()}
