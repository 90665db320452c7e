"""The supernet of :mod:`engine.spaces.metanas` as one function of a flat vector of weights, edges stacked along channels.

All edges that leave the same states run as one convolution, one norm and one sum (six edges in the first stage of a cell), the
weight of an operation is the scale of its last norm, and pools are taken once a state. On a CPU, channels_last, this is what
makes a step fast; the numbers are those of :class:`~engine.spaces.supernet.Supernet`, which stays the readable reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.errors import ConfigurationError
from engine.spaces.cells import Cell
from engine.spaces.norms import BatchStatistics
from engine.spaces.operations import Chain
from engine.spaces.space import CellPlan, Space
from engine.spaces.stacked_operations import RUN, SKIP, average_pool, batch_norm, reduced, rows
from engine.spaces.supernet import Supernet

CONVOLUTIONS = ("conv_1x5_5x1", "conv_3x3", "sep_conv_3x3", "dil_conv_3x3")
POOLS = ("max_pool_3x3BN", "avg_pool_3x3BN")
SUPPORTED = frozenset((*CONVOLUTIONS, *POOLS, SKIP))

Weights = Mapping[tuple[str, int], Tensor]  # (operation, layer) -> the layer's weights of all edges of a stage, stacked


@dataclass(frozen=True)
class Stage:
    """Edges of a cell that can run together, because their sources are there: those of the inputs, then those of each node."""

    sources: tuple[int, ...]
    edges: tuple[int, ...]
    stride: int


def stages(space: Space, kind: str) -> list[Stage]:
    """The stages of a kind of cell, edges ordered by source."""
    found = []
    for sources in (tuple(range(space.inputs)), *((s,) for s in range(space.inputs, space.states))):
        edges = tuple(e for s in sources for e, (source, _) in enumerate(space.edges) if source == s)
        if edges:
            found.append(Stage(sources, edges, space.stride(kind, edges[0])))
    return found


@dataclass
class Mix:
    """How one cell is mixed: ``weights`` (E, O), which operations run at all, and DropPath's masks (E, O, N) or None."""

    weights: Tensor
    alive: Sequence[Sequence[bool]]
    masks: Tensor | None = None


