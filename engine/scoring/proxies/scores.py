"""Many proxies of one network at once, in as few passes as they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.scoring.kernels import selects
from engine.scoring.plain import flat_outputs, run_on, stand_ins, untouched
from engine.scoring.proxies.catalogue import PROXIES, Group
from engine.scoring.proxies.flow import synflow
from engine.scoring.proxies.gradients import gradient_scores
from engine.scoring.proxies.patterns import Patterns
from engine.scoring.proxies.size import sizes
from engine.scoring.proxies.spectra import kernel_scores
from engine.scoring.proxies.zen import zen
from engine.scoring.result import Score

# Groups that differentiate by the images or make images of their own, and that look at weights.
_OF_IMAGES: frozenset[Group] = frozenset({"jacobian", "flow", "zen"})
_OF_WEIGHTS: frozenset[Group] = frozenset({"gradients", "flow", "ntk", "metantk"})


class LabelledBatch(NamedTuple):
    """Images (N, ...) and their classes (N,)."""

    images: Tensor
    labels: Tensor


def scores(model: nn.Module, data: Any, metrics: Sequence[str], *, seed: int = 0) -> dict[str, Score]:
    """Score an untrained network by several proxies that share their passes; returns them by name, in the order asked for.

    ``data`` is a tensor of images (N, ...), a :class:`LabelledBatch` where a proxy looks at labels, or an
    :class:`~engine.scoring.score.EpisodeBatch` where one is of the MetaNTK (the others then see its queries and supports).
    ``seed`` draws what zen needs. The model is used in the mode it is in (proxies are published for batch statistics, train
    mode), and comes back as it was: parameters, gradients, buffers and global random state.

    Raises ``ValueError`` for an unknown name, or data or a model without what a proxy needs. Sources, costs and good ends are in
    :data:`~engine.scoring.proxies.catalogue.PROXIES`. Cost: ``patterns``, ``gradients`` and ``jacobian`` share one forward pass;
    all that is not a kernel costs at most 1.5 times grasp alone.
    """
    if isinstance(metrics, str):
        raise ValueError(f"metrics: expected a tuple or list of names, got {metrics!r}")
    unknown = [name for name in metrics if name not in PROXIES]
    if unknown:
        raise ValueError(f"metrics: unknown {unknown[0]!r}; known are {', '.join(PROXIES)}")
    images, labels, episodes = _unpacked(data)
    groups = {PROXIES[name].group for name in metrics}
    if "metantk" in groups and not episodes:
        raise ValueError("data: MetaNTK proxies take an EpisodeBatch(query, support, tasks)")
    _check_needs(model, images, metrics)
    found: dict[str, Score] = {}
    with untouched((images,)) as (x,):
        if groups & {"patterns", "gradients", "jacobian"}:
            found |= _watched(model, x, labels, metrics, groups)
        if "flow" in groups:
            found["synflow"] = synflow(model, x[:1])
        if "zen" in groups:
            found["zen"] = zen(model, x, seed)
        if "size" in groups:
            found |= sizes(model, x)
    if groups & {"ntk", "metantk"}:
        found |= kernel_scores(model, images, metrics, **episodes)
    return {name: found[name] for name in metrics}


def _check_needs(model: nn.Module, images: Tensor, metrics: Sequence[str]) -> None:
    if not images.dim() or not len(images):
        raise ValueError(f"data: expected at least one image (N, ...), got {tuple(images.shape)}")
    selected = selects("weights", model)
    weightless = not any(selected(name, p) for name, p in model.named_parameters())
    for name in metrics:
        if PROXIES[name].group in _OF_IMAGES and not images.is_floating_point():
            raise ValueError(f"data: {name} changes the images, which must be of a floating type, not {images.dtype}")
        if PROXIES[name].group in _OF_WEIGHTS and weightless:
            raise ValueError(
                f"model: {name} looks at weights, parameters of that name outside norms; {type(model).__name__} has none"
            )


def _watched(model: nn.Module, x: Tensor, labels: Tensor | None, metrics: Sequence[str], groups: set[Group]) -> dict[str, Score]:
    """What one forward pass, and backward passes from it, show."""
    if "patterns" not in groups:
        return gradient_scores(model, x, labels, metrics)
    patterns = Patterns(len(x))
    if groups & {"gradients", "jacobian"}:
        return gradient_scores(model, x, labels, metrics, patterns) | patterns.scores()[0]
    with torch.no_grad(), patterns:
        y = run_on(model, stand_ins(model, set()), lambda: model(x))
    patterns.see_outputs(flat_outputs(y, len(x)))
    return patterns.scores()[0]


def _unpacked(data: Any) -> tuple[Tensor, Tensor | None, dict[str, int]]:
    """Images, labels if there are any, and the counts of episodes if there are."""
    if isinstance(data, Tensor):
        return data, None, {}
    if isinstance(data, tuple) and all(isinstance(part, Tensor) for part in data[:2]):
        if len(data) == 2:
            return data[0], data[1], {}
        if len(data) == 3 and isinstance(data[2], int) and data[2] > 0 and not any(len(x) % data[2] for x in data[:2]):
            query, support, tasks = data
            counts = {"tasks": tasks, "query": len(query) // tasks, "support": len(support) // tasks}
            return torch.cat([query, support]), None, counts
    raise ValueError("data: expected images (N, ...), a LabelledBatch(images, labels) or an EpisodeBatch(query, support, tasks)")
