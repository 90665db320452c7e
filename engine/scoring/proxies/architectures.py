"""Proxies of many architectures of one supernet at once: an architecture is a mixture of one operation an edge.

G architectures run as one batch of G*N samples, each group of N with its own mixture, so all share the supernet's weights and
images. Every operation that some architecture has is computed for all of them: on a GPU, where calls cost more than arithmetic,
G architectures take little more time than one; on a CPU it is the loop over single networks that is faster.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.scoring.first_order import LayerWatch, WatchedLayer
from engine.scoring.kernels import gram, selects
from engine.scoring.plain import run_on, stand_ins
from engine.scoring.proxies.catalogue import PROXIES
from engine.scoring.proxies.flow import TINY
from engine.scoring.proxies.gradients import JACOBIANS, channel_saliency, checked_labels, jacobian_scores
from engine.scoring.proxies.norms import WithoutNorms
from engine.scoring.proxies.patterns import PATTERNS, Patterns
from engine.scoring.proxies.scores import LabelledBatch
from engine.scoring.proxies.spectra import parts_of, spectral_scores
from engine.scoring.proxies.values import degenerate, scored
from engine.scoring.result import Score
from engine.scoring.score import EpisodeBatch
from engine.spaces.mixture import uniform
from engine.spaces.supernet import Supernet

LOSS = ("grad_norm", "snip", "fisher")
BATCHED = frozenset(
    {*PATTERNS, *JACOBIANS, *LOSS, "synflow", *(name for name, proxy in PROXIES.items() if proxy.group in ("ntk", "metantk"))}
)
"""The proxies that a batch of architectures can be scored by; grasp, zen and the sizes are taken of single networks."""


def plain_scores(model: Supernet, alive: Tensor, batch: LabelledBatch, wanted: Collection[str]) -> list[dict[str, Score]]:
    """The ``wanted`` ones of :data:`BATCHED` that are not kernels, of G architectures ``alive`` (G, T, E, O), one dict each.

    ``model`` has batch statistics for norms (``norm="batchstat"``). All but synflow come from one forward pass of G*N samples, a
    backward pass to the images where jacov or epe_nas is wanted, and one to the layers with per-sample weight gradients where a
    proxy of the loss is. Up to rounding these are what :func:`~engine.scoring.proxies.scores.scores` gives of each network alone
    with the same weights, if no operation is alive that nothing feeds (:func:`engine.spaces.nas_bench_201.reached`): its
    rectifier would count.
    """
    found: list[dict[str, Score]] = [{} for _ in alive]
    if set(wanted) & {*PATTERNS, *JACOBIANS, *LOSS}:
        _update(found, _watched(model, alive, batch, wanted))
    if "synflow" in wanted:
        _update(found, [{"synflow": score} for score in _flows(model, alive, batch.images)])
    return found


def kernel_scores(model: Supernet, alive: Tensor, batch: EpisodeBatch, wanted: Collection[str]) -> list[dict[str, Score]]:
    """The ``wanted`` reductions of NTK and MetaNTKs of G architectures ``alive`` (G, T, E, O), one dict each.

    ``model`` has norms that keep samples apart. Cost: one forward and one backward pass of G*N samples, and G Gram matrices.
    """
    weight = model.classifier.weight
    groups, images = len(alive), torch.cat([batch.query, batch.support])
    mixture = uniform(alive, dtype=weight.dtype, device=weight.device)
    parts = gram(model, (images.repeat(groups, 1, 1, 1), mixture), parts_of(model, wanted), groups=groups)
    counts = {"tasks": batch.tasks, "query": len(batch.query) // batch.tasks, "support": len(batch.support) // batch.tasks}
    single = [{name: (part[g] if groups > 1 else part) for name, part in parts.items()} for g in range(groups)]
    return [spectral_scores(each, wanted, **counts) for each in single]


def _update(found: list[dict[str, Score]], more: list[dict[str, Score]]) -> None:
    for own, new in zip(found, more, strict=True):
        own.update(new)


def _watched(model: Supernet, alive: Tensor, batch: LabelledBatch, wanted: Collection[str]) -> list[dict[str, Score]]:
    """What one forward pass, and backward passes from it, show."""
    groups, samples = len(alive), len(batch.images)
    with_loss = bool(set(wanted) & set(LOSS))
    patterns = Patterns(samples, groups) if set(wanted) & set(PATTERNS) else None
    stands, watch = _tracked(model) if with_loss else (stand_ins(model, set()), None)
    mixture = uniform(alive, device=batch.images.device)

    def body() -> list[dict[str, Score]]:
        x = batch.images.repeat(groups, 1, 1, 1).requires_grad_(bool(set(wanted) & set(JACOBIANS)))
        with torch.set_grad_enabled(with_loss or x.requires_grad), watch or nullcontext(), patterns or nullcontext():
            y = model(x, mixture)
        found: list[dict[str, Score]] = [{} for _ in alive]
        if patterns is not None:
            patterns.see_outputs(y)
            found = [{name: score for name, score in each.items() if name in wanted} for each in patterns.scores()]
        if x.requires_grad:
            (gradient,) = torch.autograd.grad(y.sum(), x, retain_graph=with_loss)
            rows = gradient.flatten(1).double().cpu().unflatten(0, (groups, samples)).numpy()
            _update(found, [jacobian_scores(own, batch.labels, wanted) for own in rows])
        if watch is not None:
            labels = checked_labels(batch.labels, y[:samples]).repeat(groups)
            loss = F.cross_entropy(y, labels, reduction="sum") / samples
            _update(found, _loss_scores(loss, watch.layers, stands, groups, wanted))
        return found

    return run_on(model, stands, body)


def _tracked(model: nn.Module, *, positive: bool = False) -> tuple[dict[str, Tensor], LayerWatch]:
    """Stand-ins for the parameters, and a watch over the layers whose weights count; ``positive`` ones are absolute values in
    float64, with biases zero.
    """
    selected = selects("weights", model)
    names = {name for name, p in model.named_parameters() if selected(name, p)}
    stands = stand_ins(model, names)
    if positive:
        stands = {name: (p.detach().abs() if name in names else torch.zeros_like(p)).double() for name, p in stands.items()}
    return stands, LayerWatch({id(stands[name]): name for name in names})


def _loss_scores(
    loss: Tensor, layers: list[WatchedLayer], stands: dict[str, Tensor], groups: int, wanted: Collection[str]
) -> list[dict[str, Score]]:
    """Each architecture's own weight gradients are the sums of its samples' ones: the loss is a sum over architectures."""
    found = torch.autograd.grad(loss, [layer.y for layer in layers], allow_unused=True)
    totals = {name: torch.zeros(groups, dtype=torch.float64) for name in LOSS}
    for layer, g in zip(layers, found, strict=True):
        if g is None:
            continue
        own = layer.rows(g).unflatten(0, (groups, -1)).sum(1)
        totals["grad_norm"] += own.norm(dim=1).double().cpu()
        totals["snip"] += (own * stands[layer.name].detach().flatten()).abs().sum(1).double().cpu()
        if "fisher" in wanted:
            pairs = zip(layer.y.detach().chunk(groups), g.chunk(groups), strict=True)
            totals["fisher"] += torch.stack([channel_saliency(y, part) for y, part in pairs]).double().cpu()
    reached = (totals["grad_norm"] != 0).tolist()
    names = [name for name in LOSS if name in wanted]
    return [
        {name: scored(name, float(totals[name][g])) if reached[g] else degenerate(name) for name in names} for g in range(groups)
    ]


def _flows(model: Supernet, alive: Tensor, images: Tensor) -> list[Score]:
    """:func:`~engine.scoring.proxies.flow.synflow` of each architecture: one image of ones each, which do not interact."""
    logarithms = _log_flows(model, alive, images, 1.0)
    if not bool((logarithms.isfinite() | logarithms.isneginf()).all()):
        small = _log_flows(model, alive, images, TINY) - 2 * torch.tensor(TINY).double().log()
        logarithms = torch.where(logarithms.isfinite() | logarithms.isneginf(), logarithms, small)
    return [degenerate("synflow") if value == -torch.inf else scored("synflow", value) for value in logarithms.tolist()]


def _log_flows(model: Supernet, alive: Tensor, images: Tensor, level: float) -> Tensor:
    stands, watch = _tracked(model, positive=True)
    ones = torch.full((len(alive), *images.shape[1:]), level, dtype=torch.float64, device=images.device)
    mixture = uniform(alive, dtype=torch.float64, device=images.device)

    def body() -> Tensor:
        with torch.enable_grad(), watch, WithoutNorms():
            y = model(ones, mixture)
        found = torch.autograd.grad(y, [layer.y for layer in watch.layers], torch.full_like(y, level), allow_unused=True)
        total = torch.zeros(len(alive), dtype=torch.float64, device=y.device)
        for layer, g in zip(watch.layers, found, strict=True):
            if g is not None:
                total += (layer.rows(g) * stands[layer.name].flatten()).abs().sum(1)
        return torch.where(total.isfinite(), total.log(), torch.nan).cpu()

    return run_on(model, stands, body)
