"""DARTS and TETLO in the spaces of NAS-Bench-1Shot1 (reference note tetlo-darts, section 5)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from engine.methods.darts_base import Base, Pass
from engine.methods.darts_options import FamilyOptions
from engine.spaces.darts_supernet import Encoder
from engine.spaces.genotype import Genotype
from engine.spaces.nas_bench_101 import from_genotype, to_text
from engine.spaces.one_shot import ONE_SHOT, OPERATIONS, one_shot_space
from engine.spaces.one_shot_supernet import OneShotRelaxation, OneShotSupernet


def plain_base(options: FamilyOptions) -> Base:
    """DARTS's base, in the space of the options."""
    return OneShotBase(options) if options.space in ONE_SHOT else Base(options)


class OneShotBase(Base):
    """A supernet of choice blocks: weights of operations, of the inputs of blocks, and of the output's."""

    def take_space(self, name: str) -> None:
        self.one_shot = one_shot_space(name)
        self.relaxation = OneShotRelaxation(self.one_shot)

    def network(self, *, outputs: int, channels_in: int) -> OneShotSupernet:
        return self._supernet(self.cells, outputs, channels_in)

    def encoder(self, *, outputs: int, channels_in: int) -> Encoder:
        return Encoder(self._supernet(self.cells - 1, outputs, channels_in))

    def _supernet(self, cells: int, outputs: int, channels_in: int) -> OneShotSupernet:
        channels = self.options.channels
        return OneShotSupernet(
            self.one_shot, cells=cells, channels=channels, outputs=outputs, channels_in=channels_in, of=self.cells
        )

    def mixture(self, a: Tensor, where: Pass) -> Any:
        return self.relaxation(a)

    def noted(self, genotype: Genotype) -> dict[str, Any]:
        return {"fingerprint": from_genotype(genotype).fingerprint()}

    def described(self, genotype: Genotype, *, size: int, classes: int, channels_in: int) -> dict[str, Any]:
        """The cell as NAS-Bench-101 writes it, and how often each operation leads to its output."""
        cell = from_genotype(genotype)
        matrix, operations = to_text(cell)
        used = cell.pruned().operations
        counts = {name: used.count(name) for name in OPERATIONS}
        return {"matrix": matrix, "vertices": operations, "fingerprint": cell.fingerprint(), "operations": counts}

    def strength_table(self, a: Tensor) -> dict[str, Any]:
        """Weights of operations and of inputs, a row for each block and one for the output."""
        mixture = self.relaxation(a.detach())
        inputs = dict(zip(self.one_shot.chosen, mixture.inputs, strict=True))
        rows = [
            [f"block {i + 1}", *_rounded(weights), ", ".join(map(str, _rounded(inputs[i]))) if i in inputs else "added"]
            for i, weights in enumerate(mixture.operations)
        ]
        rows.append(["output", *[None] * len(OPERATIONS), ", ".join(map(str, _rounded(mixture.output)))])
        columns = ["", *OPERATIONS, "inputs: the cell's, then blocks"]
        return {"title": "Weights of the operations and inputs", "columns": columns, "rows": rows}


def _rounded(weights: Tensor) -> list[float]:
    return [round(value, 4) for value in weights.tolist()]
