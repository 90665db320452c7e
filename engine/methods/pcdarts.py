"""PC-DARTS: a part of the channels is searched, and edges have weights of their own (Xu et al., ICLR 2020).

The published hyper-parameters move the architecture only after a warm-up, by first-order gradients on large batches, which the
memory of partial channels affords (reference note tetlo-darts, section 3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.methods.darts import Darts
from engine.methods.darts_base import Base
from engine.methods.darts_data import Halves
from engine.methods.darts_learner import run_search
from engine.methods.pcdarts_options import PartialOptions, PcdartsOptions
from engine.spaces.partial import PartialRelaxation

if TYPE_CHECKING:
    from engine.runs.run import Run


def search(options: PcdartsOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Search, and return what goes into result.json: the cell, the validation loss by epoch, the time."""
    return run_search(Darts(options, Halves(options), PartialBase(options)), run, stop, progress)


def plan(options: PcdartsOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    return [
        ("epochs", f"{options.epochs}, the first {options.warm_up} without architecture steps"),
        ("architecture step", f"{options.order} order, every {options.interval} weight steps"),
        ("supernet", f"{options.cells} cells, {options.channels} channels, 1/{options.partial} searched, space {options.space}"),
    ]


class PartialBase(Base):
    """One part in K of the channels is operated on; edges of a node share a softmax of their own."""

    options: PartialOptions

    def __init__(self, options: PartialOptions) -> None:
        super().__init__(options)
        self.relaxation = PartialRelaxation(self.space)

    def structure(self) -> dict[str, Any]:
        return {**super().structure(), "partial": self.options.partial}
