"""Proxies of gradients: grad_norm, snip, fisher and grasp of the loss, jacov and epe_nas of the outputs' sum by the images."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from engine.scoring.kernels import selects
from engine.scoring.plain import differentiable, flat_outputs, run_on, stand_ins
from engine.scoring.proxies.patterns import Patterns
from engine.scoring.proxies.values import degenerate, scored
from engine.scoring.result import Score

GRADIENTS = ("grad_norm", "snip", "fisher", "grasp")
JACOBIANS = ("jacov", "epe_nas")
LAYERS = frozenset({F.linear, F.conv1d, F.conv2d, F.conv3d})
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# The published offset under logarithms and reciprocals of jacov and epe_nas.
OFFSET = 1e-5


class LayerOutputs(TorchFunctionMode):
    """Keeps the outputs of convolutions and linear layers, whose gradients fisher needs."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = func(*args, **(kwargs or {}))
        if func in LAYERS:
            self.kept.append(y)
        return y


def gradient_scores(
    model: nn.Module, images: Tensor, labels: Tensor | None, wanted: Collection[str], patterns: Patterns | None = None
) -> dict[str, Score]:
    """The ``wanted`` ones of :data:`GRADIENTS` and :data:`JACOBIANS`, from one forward pass that ``patterns`` may watch too.

    Weights are those of all layers that are not norms. A loss without any weight gradient, or an image whose gradient is
    constant, makes the scores that need it ``singular``.
    """
    selected = selects("weights", model)
    tracked = {name for name, p in model.named_parameters() if selected(name, p)} if set(wanted) & set(GRADIENTS) else set()
    stands = stand_ins(model, tracked)
    weights = [stands[name] for name in stands if name in tracked]

    def body() -> dict[str, Score]:
        x = images.detach().clone().requires_grad_(bool(set(wanted) & set(JACOBIANS)))
        outputs = LayerOutputs() if "fisher" in wanted else nullcontext()
        with patterns or nullcontext(), outputs:
            y = differentiable(flat_outputs(model(x), len(x)))
        if patterns is not None:
            patterns.see_outputs(y)
        found: dict[str, Score] = {}
        if x.requires_grad:
            found |= jacobian_scores(_input_gradient(y, x, bool(weights)), labels, wanted)
        if weights:
            kept = outputs.kept if isinstance(outputs, LayerOutputs) else []
            if "fisher" in wanted and not kept:
                raise ValueError("model: no convolution or linear layer was seen in its forward pass, whose outputs fisher needs")
            found |= _loss_scores(F.cross_entropy(y, checked_labels(labels, y)), weights, kept, wanted)
        return found

    return run_on(model, stands, body)


def checked_labels(labels: Tensor | None, y: Tensor) -> Tensor:
    """Labels (N,) that the loss of outputs (N, K) can take, int64 on their device; else a ``ValueError``."""
    whole = labels is not None and labels.shape == y.shape[:1] and labels.dtype in _INTEGERS
    if labels is None or not whole or int(labels.min()) < 0 or int(labels.max()) >= y.shape[1]:
        raise ValueError(
            f"data: the loss needs {len(y)} integer labels from 0 to {y.shape[1] - 1}; give a LabelledBatch(images, labels)"
        )
    return labels.to(y.device, torch.int64)


