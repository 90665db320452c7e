"""The options of MAML, ANIL, BOIL and Meta-ticket. No torch here.

Presets are the published configurations of reference note meta-ticket, section 6. The defaults are small: minutes on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from engine.data.names import check_name
from engine.errors import ConfigurationError
from engine.methods.options import RunOptions, flag

_LONG = {"iterations": 30_000, "validate_every": 1000, "validation_tasks": 200, "test_tasks": 1000, "batch": 4}
_OMNIGLOT = {**_LONG, "data": "omniglot", "network": "5-mlp", "size": 28, "inner_rate": 0.4, "test_steps": 3, "warmup": 1000}
_COLOUR = {**_LONG, "network": "5-mlp", "size": 32, "inner_rate": 0.5, "warmup": 100}
_MINI = {**_LONG, "data": "miniimagenet", "size": 84, "inner_rate": 0.3, "warmup": 1000, "outer_rate_adamw": 6e-4}
_CONSTANT = {
    **_OMNIGLOT,
    "factor": 4,
    "inner_steps": 3,
    "batch": 32,
    "iterations": 60_000,
    "outer": "adamw",
    "outer_rate_adamw": 0.1,
    "prune_output": True,
    "constant": 1.0,
    "warmup": 0,
}

LEARNING_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "small": {"data": "omniglot", "size": 28, "test_steps": 3},
    "omniglot": _OMNIGLOT,
    "cifar-fs": {**_COLOUR, "data": "cifar-fs"},
    "vgg-flower": {**_COLOUR, "data": "vgg-flower"},
    "miniimagenet-resnet12": {**_MINI, "network": "resnet12"},
    "miniimagenet-wrn28-5": {**_MINI, "network": "wrn28-5"},
    "miniimagenet-wrn28-10": {**_MINI, "network": "wrn28-10"},
    "constant": _CONSTANT,
    "constant-random-mask": {**_CONSTANT, "sparsity": 0.5, "iterations": 0},
}


@dataclass(frozen=True)
class LearningOptions(RunOptions):
    """What every meta-learner takes."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = LEARNING_PRESETS

    network: Literal["3-mlp", "4-mlp", "5-mlp", "conv4", "resnet12", "wrn28-5", "wrn28-10"] = "5-mlp"
    """Network; the 5-MLP has 256-128-64-64 units on grey images and 1024-512-256-128 on colour."""
    factor: int = 1
    """What the network's widths are multiplied by; 1, 2, 4 and 8 are published for the 5-MLP on Omniglot."""
    size: int | None = None
    """Side of the square images in pixels; none means the set's own."""
    ways: int = 5
    """Classes of a task."""
    shots: int = 5
    """Support images of a class."""
    queries: int | None = None
    """Query images of a class; none means as many as shots, as published."""
    inner_rate: float = 0.4
    """Learning rate of the inner loop."""
    inner_steps: int = 1
    """Inner steps in training."""
    test_steps: int | None = None
    """Inner steps in validation and test; none means as in training."""
    first_order: bool = False
    """Take inner gradients as constants in the outer gradient."""
    batch: int = 4
    """Tasks of an outer step."""
    task_chunk: int | None = None
    """Tasks that are differentiated at once; none means all. Bounds the memory, not the result."""
    iterations: int = 1500
    """Outer steps; 30000 are published."""
    outer: Literal["adamw", "sgd"] = "adamw"
    """Outer optimiser: AdamW at a constant rate, or SGD with momentum 0.9, warm-up and cosine."""
    outer_rate_adamw: float = 1e-3
    """Learning rate of AdamW."""
    outer_rate_sgd: float = 10.0
    """Highest learning rate of SGD; published for scores."""
    warmup: int = 50
    """Outer steps in which SGD's learning rate rises; published: a thirtieth of all, or 100."""
    validate_every: int = 250
    """Outer steps between validations, and between lines of metrics.jsonl."""
    validation_tasks: int = 100
    """Tasks of a validation; 0 for none. Tasks of the classes `val`, never used to choose a model."""
    test_tasks: int = 400
    """Tasks of the test at the end."""
    test_split: Literal["test", "val"] = "test"
    """Classes of the test; val where the test classes are not at hand, and then nothing is validated on them before."""
    also_test: str = ""
    """Other data sets, separated by commas, whose classes are tested too: how well learning carries over."""
    statistics: Literal["transductive", "support"] = "transductive"
    """What BatchNorm takes its statistics of in validation and test: all queries of the task, as published, or the support."""

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "factor", "size", "shots", "queries", "inner_steps", "test_steps", "batch", "task_chunk")
        self._at_least(1, "validate_every", "test_tasks")
        self._at_least(2, "ways")
        self._at_least(0, "iterations", "warmup", "validation_tasks")
        for name in ("inner_rate", "outer_rate_adamw", "outer_rate_sgd"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigurationError(f"{flag(name)} must be above 0 and finite, got {getattr(self, name)}")
        for name in self.others:
            check_name(name)

    @property
    def others(self) -> tuple[str, ...]:
        """The names in ``also_test``."""
        return tuple(name.strip() for name in self.also_test.split(",") if name.strip())

    @property
    def query_shots(self) -> int:
        """Query images of a class."""
        return self.shots if self.queries is None else self.queries

    def steps(self, *, training: bool) -> int:
        """Inner steps of training tasks or of others."""
        return self.inner_steps if training or self.test_steps is None else self.test_steps


@dataclass(frozen=True)
class MAMLOptions(LearningOptions):
    """MAML: all parameters are adapted and meta-learned."""

    frozen: ClassVar[Literal["", "features", "classifier"]] = ""


@dataclass(frozen=True)
class ANILOptions(MAMLOptions):
    """ANIL: the inner loop adapts the head alone."""

    frozen: ClassVar[Literal["", "features", "classifier"]] = "features"


@dataclass(frozen=True)
class BOILOptions(MAMLOptions):
    """BOIL: the inner loop adapts the features alone."""

    frozen: ClassVar[Literal["", "features", "classifier"]] = "classifier"


@dataclass(frozen=True)
class MetaTicketOptions(LearningOptions):
    """Meta-ticket: weights stay at random, masks are meta-learned."""

    outer: Literal["adamw", "sgd"] = "sgd"
    """Outer optimiser of the scores: AdamW at a constant rate, or SGD with momentum 0.9, warm-up and cosine."""
    sparsity: float = 0.0
    """Pruned share at the start; published: 0, pruning is learned."""
    weights: Literal[
        "kaiming-normal",
        "kaiming-uniform",
        "signed-constant",
        "positive-constant",
        "positive-normal",
        "positive-uniform",
        "uniform",
    ] = "kaiming-normal"
    """How the fixed weights are drawn."""
    constant: float | None = None
    """All masked weights of a layer are this times sqrt(2 / fan-in) instead: the constant-initialisation experiment."""
    boil: bool = False
    """+BOIL: the inner loop does not adapt the head, which is then a fixed random one."""
    prune_output: bool = False
    """Mask the output layer's weight too."""
    rerand_every: int | None = None
    """+IteRand: outer steps between new draws of pruned weights; 1000 is published, none means never."""
    rerand_rate: float = 1.0
    """+IteRand: share of the pruned weights that is drawn anew."""

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "rerand_every")
        if not 0 <= self.sparsity < 1:
            raise ConfigurationError(f"--sparsity must be at least 0 and below 1, got {self.sparsity}")
        if not 0 <= self.rerand_rate <= 1:
            raise ConfigurationError(f"--rerand-rate must be in 0 .. 1, got {self.rerand_rate}")
        if self.constant is not None and self.rerand_every is not None:
            raise ConfigurationError("--constant: constant weights cannot be drawn anew; leave --rerand-every out")
