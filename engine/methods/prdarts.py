"""PR-DARTS: gates that open a few operations a pass, and regularisers against the pull of skip connections (NeurIPS 2020).

Each iteration moves the weights, then the architecture, by first-order gradients. What ranks above all is that deep paths learn
slowly: the loss rewards the path from node to node and holds skip connections apart from other operations (reference note
tetlo-darts, section 4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from engine.methods.darts import Darts
from engine.methods.darts_base import Base, Pass
from engine.methods.darts_data import Halves
from engine.methods.darts_learner import run_search
from engine.methods.prdarts_options import GateOptions, PrdartsOptions
from engine.runs.streams import stream
from engine.spaces.gates import GateDraw, GateGroups, GateRelaxation
from engine.spaces.mixture import Mixture

if TYPE_CHECKING:
    from engine.runs.run import Run


def search(options: PrdartsOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Search, and return what goes into result.json: the cell, the validation loss by epoch, the time."""
    return run_search(Darts(options, Halves(options), GateBase(options)), run, stop, progress)


def plan(options: PrdartsOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    return [
        ("epochs", str(options.epochs)),
        ("gates", f"{options.active} operations an edge, temperature {options.tau_max} to {options.tau_min}"),
        ("supernet", f"{options.cells} cells, {options.channels} channels, space {options.space}"),
    ]


class GateBase(Base):
    """Hard-concrete gates, drawn once a pass for each kind of cell.

    ``--faithful`` takes the released regulariser, over the operations chosen in the pass, and ranks a softmax at the end; the
    default is the paper's, over all operations, ranked by activation probability.
    """

    options: GateOptions
    weights_first = True

    def __init__(self, options: GateOptions) -> None:
        super().__init__(options)
        self.relaxation: GateRelaxation = GateRelaxation(
            self.space, active=options.active, tau=options.tau_min, released=options.faithful
        )
        self.groups = GateGroups(self.space)

    def structure(self) -> dict[str, Any]:
        return {**super().structure(), "pool_norms": False, "tail": True}

    def temperature(self, epoch: int) -> float:
        """tau of an epoch: a line from the first epoch's to the last one's."""
        most, least = self.options.tau_max, self.options.tau_min
        return most - (most - least) * epoch / max(1, self.epochs - 1)

    def draw(self, where: Pass) -> GateDraw:
        """The gates' draw, the same for all batches of a step, so that a hypergradient sees one."""
        place = (where.phase, where.epoch, where.step)
        return GateDraw.of(self.relaxation.shape, self.options.gate_dropout, stream(self.options.seed, "gates", *place))

    def mixture(self, a: Tensor, where: Pass) -> Mixture:
        return self.drawn(self.relaxation(a, self.temperature(where.epoch), self.draw(where)), where)

    def penalty(self, a: Tensor, where: Pass) -> Tensor:
        """lambda_1 skip + lambda_2 others - lambda_3 path."""
        options, tau = self.options, self.temperature(where.epoch)
        p = self.relaxation.probabilities(a, tau)
        if options.faithful:
            draw = self.draw(where)
            chosen = self.relaxation.chosen(self.relaxation.gates(a, tau, draw.uniform), draw)
            skip, others, path = self.groups.released(p, chosen)
        else:
            skip, others, path = self.groups.skip_sparsity(p), self.groups.group_sparsity(p), self.groups.path_depth(p)
        return options.skip_penalty * skip + options.group_penalty * others - options.path_reward * path
