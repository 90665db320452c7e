"""The options of MAML, ANIL, BOIL and Meta-ticket. No torch here. The defaults are small: minutes on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from engine.data.names import check_name
from engine.errors import ConfigurationError
from engine.methods.learning_presets import LEARNING_PRESETS
from engine.methods.options import RunOptions, flag
from engine.methods.study_options import variation


@dataclass(frozen=True)
class OuterOptions(RunOptions):
    """The inner and the outer loop. ``method`` is the name of the command that takes these options."""

    method: ClassVar[str] = ""

    factor: int = 1
    """What the network's widths are multiplied by; 1, 2, 4 and 8 are published for the 5-MLP on Omniglot."""
    shots: int = 5
    """Support samples of a class, or of a regression."""
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
    """Tasks that are differentiated at once, and that a rank takes at once; none means all, dealt evenly to the ranks. Bounds the
    memory; results are the same up to rounding, and the same bytes for any number of ranks."""
    iterations: int = 1500
    """Outer steps; 30000 are published."""
    cpu_seconds: float | None = None
    """CPU seconds of training in the place of --iterations; turned into outer steps once, by timing, and written down."""
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
    compare: str = ""
    """Methods, separated by commas, that learn the same tasks in runs of their own below this one: maml, anil, boil, meta-ticket;
    a ticket with +boil, +iterand, +pruneout, or +untrained, a random mask of half the weights."""
    vary: str = ""
    """An option and its values, such as inner_rate=0.1,0.4: every method is run with each of them."""
    seeds: int = 1
    """Runs of each method, with --seed and the following ones."""

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "factor", "shots", "inner_steps", "test_steps", "batch", "task_chunk", "validate_every", "test_tasks")
        self._at_least(1, "seeds")
        self._at_least(0, "iterations", "warmup", "validation_tasks")
        for name in ("inner_rate", "outer_rate_adamw", "outer_rate_sgd", "cpu_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigurationError(f"{flag(name)} must be above 0 and finite, got {getattr(self, name)}")

    @property
    def label(self) -> str:
        """What a comparison calls the method of these options."""
        return self.method

    @property
    def is_study(self) -> bool:
        """Whether this is several runs and what they say together."""
        return bool(self.compare or self.vary or self.seeds > 1)

    @property
    def varied(self) -> tuple[str, list[Any]]:
        """Name and values of ``vary``; ("", []) where it is empty, :class:`ConfigurationError` where it is none."""
        return variation(self.vary, type(self))

    def steps(self, *, training: bool) -> int:
        """Inner steps of training tasks or of others."""
        return self.inner_steps if training or self.test_steps is None else self.test_steps


@dataclass(frozen=True)
class LearningOptions(OuterOptions):
    """What every meta-learner of images takes."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = LEARNING_PRESETS

    network: Literal["3-mlp", "4-mlp", "5-mlp", "conv4", "resnet12", "wrn28-5", "wrn28-10"] = "5-mlp"
    """Network; the 5-MLP has 256-128-64-64 units on grey images and 1024-512-256-128 on colour."""
    size: int | None = None
    """Side of the square images in pixels; none means the set's own."""
    ways: int = 5
    """Classes of a task."""
    queries: int | None = None
    """Query images of a class; none means as many as shots, as published."""
    test_split: Literal["test", "val"] = "test"
    """Classes of the test; val where the test classes are not at hand, and then nothing is validated on them before."""
    also_test: str = ""
    """Other data sets, separated by commas, whose classes are tested too: how well learning carries over."""
    statistics: Literal["transductive", "support"] = "transductive"
    """What BatchNorm takes its statistics of in validation and test: all queries of the task, as published, or the support."""

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "size", "queries")
        self._at_least(2, "ways")
        for name in (self.data, *self.others):
            check_name(name)

    @property
    def others(self) -> tuple[str, ...]:
        """The names in ``also_test``."""
        return tuple(name.strip() for name in self.also_test.split(",") if name.strip())

    @property
    def query_shots(self) -> int:
        """Query images of a class."""
        return self.shots if self.queries is None else self.queries

    @property
    def leading(self) -> int | None:
        """Samples of a task, its support first, that BatchNorm takes its statistics of in tests; None for those at hand."""
        return self.ways * self.shots if self.statistics == "support" else None


@dataclass(frozen=True)
class MAMLOptions(LearningOptions):
    """MAML: all parameters are adapted and meta-learned."""

    method: ClassVar[str] = "maml"
    frozen: ClassVar[Literal["", "features", "classifier"]] = ""


@dataclass(frozen=True)
class ANILOptions(MAMLOptions):
    """ANIL: the inner loop adapts the head alone."""

    method: ClassVar[str] = "anil"
    frozen: ClassVar[Literal["", "features", "classifier"]] = "features"


@dataclass(frozen=True)
class BOILOptions(MAMLOptions):
    """BOIL: the inner loop adapts the features alone."""

    method: ClassVar[str] = "boil"
    frozen: ClassVar[Literal["", "features", "classifier"]] = "classifier"


@dataclass(frozen=True)
class MetaTicketOptions(LearningOptions):
    """Meta-ticket: weights stay at random, masks are meta-learned."""

    method: ClassVar[str] = "meta-ticket"
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
        "keep-sign",
        "asymptotic",
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
    learnable_scale: Literal["naive", "normalized"] | None = None
    """Meta-learn a factor of each masked weight too, 1 + d or 1 + d over its number of elements; none is published."""
    scale_rate: float = 1e-3
    """Learning rate of those factors, by the outer optimiser of the scores."""

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "rerand_every")
        if not 0 <= self.sparsity < 1:
            raise ConfigurationError(f"--sparsity must be at least 0 and below 1, got {self.sparsity}")
        if not 0 < self.scale_rate < float("inf"):
            raise ConfigurationError(f"--scale-rate must be above 0 and finite, got {self.scale_rate}")
        if not 0 <= self.rerand_rate <= 1:
            raise ConfigurationError(f"--rerand-rate must be in 0 .. 1, got {self.rerand_rate}")
        if self.constant is not None and self.rerand_every is not None:
            raise ConfigurationError("--constant: constant weights cannot be drawn anew; leave --rerand-every out")
