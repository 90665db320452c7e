"""The options of meta-training a network of any kind. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from engine.errors import ConfigurationError
from engine.evaluation.options import PRESETS, FewShotTestOptions, length
from engine.methods.options import flag

# The sets, networks and tests of the recipe rfs; its batches and epochs mean nothing here.
_FINN = {"budget": "60000steps", "inner_steps": 5, "inner_rate": 0.01, "task_queries": 15}  # MAML's appendix A.1
META_PRESETS: dict[str, dict[str, Any]] = {
    name: {
        **{key: value for key, value in values.items() if key != "batch"},
        **(_FINN if name.startswith("paper-") else {}),
    }
    for name, values in PRESETS.items()
}


@dataclass(frozen=True)
class MetaOptions(FewShotTestOptions):
    """Learn from tasks of the training classes; the features are then tested as the recipe rfs tests its own."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = META_PRESETS
    algorithm: ClassVar[Literal["maml", "anil", "reptile", "meta-ticket"]]

    budget: str = "20s"
    """Length of the training: outer steps (1000steps), or CPU seconds (600s), which timing turns into a number of steps."""
    steps: int | None = None
    """Length in outer steps; none means what --budget comes to, which is then written down here."""
    batch: int = 4
    """Tasks of an outer step."""
    ways: int = 5
    """Classes of a training task."""
    shots: int = 5
    """Support images of a class in a training task."""
    task_queries: int = 5
    """Query images of a class in a training task."""
    inner_rate: float = 0.1
    """Learning rate of the inner loop."""
    inner_steps: int = 3
    """Inner steps."""
    outer_rate: float = 1e-3
    """Highest learning rate of the outer loop; falls to zero along a cosine."""
    first_order: bool = False
    """Take inner gradients as constants in the outer gradient."""

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "steps", "batch", "shots", "task_queries", "inner_steps")
        self._at_least(2, "ways")
        for name in ("inner_rate", "outer_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigurationError(f"{flag(name)} must be above 0 and finite, got {getattr(self, name)}")
        _ = self.length

    @property
    def length(self) -> tuple[float, str]:
        """``budget`` parsed, such as ``(600.0, "s")``; the unit is s or steps. :class:`ConfigurationError` if malformed."""
        return length(self.budget, "steps")


@dataclass(frozen=True)
class MAMLOptions(MetaOptions):
    """MAML: all parameters are adapted and meta-learned; outer updates by Adam."""

    algorithm = "maml"


@dataclass(frozen=True)
class ANILOptions(MetaOptions):
    """ANIL: all parameters are meta-learned, the inner loop adapts the head alone; outer updates by Adam."""

    algorithm = "anil"


@dataclass(frozen=True)
class ReptileOptions(MetaOptions):
    """Reptile: the initialisation moves towards the adapted parameters by ``outer_rate`` of the way."""

    algorithm = "reptile"

    inner_steps: int = 5
    """Inner steps."""
    outer_rate: float = 1.0
    """Share of the way to the adapted parameters that an outer step goes at first; falls to zero along a cosine."""


@dataclass(frozen=True)
class MetaTicketOptions(MetaOptions):
    """Meta-ticket: weights stay at random, the scores of their mask are meta-learned by SGD with momentum 0.9."""

    algorithm = "meta-ticket"

    outer_rate: float = 10.0
    """Highest learning rate of the scores; falls to zero along a cosine."""
