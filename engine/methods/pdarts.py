"""P-DARTS: depth grows in stages while operations are dropped (Chen, Xie, Wu, Tian, ICCV 2019).

Each stage searches a fresh and deeper network among fewer operations an edge; skip connections, which learn fastest, are held
back by dropout and limited at the end (reference note tetlo-darts, section 2).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from engine.methods.darts import Darts
from engine.methods.darts_base import Base, Pass
from engine.methods.darts_data import Halves
from engine.methods.darts_learner import run_search
from engine.methods.pdarts_options import PdartsOptions, ProgressiveOptions
from engine.spaces.darts import competing, operation_counts
from engine.spaces.darts_supernet import SoftmaxRelaxation
from engine.spaces.genotype import Genotype
from engine.spaces.mixture import Mixture
from engine.spaces.progressive import Alive, candidates, drop_weakest, limit_skips, restricted

if TYPE_CHECKING:
    from engine.runs.run import Run

# How fast the dropout of skip connections falls once the architecture moves, per epoch.
DROPOUT_DECAY = 0.2


def search(options: PdartsOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Search, and return what goes into result.json: the cell, all cells with fewer skips, the loss by epoch, the time."""
    return run_search(Darts(options, Halves(options), ProgressiveBase(options)), run, stop, progress)


def plan(options: PdartsOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    stages = ", ".join(map(str, options.stage_cells))
    return [
        ("stages", f"{stages} cells, {options.epochs} epochs each, the first {options.warm_up} without architecture steps"),
        ("operations", f"{options.kept},1 kept on each edge after them, space {options.space}"),
        ("supernet", f"{options.channels} channels"),
    ]


class ProgressiveBase(Base):
    """One stage: a supernet of its own depth with the operations that stages before it kept."""

    options: ProgressiveOptions

    def __init__(self, options: ProgressiveOptions, stage: int = 0, alive: Alive | None = None) -> None:
        super().__init__(options)
        self.stage = stage
        self.alive = competing(self.space) if alive is None else alive
        self.space = restricted(self.space, self.alive)
        self.relaxation = SoftmaxRelaxation(self.space)
        self.cells = options.stage_cells[stage]
        self.first_epoch = stage * options.epochs
        self.address = (stage,)

    def dropout(self, epoch: int) -> float:
        """The dropout of skip connections in an epoch: a line while only weights move, then an exponential."""
        start, done = self.options.stage_dropout[self.stage], epoch - self.first_epoch
        if done < self.options.warm_up:
            return start * (self.epochs - done - 1) / self.epochs
        return start * math.exp(-DROPOUT_DECAY * (done - self.options.warm_up))

    def mixture(self, a: Tensor, where: Pass) -> Mixture:
        rate = 0.0 if where.phase == "validation" else self.dropout(where.epoch)
        return self.drawn(self.relaxation(a), where, skip_dropout=rate)

    def genotype(self, a: Tensor) -> Genotype:
        return limit_skips(self.space, self.strengths(a).double().tolist(), self.options.max_skips)

    def result(self, a: Tensor) -> dict[str, Any]:
        """All cells by their limit on skip connections."""
        found = candidates(self.space, self.strengths(a).double().tolist())
        rows = [[most, operation_counts(cell)["normal"]["skip_connect"], _written(cell)] for most, cell in found]
        table = {"title": "Cells by their limit on skip connections", "columns": ["limit", "skips", "normal cell"], "rows": rows}
        return {"candidates": [{"max_skips": most, "genotype": cell.to_dict()} for most, cell in found], "tables": [table]}

    def following(self, epoch: int, a: Tensor) -> Base | None:
        if epoch + 1 < self.first_epoch + self.epochs or self.stage + 1 == len(self.options.stage_cells):
            return None
        alive = drop_weakest(self.alive, self.strengths(a).double().tolist(), self.options.stage_kept[self.stage])
        return ProgressiveBase(self.options, self.stage + 1, alive)

    def state(self) -> dict[str, Any]:
        return {"stage": self.stage, "alive": self.alive}

    def restored(self, state: dict[str, Any]) -> Base:
        return ProgressiveBase(self.options, state["stage"], state["alive"])


def _written(cell: Genotype) -> str:
    return ", ".join(f"{c.operation} {c.source}->{c.target}" for c in cell["normal"].connections)
