"""The way of :mod:`engine.learning.mlp` for an :class:`~engine.spaces.networks.MLP`, masked or not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.learning.evaluation import Outputs
from engine.learning.inner import Params
from engine.learning.masking import MaskedNetwork, score_name
from engine.learning.mlp import Dense, meta_gradient, query_outputs
from engine.learning.mlp_passes import Workspace
from engine.learning.outer import ManyTasks, Problem, Sums, mean_cross_entropy
from engine.learning.tasks import Task
from engine.spaces.networks import MLP, MLP_EPS

ADAPTED_NUMBERS = 16_000_000  # weights of as many tasks as are learned at once where each task has a matrix of its own


def is_written_out(problem: Problem, module: nn.Module, network: MaskedNetwork | None = None) -> bool:
    """Whether :func:`mlp_batch` computes this: cross-entropy of an MLP whose layers have one inner rate each, and no scale."""
    if not isinstance(module, MLP) or problem.criterion is not mean_cross_entropy or (network is not None and network.scale):
        return False
    groups = [[name for name, _ in module.named_parameters() if name.startswith(prefix)] for prefix in _prefixes(module)]
    return all(len({problem.rates.get(name, 0.0) for name in group if not _inert(name)}) == 1 for group in groups)


def mlp_batch(problem: Problem, module: nn.Module, network: MaskedNetwork | None = None) -> ManyTasks:
    """All tasks as one batch without automatic differentiation; memory is kept from call to call.

    ``network`` gives the masks of a masked module, of which only scores may be learned. Gradients of biases in front of
    BatchNorm are exactly zero. :class:`ValueError` where :func:`is_written_out` does not hold.
    """
    memory, prefixes = Workspace(), _prefixes(_checked(problem, module, network))
    if network is not None and set(network.names) & set(problem.learned):
        raise ValueError("problem: of masked parameters only the scores can be learned here; use `automatic` for both")

    @torch.no_grad()
    def run(params: Params, tasks: Task) -> Sums:
        masks = {} if network is None else _masks(network, params, memory)
        layers = [_layer(problem, params, masks, prefix, memory) for prefix in prefixes]
        found = meta_gradient(layers, tasks, problem.steps, first_order=problem.first_order, workspace=memory)
        gradients = {n: torch.zeros_like(params[n]) for n in problem.learned if _inert(n)}
        for prefix, own in zip(prefixes, found.layers, strict=True):
            name = _weight(prefix)
            if own.weight is not None and name in masks:
                phi, product = params[name], own.product
                score = own.weight.mul_(phi) if product is None else product.addcmul_(own.weight, phi)
                gradients[score_name(name)] = score
            elif own.weight is not None:
                gradients[name] = own.weight
            vectors = {"normalize.weight": own.gain, "normalize.bias": own.shift, "bias": own.bias}
            gradients |= {prefix + end: value for end, value in vectors.items() if value is not None}
        return Sums({n: gradients[n] for n in problem.learned}, found.losses, found.outputs)

    return run


def mlp_outputs(problem: Problem, module: nn.Module, network: MaskedNetwork | None = None, *, alone: bool = False) -> Outputs:
    """The query outputs of an MLP by :func:`engine.learning.mlp.query_outputs`; arguments as of :func:`mlp_batch`.

    Tasks of a masked network, whose adapted weights are formed, are learned a few at a time: as many as fit into
    :data:`ADAPTED_NUMBERS`.
    """
    memory, prefixes = Workspace(), _prefixes(_checked(problem, module, network))

    @torch.no_grad()
    def run(params: Params, tasks: Task) -> Tensor:
        masks = {} if network is None else _masks(network, params, memory)
        layers = [_layer(problem, params, masks, prefix, memory) for prefix in prefixes]
        total = len(tasks.support_y)
        size = max(1, ADAPTED_NUMBERS // sum(mask.numel() for mask in masks.values())) if masks else total
        parts = [tasks.take(slice(first, first + size)) for first in range(0, total, size)]
        return torch.cat([query_outputs(layers, part, problem.steps, alone=alone, workspace=memory) for part in parts])

    return run


def _checked(problem: Problem, module: nn.Module, network: MaskedNetwork | None) -> MLP:
    if not is_written_out(problem, module, network) or not isinstance(module, MLP):
        raise ValueError("problem: only the cross-entropy of an MLP with one inner rate a layer is written out")
    return module


def _prefixes(module: MLP) -> list[str]:
    return [*(f"features.{layer}." for layer in range(len(module.features))), "classifier."]


def _weight(prefix: str) -> str:
    return prefix + ("weight" if prefix == "classifier." else "linear.weight")


def _inert(name: str) -> bool:
    return name.endswith("linear.bias")


def _masks(network: MaskedNetwork, params: Params, memory: Workspace) -> dict[str, Tensor]:
    """The masks as numbers, in memory that the next call takes over."""
    masks = {}
    for name, sigma in network.thresholds.items():
        scores = params[score_name(name)]
        masks[name] = torch.ge(scores, sigma, out=memory.matrices(scores.shape, scores, "mask", name))
    return masks


def _layer(problem: Problem, params: Params, masks: dict[str, Tensor], prefix: str, memory: Workspace) -> Dense:
    name = _weight(prefix)
    weight, mask, learned = params[name], masks.get(name), name in problem.learned
    if mask is not None:
        weight = torch.mul(weight, mask, out=memory.matrices(weight.shape, weight, "masked", name))
        learned = score_name(name) in problem.learned
    rate = problem.rates.get(name, 0.0)
    if prefix == "classifier.":
        return Dense(weight, rate, learned, mask, bias=params["classifier.bias"])
    gain, shift = params[f"{prefix}normalize.weight"], params[f"{prefix}normalize.bias"]
    return Dense(weight, rate, learned, mask, gain, shift, eps=MLP_EPS)
