"""The macro network, which supernets and discretised networks share: stem, cells, pooling and a linear head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from engine.errors import ConfigurationError
from engine.spaces.cells import Cell, Lane
from engine.spaces.norms import norm_factory
from engine.spaces.operations import gated_relu
from engine.spaces.space import Space
from engine.spaces.stems import StridedStem

Watch = Callable[[int, Tensor], None]


class MacroNetwork(nn.Module):
    """Stem, cells one after the other, pooling and a linear head.

    ``operations[kind][e]`` names what edge ``e`` carries in cells of a kind, ``concat[kind]`` the states that make their output.
    ``stem`` and ``tail`` say whether there is a stem (3x3 convolution and norm) and a norm with ReLU before the pooling;
    ``stem_norm`` names the stem's norm where it is not ``norm``; ``pool`` max-pools what the cells read by that factor;
    ``strided_width`` puts ImageNet's stem of that width in the place of the plain one; ``cell`` builds a
    cell. The other arguments are those of
    :class:`~engine.spaces.supernet.Supernet`.
    """

    def __init__(
        self,
        space: Space,
        operations: Mapping[str, Sequence[Sequence[str]]],
        concat: Mapping[str, Sequence[int]],
        *,
        cells: int,
        channels: int,
        outputs: int,
        channels_in: int,
        norm: str,
        stem: bool,
        tail: bool,
        stem_norm: str | None = None,
        pool: int = 1,
        strided_width: int | None = None,
        cell: Callable[..., Cell] = Cell,
    ) -> None:
        super().__init__()
        if outputs < 1 or channels_in < 1:
            raise ConfigurationError(f"a network needs outputs and channels_in of at least 1, got {outputs} and {channels_in}")
        self.space = space
        make_norm = norm_factory(norm)
        width = strided_width or channels * space.stem_multiplier
        plans = space.layout(
            cells,
            channels,
            stem_channels=width if stem else channels_in,
            concatenated={kind: len(states) for kind, states in concat.items()},
        )
        self.stem: nn.Module | None = None
        self.stem_norm: nn.Module | None = None
        if strided_width is not None:
            plans = (replace(plans[0], follows_reduction=True), *plans[1:])
            self.stem = StridedStem(channels_in, width, norm_factory(stem_norm or norm))
        elif stem:
            self.stem = nn.Conv2d(channels_in, width, 3, padding=1, bias=False)
            self.stem_norm = norm_factory(stem_norm or norm)(width)
        self.pool = pool
        self.kinds = [plan.kind for plan in plans]
        self.cells = nn.ModuleList(cell(space, plan, operations[plan.kind], concat[plan.kind], make_norm) for plan in plans)
        width = plans[-1].channels * len(concat[plans[-1].kind])
        self.tail_norm = make_norm(width) if tail else None
        self.classifier = nn.Linear(width, outputs)

    def pooled(
        self, x: Tensor, lanes: Mapping[str, Lane] | Sequence[Lane], groups: int = 1, watch: Watch | None = None
    ) -> Tensor:
        """(B, C_in, H, W) -> the features (B, F) that the classifier reads; ``lanes`` mixes each kind of cell, or each cell.

        ``watch`` is told the index and the output of every cell.
        """
        before: Tensor | None = None
        if isinstance(self.stem, StridedStem):
            before, x = self.stem(x, groups)
        elif self.stem is not None and self.stem_norm is not None:
            x = self.stem_norm(self.stem(x), groups)
        if self.pool > 1:
            x = max_pool2d(x, self.pool)
        each = [lanes[kind] for kind in self.kinds] if isinstance(lanes, Mapping) else lanes
        x = self._chained(x, each, watch) if self.space.inputs == 1 else self._paired(before, x, each, watch)
        if self.tail_norm is not None:
            x = gated_relu(self.tail_norm(x, groups))
        return x.mean((2, 3))

    def _paired(self, before: Tensor | None, x: Tensor, lanes: Sequence[Lane], watch: Watch | None) -> Tensor:
        """Every cell reads the two before it; ``before`` is rectified, None where the first cell reads the stem twice."""
        for index, (cell, lane) in enumerate(zip(self.cells, lanes, strict=True)):
            rectified = gated_relu(x)  # once, for this cell and the next
            x = self.through(cast(Cell, cell), rectified if before is None else before, rectified, lane)
            before = rectified
            if watch is not None:
                watch(index, x)
        return x

    def through(self, cell: Cell, s0: Tensor, s1: Tensor, lane: Lane) -> Tensor:
        """The output of a cell with two inputs."""
        return cell(s0, s1, lane)

    def _chained(self, x: Tensor, lanes: Sequence[Lane], watch: Watch | None) -> Tensor:
        """Every cell reads the one before it."""
        for index, (module, lane) in enumerate(zip(self.cells, lanes, strict=True)):
            x = cast(Cell, module).chained(x, lane)
            if watch is not None:
                watch(index, x)
        return x
