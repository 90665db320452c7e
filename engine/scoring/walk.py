"""Backward passes of K outputs at once: each step of the graph is taken K times before the next.

K ordinary passes would need every layer's K gradients kept until the last pass, or the layer's inputs read K times; here a
layer's K gradients are complete together, are used, and are dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Any

import torch
from torch import Tensor

from engine.kernels.depthwise import FrozenDepthwise
from engine.kernels.group_norm import FrozenGroupNorm
from engine.scoring.capture import Capture, Use

# Autograd functions written in Python whose backward may be called directly.
_OWN = (FrozenDepthwise, FrozenGroupNorm)

Take = Callable[[Use, list[Tensor]], None]
Gradients = list[Tensor | None]


def walkable(root: Any) -> bool:
    """Whether every step of a graph can be called from outside: TorchScript's and autograd functions written in Python cannot,
    except our own.
    """
    return all(_can_be_called(node) for node in _nodes(root))


def _can_be_called(node: Any) -> bool:
    if _is_native(node):
        return "DifferentiableGraphBackward" not in node.name()
    return getattr(node, "_forward_cls", None) in _OWN


def walk(root: Any, seeds: list[Tensor], capture: Capture, take: Take) -> None:
    """Send K cotangents of a graph's output down to its leaves; ``take(use, K gradients)`` hears of every watched output.

    ``root`` is the output's ``grad_fn``; the caller should not hold it, for the graph is released as it is left behind.

    Costs K backward passes through activations, and memory for the K gradients that are under way.
    """
    waiting = _consumers(root)
    pending: dict[Any, list[_Sum | None]] = {root: [_Sum(seeds)]}
    ready = [(-root._sequence_nr(), 0, root)]
    del root
    reached = 0
    owners: dict[Any, Any] = {}
    while ready:
        # The node made last goes first, as in autograd's own engine: it keeps the fewest gradients under way.
        *_, node = heappop(ready)
        owner = owners.pop(node, None)  # held while the node is at work
        arrived = [None if slot is None else slot.values for slot in pending.pop(node, [])]
        _report(node, arrived, capture, take)
        for following, number, values in _step(node, arrived, len(seeds)):
            if values is not None:
                _add(pending, following, number, values)
            waiting[following] -= 1
            if not _is_native(following):
                # Up to torch 2.11 the Python object of such a node does not keep the node itself; a reader of its output does.
                owners[following] = node, owner
            if waiting[following] == 0:
                del waiting[following]
                reached += 1
                heappush(ready, (-following._sequence_nr(), reached, following))


class _Sum:
    """K gradients of one output, added up from all its readers; the first addition makes tensors of our own, later ones reuse
    them.
    """

    def __init__(self, values: list[Tensor]) -> None:
        self.values, self.own = values, False

    def add(self, values: list[Tensor]) -> None:
        if self.own:
            for total, value in zip(self.values, values, strict=True):
                total += value
        else:
            self.values = [total + value for total, value in zip(self.values, values, strict=True)]
            self.own = True


def _add(pending: dict[Any, list[_Sum | None]], node: Any, number: int, values: list[Tensor]) -> None:
    slots = pending.setdefault(node, [None] * len(node._input_metadata))
    known = slots[number]
    if known is None:
        slots[number] = _Sum(values)
    else:
        known.add(values)


def _report(node: Any, arrived: list[list[Tensor] | None], capture: Capture, take: Take) -> None:
    for number, uses in capture.watched.pop(node, ()):
        gradients = arrived[number] if arrived else None
        if gradients is not None:
            for use in uses:
                if use.name not in capture.ignore:
                    take(use, gradients)


def _step(node: Any, arrived: list[list[Tensor] | None], count: int) -> Iterator[tuple[Any, int, list[Tensor] | None]]:
    """Call a node once a cotangent: yields (following node, its output's number, K gradients or None) for every edge."""
    edges = node.next_functions
    results: list[tuple[Tensor | None, ...]] = []
    if any(slot is not None for slot in arrived) and any(following is not None for following, _ in edges):
        call = node if _is_native(node) else node.apply
        with torch.no_grad():
            for k in range(count):
                found = call(*[None if slot is None else slot[k] for slot in arrived])
                results.append(found if isinstance(found, tuple) else (found,))
    arrived.clear()
    for index, (following, number) in enumerate(edges):
        if following is None:
            continue
        values = [result[index] for result in results]
        yield following, number, _completed(values, following._input_metadata[number])


def _completed(values: Gradients, metadata: Any) -> list[Tensor] | None:
    """What autograd's engine does to gradients between two nodes: summed over the axes that were broadcast, and cast."""
    shape, dtype = tuple(metadata.shape), metadata.dtype
    known = [value for value in values if value is not None]
    if not known:
        return None
    zero = None if len(known) == len(values) else known[0].new_zeros(shape)
    full = [zero if value is None else value for value in values]
    return [_fitted(value, shape, dtype) for value in full if value is not None]


def _fitted(value: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if value.shape != shape:
        value = value.sum_to_size(shape)
    return value if value.dtype == dtype else value.to(dtype)


def _is_native(node: Any) -> bool:
    return not isinstance(node, torch.autograd.function.BackwardCFunction)


def _nodes(root: Any) -> Iterator[Any]:
    seen, stack = {root}, [root]
    while stack:
        node = stack.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)


def _consumers(root: Any) -> Counter[Any]:
    """How many edges lead to each node."""
    return Counter(following for node in _nodes(root) for following, _ in node.next_functions if following is not None)


class Joined:
    """Collects the K gradients of each use from K separate backward passes, for graphs that cannot be walked.

    Keeps the gradients of all watched outputs until the last pass: K times the activations.
    """

    def __init__(self, take: Take) -> None:
        self.take = take
        self.known: dict[int, tuple[Use, dict[int, Tensor]]] = {}
        self.output = 0

    def arrive(self, use: Use, gradient: Tensor) -> None:
        """Take one use and the gradient of its output, in the pass of ``output``."""
        self.known.setdefault(id(use), (use, {}))[1][self.output] = gradient

    def run(self, y: Tensor, leaves: list[Tensor]) -> None:
        """Differentiate each output of ``y`` (N, K) down to ``leaves``, then hand on what was collected."""
        for self.output in range(y.shape[1]):
            torch.autograd.grad(y[:, self.output].sum(), leaves, retain_graph=True, allow_unused=True)
        while self.known:
            use, gradients = self.known.popitem()[1]
            zero = torch.zeros_like(next(iter(gradients.values())))
            self.take(use, [gradients.get(k, zero) for k in range(y.shape[1])])
