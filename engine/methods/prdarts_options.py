"""The options of PR-DARTS. No torch here. Values follow reference note tetlo-darts, section 4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from engine.errors import ConfigurationError
from engine.methods.darts_options import SMALL, TOY, FamilyOptions

PRDARTS_PRESETS: dict[str, dict[str, Any]] = {
    "default": {**TOY, "batch": 64, "epochs": 8},
    "published": {"data": "cifar10", "size": 32},
    "small": {**SMALL, "data": "cifar10"},
}


@dataclass(frozen=True)
class GateOptions(FamilyOptions):
    """What hard-concrete gates take."""

    active: int = 2
    """Operations of each edge that take part in a pass."""
    tau_max: float = 10.0
    """Temperature of the gates in the first epoch; the released script's default is 1."""
    tau_min: float = 0.1
    """Temperature of the gates in the last epoch, on a line from the first."""
    gate_dropout: float = 0.4
    """Chance of a gate to lose the contest for an active place, in [0, 1)."""
    skip_penalty: float = 0.01
    """Weight of the skip connections' activation probabilities in the architecture's loss."""
    group_penalty: float = 0.005
    """Weight of the other operations' activation probabilities in the architecture's loss."""
    path_reward: float = 0.005
    """Weight of the depth of the path from node to node, which the architecture's loss rewards."""

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "active")
        self._at_least(0, "skip_penalty", "group_penalty", "path_reward")
        if not 0 < self.tau_min <= self.tau_max < float("inf"):
            raise ConfigurationError(f"--tau-min: expected 0 < tau-min <= tau-max, got {self.tau_min} and {self.tau_max}")
        if not 0 <= self.gate_dropout < 1:
            raise ConfigurationError(f"--gate-dropout must be in [0, 1), got {self.gate_dropout}")


@dataclass(frozen=True)
class PrdartsOptions(GateOptions):
    """PR-DARTS: hard-concrete gates and regularisers of paths and groups. --faithful is the released loss and pruning."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRDARTS_PRESETS

    cells: int = 6
    """Cells of the supernet; those at one and two thirds of the depth reduce."""
    batch: int = 250
    """Images of a step; an epoch leaves out what does not fill one."""
    epochs: int = 200
    """Passes over the training half."""
    weight_decay: float = 5e-4
    """L2 penalty of the weights."""

    @property
    def method(self) -> str:
        return "prdarts"

    @property
    def nesterov(self) -> bool:
        return True
