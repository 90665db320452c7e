"""The macro network, which supernets and discretised networks share: stem, cells, pooling and a linear head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from engine.errors import ConfigurationError
from engine.spaces.cells import Cell, Lane
from engine.spaces.norms import norm_factory
from engine.spaces.operations import gated_relu
from engine.spaces.space import Space


class MacroNetwork(nn.Module):
    """Stem, cells one after the other, pooling and a linear head.

    ``operations[kind][e]`` names what edge ``e`` carries in cells of a kind, ``concat[kind]`` the states that make their output.
    ``stem`` and ``tail`` say whether there is a stem (3x3 convolution and norm) and a norm with ReLU before the pooling;
    ``stem_norm`` names the stem's norm where it is not ``norm``; ``pool`` max-pools what the cells read by that factor. The
    other arguments are those of :class:`~engine.spaces.supernet.Supernet`.
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
    ) -> None:
        super().__init__()
        if outputs < 1 or channels_in < 1:
            raise ConfigurationError(f"a network needs outputs and channels_in of at least 1, got {outputs} and {channels_in}")
        self.space = space
        make_norm = norm_factory(norm)
        width = channels * space.stem_multiplier
        plans = space.layout(
            cells,
            channels,
            stem_channels=width if stem else channels_in,
            concatenated={kind: len(states) for kind, states in concat.items()},
        )
        self.stem = nn.Conv2d(channels_in, width, 3, padding=1, bias=False) if stem else None
        self.stem_norm = norm_factory(stem_norm or norm)(width) if stem else None
        self.pool = pool
        self.kinds = [plan.kind for plan in plans]
        self.cells = nn.ModuleList(Cell(space, plan, operations[plan.kind], concat[plan.kind], make_norm) for plan in plans)
        width = plans[-1].channels * len(concat[plans[-1].kind])
        self.tail_norm = make_norm(width) if tail else None
        self.classifier = nn.Linear(width, outputs)

    def pooled(self, x: Tensor, lanes: Mapping[str, Lane] | Sequence[Lane], groups: int = 1) -> Tensor:
        """(B, C_in, H, W) -> the features (B, F) that the classifier reads; ``lanes`` mixes each kind of cell, or each cell."""
        if self.stem is not None and self.stem_norm is not None:
            x = self.stem_norm(self.stem(x), groups)
        if self.pool > 1:
            x = max_pool2d(x, self.pool)
        each = [lanes[kind] for kind in self.kinds] if isinstance(lanes, Mapping) else lanes
        x = self._chained(x, each) if self.space.inputs == 1 else self._paired(x, each)
        if self.tail_norm is not None:
            x = gated_relu(self.tail_norm(x, groups))
        return x.mean((2, 3))

    def _paired(self, x: Tensor, lanes: Sequence[Lane]) -> Tensor:
        """Every cell reads the two before it."""
        before: Tensor | None = None
        for cell, lane in zip(self.cells, lanes, strict=True):
            rectified = gated_relu(x)  # once, for this cell and the next
            x = cell(rectified if before is None else before, rectified, lane)
            before = rectified
        return x

    def _chained(self, x: Tensor, lanes: Sequence[Lane]) -> Tensor:
        """Every cell reads the one before it."""
        for module, lane in zip(self.cells, lanes, strict=True):
            x = cast(Cell, module).chained(x, lane)
        return x