def _loss_scores(loss: Tensor, weights: list[Tensor], kept: list[Tensor], wanted: Collection[str]) -> dict[str, Score]:
    """``kept`` are the layers' outputs if fisher is wanted."""
    if not loss.requires_grad:
        return {name: degenerate(name) for name in GRADIENTS if name in wanted}
    reached = [y for y in kept if y.requires_grad]
    grasp = "grasp" in wanted
    everything = torch.autograd.grad(loss, [*weights, *reached], create_graph=grasp, allow_unused=True)
    pairs = [(w, g) for w, g in zip(weights, everything, strict=False) if g is not None]
    if not any(bool(g.detach().any()) for _, g in pairs):
        return {name: degenerate(name) for name in GRADIENTS if name in wanted}
    values: dict[str, Tensor] = {}
    if grasp:
        # T = 1, and the Hessian-gradient product of the whole batch.
        product = torch.stack([(g * g.detach()).sum() for _, g in pairs]).sum()
        curved = torch.autograd.grad(product, [w for w, _ in pairs], allow_unused=True)
        terms = [(w.detach() * h).sum() for (w, _), h in zip(pairs, curved, strict=True) if h is not None]
        values["grasp"] = -torch.stack(terms).sum()
    values["grad_norm"] = torch.stack([g.detach().norm() for _, g in pairs]).sum()
    values["snip"] = torch.stack([(w * g).detach().abs().sum() for w, g in pairs]).sum()
    if reached:
        gradients = everything[len(weights) :]
        parts = [channel_saliency(y.detach(), g.detach()) for y, g in zip(reached, gradients, strict=True) if g is not None]
        values["fisher"] = torch.stack(parts).sum()
    found = {name: scored(name, float(value)) for name, value in values.items() if name in wanted}
    return found if reached or "fisher" not in wanted else {**found, "fisher": degenerate("fisher")}


def channel_saliency(y: Tensor, gradient: Tensor) -> Tensor:
    """Fisher: half the mean over images of the squared inner product of a channel (N, C, ...) and its gradient, summed over
    channels.
    """
    product = (y * gradient).flatten(2).sum(-1) if y.dim() > 2 else y * gradient
    return product.square().mean(0).sum() / 2


def _input_gradient(y: Tensor, x: Tensor, keep: bool) -> np.ndarray:
    """Gradients of each image's summed outputs, (N, D) float64; zero where the outputs do not depend on the images."""
    if not y.requires_grad:
        return np.zeros((len(x), x[0].numel()))
    (gradient,) = torch.autograd.grad(y.sum(), x, retain_graph=keep, allow_unused=True)
    return np.zeros((len(x), x[0].numel())) if gradient is None else gradient.flatten(1).double().cpu().numpy()


def jacobian_scores(rows: np.ndarray, labels: Tensor | None, wanted: Collection[str]) -> dict[str, Score]:
    """The ``wanted`` ones of :data:`JACOBIANS` from the gradients (N, D) of each image's summed outputs."""
    names = [name for name in JACOBIANS if name in wanted]
    if not np.isfinite(rows).all():
        return {name: scored(name, np.nan) for name in names}
    if (np.ptp(rows, axis=1) == 0).any():
        return {name: degenerate(name) for name in names}
    functions: Mapping[str, Any] = {"jacov": _jacov, "epe_nas": lambda rows: _epe_nas(rows, labels)}
    return {name: scored(name, functions[name](rows)) for name in names}


def _jacov(rows: np.ndarray) -> float:
    eigenvalues = np.linalg.eigvalsh(np.atleast_2d(np.corrcoef(rows))).clip(min=0) + OFFSET
    return float(-np.sum(np.log(eigenvalues) + 1 / eigenvalues))


def _epe_nas(rows: np.ndarray, labels: Tensor | None) -> float:
    if labels is None or len(labels) != len(rows):
        raise ValueError("data: epe_nas needs a label for each image; give a LabelledBatch(images, labels)")
    classes = labels.cpu().numpy()
    sums = [_log_correlations(rows[classes == label]) for label in np.unique(classes)]
    if len(sums) <= 100:
        return float(np.abs(sums).sum())
    return float(np.abs(np.subtract.outer(sums, sums)).sum() / len(sums))


def _log_correlations(rows: np.ndarray) -> float:
    correlations = np.atleast_2d(np.corrcoef(rows))
    return float(np.log(np.abs(correlations) + OFFSET).sum() / (len(rows) if len(rows) > 100 else 1))