class StackedCell:
    """One cell: :meth:`forward` takes its stacked weights, the rectified outputs of the two cells before, and its mix."""

    def __init__(self, space: Space, plan: CellPlan) -> None:
        self.space, self.plan = space, plan
        self.stages = stages(space, plan.kind)
        self.order = {name: o for o, name in enumerate(space.operations)}

    def forward(self, inputs: Sequence[Tensor], weights: Sequence[Weights], mix: Mix) -> Tensor:
        """Preprocessed inputs (N, C, H, W) -> the nodes, concatenated (N, nodes*C, H', W')."""
        states: list[Tensor | None] = [*inputs, *[None] * self.space.nodes]
        for stage, stacked in zip(self.stages, weights, strict=True):
            sources = {s: x for s in stage.sources if (x := states[s]) is not None}
            if sources:
                self._run(stage, sources, stacked, mix, states)
        size = [-(-n // 2) if self.plan.reduces else n for n in inputs[1].shape[2:]]
        empty = inputs[1].new_zeros(len(inputs[1]), self.plan.channels, *size)
        return torch.cat([empty if x is None else x for x in states[self.space.inputs :]], 1)

    def _run(self, stage: Stage, sources: dict[int, Tensor], weights: Weights, mix: Mix, states: list[Tensor | None]) -> None:
        """Add everything that leaves the stage's sources to the nodes it leads to."""
        rectified = {s: x.relu() for s, x in sources.items()}
        sums: dict[tuple[int, ...], Tensor] = {}
        for name, edges, y in self._convolved(stage, rectified, weights, mix):
            if mix.masks is not None:
                masks = mix.masks[list(edges), self.order[name]].t()
                y = y * masks.repeat_interleave(self.plan.channels, 1)[..., None, None]
            sums[edges] = sums[edges].add_(y) if edges in sums else y  # no norm or mask keeps its output
        for edges, total in sums.items():
            for e, y in zip(edges, total.split(self.plan.channels, 1), strict=True):
                self._add(states, e, y)
        self._pool(stage, sources, mix, states)
        if stage.stride == 1:
            for e in self._alive(stage, SKIP, mix, sources):
                self._add(states, e, sources[self.space.edges[e][0]], mix.weights[e, self.order[SKIP]])

    def _add(self, states: list[Tensor | None], edge: int, y: Tensor, weight: Tensor | None = None) -> None:
        target = self.space.edges[edge][1]
        before = states[target]
        if weight is None:
            states[target] = y if before is None else before + y
        else:
            states[target] = y * weight if before is None else torch.addcmul(before, y, weight)

    def _alive(self, stage: Stage, name: str, mix: Mix, sources: Mapping[int, Tensor]) -> tuple[int, ...]:
        """The stage's edges on which an operation runs."""
        o = self.order.get(name)
        if o is None:
            return ()
        return tuple(e for e in stage.edges if mix.alive[e][o] and self.space.edges[e][0] in sources)

    def _convolved(
        self, stage: Stage, rectified: Mapping[int, Tensor], weights: Weights, mix: Mix
    ) -> list[tuple[str, tuple[int, ...], Tensor]]:
        """(operation, edges, weighted output (N, len(edges)*C, H', W')) of everything that has weights."""
        found = []
        inputs: dict[tuple[int, ...], Tensor] = {}
        for name in (*CONVOLUTIONS, SKIP) if stage.stride == 2 else CONVOLUTIONS:
            edges = self._alive(stage, name, mix, rectified)
            if not edges:
                continue
            if edges not in inputs:  # every edge its own copy of its source, made once for all operations
                inputs[edges] = _beside([rectified[self.space.edges[e][0]] for e in edges])
            layers = [rows(weights[name, i], stage.edges, edges) for i in range(4) if (name, i) in weights]
            if name == "conv_1x5_5x1" and edges == stage.edges and len(edges) % len(rectified) == 0:
                x, groups = _beside(list(rectified.values())), len(rectified)  # here a source can be read once
            else:
                x, groups = inputs[edges], len(edges)
            y = RUN[name](x, layers, stage.stride, groups, len(edges))
            scale = mix.weights[list(edges), self.order[name]]
            found.append((name, edges, batch_norm(y, scale.repeat_interleave(self.plan.channels))))
        return found

    def _pool(self, stage: Stage, sources: dict[int, Tensor], mix: Mix, states: list[Tensor | None]) -> None:
        """Both pools of every source, once each, and their share in every node."""
        pooled: list[Tensor] = []
        labels: list[tuple[str, int]] = []
        for name in POOLS:
            needed = sorted({self.space.edges[e][0] for e in self._alive(stage, name, mix, sources)})
            if needed:
                x = _beside([sources[s] for s in needed])
                pooled.append(F.max_pool2d(x, 3, stage.stride, 1) if name == POOLS[0] else average_pool(x, stage.stride))
                labels += [(name, s) for s in needed]
        if not pooled:
            return
        normal = dict(zip(labels, batch_norm(_beside(pooled)).split(self.plan.channels, 1), strict=True))
        for name in POOLS:
            o = self.order.get(name)
            for e in self._alive(stage, name, mix, sources):
                weight = mix.weights[e, o]
                if mix.masks is not None:
                    weight = (weight * mix.masks[e, o])[:, None, None, None]
                self._add(states, e, normal[name, self.space.edges[e][0]], weight)


def _beside(maps: Sequence[Tensor]) -> Tensor:
    """Maps (N, C, H, W) side by side (N, len(maps)*C, H, W); one alone is not copied."""
    return torch.cat(list(maps), 1) if len(maps) > 1 else maps[0]


class StackedSupernet:
    """A supernet's forward pass on a flat vector of weights (P,), whose order is the stacks' own.

    :meth:`pack` and :meth:`unpack` translate to the parameters of the reference network by name. Takes spaces with two inputs and
    the operations of the MetaNAS space, norms that know nothing but the batch, and no tail; others are a
    :class:`ConfigurationError`.
    """

    def __init__(self, reference: Supernet) -> None:
        self.space = reference.space
        unknown = set(self.space.operations) - SUPPORTED
        cells = [cast(Cell, cell) for cell in reference.cells]
        plain = self.space.inputs == 2 and isinstance(cast(Chain, cells[0].preprocess0)[-1], BatchStatistics)
        if unknown or not plain or reference.tail_norm is not None:
            raise ConfigurationError(
                f"space {self.space.name!r}: cannot stack it; wanted are two inputs, norm='batchstat', no tail "
                f"and no operations but {', '.join(sorted(SUPPORTED))}"
            )
        self.kinds = reference.kinds
        self.cells = [StackedCell(self.space, cell.plan) for cell in cells]
        self._entries = _entries(reference, self.cells)
        shapes = {name: p.shape for name, p in reference.named_parameters()}
        self._shapes = [(sum(shapes[n][0] for n in names), *shapes[names[0]][1:]) for _, names in self._entries]
        self._named = [(n, shapes[n]) for _, names in self._entries for n in names]
        self._sizes = [torch.Size(shape).numel() for shape in self._shapes]
        self.size = sum(self._sizes)

    def pack(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The reference network's parameters -> (P,)."""
        return torch.cat([parameters[name].detach().flatten() for name, _ in self._named])

    def unpack(self, flat: Tensor) -> dict[str, Tensor]:
        """(P,) -> the reference network's parameters, as views."""
        parts = flat.split([shape.numel() for _, shape in self._named])
        return {name: part.view(shape) for (name, shape), part in zip(self._named, parts, strict=True)}

    def __call__(
        self, flat: Tensor, x: Tensor, weights: Tensor, alive: Tensor | None = None, masks: Tensor | None = None
    ) -> Tensor:
        """Logits (N, K) of images ``x`` (N, C_in, H, W).

        ``weights`` (T, E, O) as :meth:`~engine.spaces.metanas.Architecture.mixture_weights` makes them. ``alive``, bool (T, E, O)
        on the host, leaves out what does not weigh (default: everything runs). ``masks`` (cells, E, O, N) are DropPath's, zero or
        1/(1-p); skip connections of stride 1 ignore theirs. Nothing is read back to the host.
        """
        pieces = [p.view(s) for p, s in zip(flat.split(self._sizes), self._shapes, strict=True)]
        tensors = {key: piece for (key, _), piece in zip(self._entries, pieces, strict=True)}
        table = [[[True] * len(self.space.operations)] * len(self.space.edges)] * len(self.space.kinds)
        runs = table if alive is None else alive.tolist()
        # After the first convolution, since images of one channel have no layout that could carry over.
        x = F.conv2d(x, tensors["stem", 0], None, 1, 1).contiguous(memory_format=torch.channels_last)
        x = batch_norm(x, tensors["stem", 1], tensors["stem", 2])
        before: Tensor | None = None
        for k, cell in enumerate(self.cells):
            rectified = x.relu()
            kind = self.space.kinds.index(self.kinds[k])
            inputs = [
                self._preprocessed(tensors, k, 0, rectified if before is None else before),
                self._preprocessed(tensors, k, 1, rectified),
            ]
            stacked = [{key[3:]: t for key, t in tensors.items() if key[:3] == (k, "stage", g)} for g in range(len(cell.stages))]
            x = cell.forward(inputs, stacked, Mix(weights[kind], runs[kind], None if masks is None else masks[k]))
            before = rectified
        return F.linear(x.mean((2, 3)), tensors["head", 0], tensors["head", 1])

    def _preprocessed(self, tensors: Mapping, k: int, which: int, x: Tensor) -> Tensor:
        first = tensors[k, "input", which, 0]
        if (k, "input", which, 1) not in tensors:
            return batch_norm(F.conv2d(x, first))
        return batch_norm(reduced(x, [first, tensors[k, "input", which, 1]], 2, 1, 1))


def _entries(reference: Supernet, cells: Sequence[StackedCell]) -> list[tuple[tuple, list[str]]]:
    """The stacks in their order: a key and the reference's parameters that lie one after the other in it."""
    names = [name for name, _ in reference.named_parameters()]
    entries: list[tuple[tuple, list[str]]] = [
        (("stem", i), [name]) for i, name in enumerate(n for n in names if n.startswith("stem"))
    ]
    for k, cell in enumerate(cells):
        for which in (0, 1):
            own = [n for n in names if n.startswith(f"cells.{k}.preprocess{which}.")]
            entries += [((k, "input", which, i), [name]) for i, name in enumerate(own)]
        for g, stage in enumerate(cell.stages):
            for operation in reference.space.operations:
                layers = zip(
                    *([n for n in names if n.startswith(f"cells.{k}.edges.{e}.{operation}.")] for e in stage.edges), strict=True
                )
                entries += [((k, "stage", g, operation, i), list(layer)) for i, layer in enumerate(layers)]
    return entries + [(("head", i), [name]) for i, name in enumerate(n for n in names if n.startswith("classifier"))]
