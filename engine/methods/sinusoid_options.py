"""The options of sinusoid regression. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from engine.errors import ConfigurationError
from engine.methods.learning_options import OuterOptions

SINUSOID_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "small": {"iterations": 500, "validate_every": 100},
    "paper": {"iterations": 30_000, "validate_every": 1000, "seeds": 3},
}

LearnerName = Literal["maml", "anil", "boil", "meta-ticket"]


@dataclass(frozen=True)
class SinusoidOptions(OuterOptions):
    """MAML's sinusoid regression, by MAML and its kin and by a ticket (reference note meta-ticket, sections 5 and 6)."""

    method: ClassVar[str] = "sinusoid"
    reads_images: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = SINUSOID_PRESETS

    data: Literal["sinusoid"] = "sinusoid"
    """Tasks y = A sin(x - b), A in 0.1 .. 5, b in 0 .. pi, x in -5 .. 5."""
    learner: LearnerName = "maml"
    """Method of a single run; --compare names those of a comparison."""
    compare: str = "maml,meta-ticket"
    """Methods, separated by commas, that learn the same tasks in runs of their own below this one."""
    inner_rate: float = 0.01
    """Learning rate of the inner loop."""
    inner_steps: int = 5
    """Inner steps in training."""
    validation_tasks: int = 200
    """Tasks of a validation; 0 for none."""
    test_tasks: int = 200
    """Tasks of the test at the end."""
    auxiliary: bool = True
    """Of a ticket: meta-learn the parameters that are not masked too, as published; only the middle weight is masked."""
    rerand_every: int | None = 1000
    """Of a ticket: outer steps between new draws of pruned weights (IteRand); none means never."""

    @property
    def label(self) -> str:
        """The method of a single run."""
        return self.learner

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "rerand_every")
        if self.outer == "sgd" and self.learner == "meta-ticket" and self.auxiliary:
            raise ConfigurationError("--outer sgd: scores and other parameters need rates of their own; add --auxiliary false")
