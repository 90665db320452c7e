"""The options of MetaNAS. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar, Literal, Self

from engine.errors import ConfigurationError
from engine.methods.metanas_presets import METANAS_PRESETS
from engine.methods.options import SearchOptions


@dataclass(frozen=True)
class MetaNASOptions(SearchOptions):
    """MetaNAS: weights and architecture that adapt to a task in a few steps.

    --faithful is the published code: the architecture first and on draws of its own, its gradients from a copy of the network
    that is never renewed, tasks in turn with one optimiser.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = METANAS_PRESETS

    network: str = "search"
    """What is meta-learned: search (the supernet), random (a random genotype), conv4, a published genotype (in-v2, og-v2, v1,
    autometa), the path of a genotype.json, or compare: search, random and conv4 one after the other."""
    repeats: int = 1
    """Runs of everything, with the seeds SEED, SEED + 1 and so on."""
    random_epochs: int | None = None
    """Meta-updates of the random genotypes in a comparison, whose steps are cheaper; none means --meta-epochs."""
    conv4_epochs: int | None = None
    """The same for conv4."""
    cells: int = 4
    """Cells of the network; 4 in the search and 5 with a fixed genotype are published, the second and fourth reduce."""
    channels: int = 14
    """Channels of every cell, even; 14 and 28 are published."""
    size: int | None = None
    """Side of the square images in pixels; none means the set's own."""
    ways: int = 5
    """Classes of a task."""
    shots: int = 1
    """Support images of a class in a test task."""
    train_shots: int = 10
    """Support images of a class in meta-training."""
    queries: int = 1
    """Query images of a class in a test task."""
    meta_epochs: int = 100
    """Meta-updates."""
    warm_up: int = 10
    """Meta-updates at the start that leave the architecture alone."""
    meta_batch: int = 5
    """Tasks of a meta-update."""
    batch: int = 10
    """Support images of a step, drawn with replacement; a support set that is no larger is taken whole."""
    test_batch: int = 10
    """The same in a test task."""
    steps: int = 5
    """Steps of a task in meta-training."""
    test_steps: int = 20
    """Steps of a test task."""
    test_architecture_steps: int | None = None
    """Of these the first that move the architecture too; none means half of them."""
    rate: float = 1e-2
    """Adam's learning rate of the weights in a task. Few meta-updates need a high one; the published 30,000 get by with 1e-3."""
    architecture_rate: float = 0.2
    """Adam's learning rate of the architecture in a task. After few meta-updates only a high one lets a task settle on its
    operations, so that pruning costs little; the published 30,000 get by with 1e-3."""
    decay: float = 0.0
    """L2 penalty of the weights in a task."""
    architecture_decay: float = 1e-3
    """L2 penalty of the architecture in a task."""
    meta_rate: float = 1.0
    """Meta learning rate of the weights."""
    meta_architecture_rate: float = 0.6
    """Meta learning rate of the architecture."""
    meta_schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the meta learning rates fall to zero."""
    meta_learner: Literal["reptile", "maml", "fomaml"] = "reptile"
    """Reptile (Eq. 9), or gradients of the query loss through (maml, Eq. 8) or past (fomaml) SGD steps of the task learner."""
    sparse: Literal["none", "operations", "inputs", "every"] = "inputs"
    """What annealing makes sparse (Table 3): nothing, operations, or operations and inputs; every is one after the other."""
    t_max: float = 1.0
    """Temperature at the first architecture step of a task."""
    t_min: float = 0.05
    """Temperature at the last one and after it."""
    threshold: float = 0.01
    """Operations and pairs of inputs that weigh no more are left out, in meta-training."""
    test_threshold: float = 0.05
    """The same in test tasks."""
    meta_threshold: float = 0.01
    """Operations whose meta-learned probability at t_min is below are switched off for good, every --eval-every meta-updates
    after the warm-up; 0 is never."""
    hard: bool = False
    """Keep of each edge only the heaviest operation and of each node only the heaviest pair of inputs, at their weights."""
    drop_path: float = 0.0
    """Probability that an operation is dropped for an image in meta-training; 0.2 in the published scripts."""
    single_task: bool = False
    """Search on one classification task as DARTS does, then prune (Table 3). --steps, --batch, the rates, decays and temperatures
    are those of this search, and --eval-every counts its steps; what is said of tasks and meta-learning does not apply."""
    update: Literal["simultaneous", "alternating"] = "simultaneous"
    """Weights and architecture from one gradient, or in turn on draws of their own."""
    eval_every: int = 20
    """Meta-updates between two looks at validation tasks."""
    eval_split: Literal["test", "val"] = "test"
    """Classes of the test tasks."""
    eval_tasks: int = 100
    """Test tasks."""
    validation_tasks: int = 5
    """Tasks of each look at the validation classes."""
    transductive: bool = True
    """Test all queries of a task in one batch, whose statistics the norms take; false: each beside the support set."""

    @property
    def searches(self) -> bool:
        """Whether there is an architecture to learn."""
        return self.network in ("search", "compare")

    @property
    def length(self) -> int:
        """Steps of a single run: meta-updates and test tasks, or those of a search on one task."""
        return self.steps if self.single_task else self.meta_epochs + self.eval_tasks

    @property
    def label(self) -> str:
        """What tells a single run from the other variants, its seed aside."""
        return self.network + self._strategy

    @property
    def _strategy(self) -> str:
        """What a label says of a strategy other than MetaNAS's own."""
        notes = {"none": ", nothing sparse", "operations": ", operations sparse"}
        return notes.get(self.sparse, "") if self.searches else ""

    def variants(self) -> list[Self]:
        """The single runs that this one consists of: a seed after the other, of each network and each strategy.

        Networks that take more meta-updates look at validation tasks as many times as the search.
        """
        networks: dict[str, int | None] = {self.network: None}
        if self.network == "compare":
            networks = {"search": None, "random": self.random_epochs, "conv4": self.conv4_epochs}
        single = replace(self, repeats=1, random_epochs=None, conv4_epochs=None)
        found = []
        for k, (network, epochs), sparse in product(range(self.repeats), networks.items(), self._strategies):
            total = epochs or self.meta_epochs
            often = max(1, self.eval_every * total // self.meta_epochs)
            chosen: dict[str, Any] = {"network": network, "sparse": sparse, "meta_epochs": total, "eval_every": often}
            found.append(replace(single, seed=self.seed + k, **chosen))
        return found

    @property
    def _strategies(self) -> tuple[Literal["none", "operations", "inputs", "every"], ...]:
        return ("none", "operations", "inputs") if self.sparse == "every" else (self.sparse,)

    @property
    def test_architecture(self) -> int:
        """Architecture steps of a test task."""
        if not self.searches:
            return 0
        return self.test_steps // 2 if self.test_architecture_steps is None else self.test_architecture_steps

    @property
    def temperatures(self) -> tuple[float, float]:
        """(t_max, t_min) as the strategy has them: without sparsity nothing is annealed."""
        return (1.0, 1.0) if self.sparse == "none" else (self.t_max, self.t_min)

    def validate(self) -> None:
        super().validate()
        self._at_least(1, "cells", "channels", "size", "shots", "train_shots", "queries", "meta_batch", "steps", "test_steps")
        self._at_least(1, "meta_epochs", "random_epochs", "conv4_epochs", "batch", "test_batch", "eval_every", "eval_tasks")
        self._at_least(1, "repeats")
        self._at_least(2, "ways")
        self._at_least(0, "warm_up", "decay", "architecture_decay", "rate", "architecture_rate", "meta_rate", "validation_tasks")
        self._at_least(0, "meta_architecture_rate", "threshold", "test_threshold", "meta_threshold", "test_architecture_steps")
        if self.channels % 2:
            raise ConfigurationError(
                f"--channels: the strided skip connection halves them, so they must be even, got {self.channels}"
            )
        if not 0 <= self.drop_path < 1:
            raise ConfigurationError(f"--drop-path must be at least 0 and below 1, got {self.drop_path}")
        for name in ("threshold", "test_threshold", "meta_threshold"):
            if getattr(self, name) >= 1 / 7:
                raise ConfigurationError(
                    f"--{name.replace('_', '-')}: 1/7 and more leaves no operation, got {getattr(self, name)}"
                )
        if self.test_architecture > self.test_steps:
            raise ConfigurationError(
                f"--test-architecture-steps: {self.test_architecture} are more than the {self.test_steps} of --test-steps"
            )
        self._check_temperatures()
        if self.single_task and (self.network != "search" or self.faithful):
            raise ConfigurationError("--single-task is a search: it has neither --network nor --faithful")
        if self.sparse == "every" and self.network != "search":
            raise ConfigurationError(f"--sparse every is for --network search, got {self.network}")
        if self.meta_learner != "reptile" and (self.faithful or self.drop_path):
            raise ConfigurationError(f"--meta-learner {self.meta_learner} has neither --faithful nor --drop-path; use reptile")

    def _check_temperatures(self) -> None:
        if not 0 < self.t_min <= self.t_max < float("inf"):
            raise ConfigurationError(f"--t-min and --t-max: 0 < t_min <= t_max is needed, got {self.t_min} and {self.t_max}")
        t_max, t_min = self.temperatures
        for name, steps in (("--steps", self.steps), ("--test-architecture-steps", self.test_architecture)):
            if self.searches and t_min != t_max and steps == 1 and not (self.single_task and name != "--steps"):
                raise ConfigurationError(f"{name}: annealing from {t_max} to {t_min} takes at least 2 architecture steps, got 1")
