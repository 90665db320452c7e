"""MetaNAS: meta-learning of neural architectures for few-shot learning (paper 000; reference note on MetaNAS).

A supernet's weights w and architecture parameters alpha are meta-learned so that a few steps adapt both to a task
(:class:`~engine.learning.architecture_task.TaskLearner`). Temperatures that fall within every task make the architecture nearly
one-hot, so that it can be pruned after adaptation without retraining.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from engine.errors import ConfigurationError
from engine.kernels.updates import reptile_
from engine.learning.architecture_task import Learned, Moments, Supports, TaskLearner, TaskRule
from engine.learning.ranks import GroupStop
from engine.learning.shared_tasks import TaskSharing
from engine.learning.unrolled import meta_gradient
from engine.methods.metanas_networks import Learner, build
from engine.methods.metanas_options import MetaNASOptions
from engine.methods.metanas_result import ACCURACIES, alone, outcome, together
from engine.methods.metanas_single import SingleTask, halves, summary
from engine.methods.metanas_tasks import drawn, load_data, rules, supports, tested
from engine.runs.parts import Part, Saved, Training, run_parts
from engine.runs.stopwatch import Stopwatch

if TYPE_CHECKING:
    from engine.data import ImageSet
    from engine.runs.run import Run

Options = TypeVar("Options", bound=MetaNASOptions)
NEVER = -1e9  # an operation that meta-level pruning switched off


def search(options: MetaNASOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Meta-train, then learn the test tasks, and return what goes into result.json; with several variants, one after the other.

    Steps 0 to meta_epochs - 1 of a variant are meta-updates, the others test tasks; checkpoints in between hold everything.

    With --single-task see :mod:`engine.methods.metanas_single` instead.
    """
    if options.single_task:
        return _search_single(options, run, stop, progress)
    return run_variants(options, MetaTraining, run, stop, progress)


def _search_single(options: MetaNASOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    if run.ranks.world > 1:
        raise ConfigurationError("--single-task searches in one process; start it without torchrun")
    variants = options.variants()
    halves(variants[0])  # data that cannot be searched on is refused before the work begins
    parts = [Part({"variant": v.label, "seed": v.seed}, v.length, partial(_single, v)) for v in variants]
    return summary(variants, run_parts(parts, run, stop, progress, title="search steps"))


def _single(options: MetaNASOptions) -> SingleTask:
    return SingleTask(options, halves(options))


def run_variants(
    options: Options,
    training: Callable[[Options, ImageSet, TaskSharing], MetaTraining],
    run: Run,
    stop: Any,
    progress: Any,
) -> dict[str, Any]:
    """Every variant of the options, or what a resumed run has left of them."""
    data = load_data(options)
    variants = options.variants()
    group = GroupStop(stop, run.ranks)
    sharing = TaskSharing(run.ranks, group)
    training(variants[0], data, sharing).check()
    several = len(variants) > 1
    names = [{"variant": v.label, "seed": v.seed} if several else {} for v in variants]
    parts = [Part(name, v.length, partial(training, v, data, sharing)) for name, v in zip(names, variants, strict=True)]
    results = run_parts(parts, run, group, progress, title="meta-updates and test tasks")
    return together(options, variants, results) if several else alone(results[0])


def plan(options: MetaNASOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    variants = options.variants()
    names = ("variants", ", ".join(dict.fromkeys(v.label for v in variants)) + f", {options.repeats} seed(s) each")
    if options.single_task:
        return [names, ("steps", f"{options.steps} of each, two forward and backward passes of {options.batch} images")]
    inner = sum(v.meta_epochs for v in variants) * options.meta_batch * options.steps
    tasks = len(variants) * options.eval_tasks
    updates = ", ".join(str(n) for n in sorted({v.meta_epochs for v in variants}))
    return [
        names,
        ("meta-updates", f"{updates} of {options.meta_batch} tasks, {options.warm_up} of them warm-up"),
        ("inner steps", f"{inner} in meta-training, {tasks * options.test_steps} in test tasks"),
        ("test tasks", f"{tasks} of {options.ways} ways and {options.shots} shots from split {options.eval_split}"),
    ]


class MetaTraining(Training):
    """The meta-parameters, and one meta-update or one test task at a time.

    ``sharing`` deals the tasks of Reptile's meta-updates to ranks; what else there is every rank does by itself.
    """

    def __init__(self, options: MetaNASOptions, data: ImageSet, sharing: TaskSharing | None = None) -> None:
        self.options, self.data, self.sharing = options, data, sharing
        self.learner = self.build()
        self.weights, self.alphas = (t.to(options.device).clone() for t in (self.learner.weights, self.learner.alphas))
        # The published copy of the network, with the weights it was constructed with (reference note, section 6.1).
        stale = (self.weights.clone(), self.alphas.clone()) if options.faithful and options.searches else None
        self.adapting = TaskLearner(self.learner.train, stale=stale)
        self.testing = TaskLearner(self.learner.test, stale=stale)
        self.moments = Moments.zeros(self.weights, self.alphas)
        self.tests: list[dict[str, Any]] = []
        self.validations: list[dict[str, float]] = []
        self.seconds = self.cpu_seconds = self.learning_seconds = 0.0
        self._watch = Stopwatch()

    def build(self) -> Learner:
        """What is meta-learned."""
        return build(self.options, self.data.images.shape[1], self.data.images.shape[-1])

    def check(self) -> None:
        """Draw once what the run will draw, so that data that cannot give it is refused before the work begins."""
        options = self.options
        drawn(options, self.data, "train", shots=options.train_shots, tasks=1, address=("meta-train", 0))
        for split in (options.eval_split, *(["val"] if options.validation_tasks else [])):
            drawn(options, self.data, split, shots=options.shots, tasks=1, address=("test", 0))

    def advance(self, step: int) -> list[dict[str, Any]]:
        """A meta-update, with the validation tasks where they are due, or a test task."""
        options = self.options
        if self.sharing is not None and (step >= options.meta_epochs or not self._deals):
            self.sharing.agree(self.weights)
        if step >= options.meta_epochs:
            number = step - options.meta_epochs
            self.tests.append({"event": "test", **self.test(options.eval_split, ("test", number))})
            return self.tests[-1:]
        started = time.process_time()
        lines = [self.update(step)]
        self.learning_seconds += time.process_time() - started
        if (step + 1) % options.eval_every == 0 and options.validation_tasks:
            lines.append(self._validate(step))
        return lines

    @property
    def _deals(self) -> bool:
        """Whether the tasks of a meta-update are dealt to ranks; published code takes them in turn."""
        return self.options.meta_learner == "reptile" and not self.options.faithful

    def update(self, epoch: int) -> dict[str, Any]:
        """One meta-update; returns its line for metrics.jsonl."""
        options = self.options
        task = drawn(
            options, self.data, "train", shots=options.train_shots, tasks=options.meta_batch, address=("meta-train", epoch)
        )
        given = supports(options, task, options.batch, ("meta-train", epoch))
        rule, _ = rules(options)
        rule = rule.frozen() if epoch < options.warm_up else rule
        share = self._schedule(epoch)
        start = (self.weights, self.alphas)
        if options.meta_learner == "reptile":
            learn = self.adapting.learn_in_turn if options.faithful else self.adapting.learn
            if self.sharing is not None and self._deals:
                learn = partial(self.sharing.learn, self.adapting)
            found = learn(start, self.moments, given, rule)
            self._adopt(found, given, rule, share)
            loss = float(found.losses[-1, 1].mean())
        else:
            loss = self._descend(start, given, (task.query_x, task.query_y), rule, share)
        if (epoch + 1) % options.eval_every == 0:
            self._switch_off(rule)
        return {"event": "meta-update", "epoch": epoch, "loss": loss}

    def _adopt(self, found: Learned, given: Supports, rule: TaskRule, share: float) -> None:
        """Eq. 9, with the mean over tasks that the published code takes for the sum."""
        self.moments = found.moments
        reptile_(self.weights, found.weights, self.options.meta_rate * share)
        if rule.architecture_steps:
            reptile_(self.alphas, found.alphas, self.options.meta_architecture_rate * share)

    def _descend(self, start: tuple[Tensor, Tensor], given: Any, queries: Any, rule: TaskRule, share: float) -> float:
        """Eq. 8: a step of SGD on the query loss after the inner steps."""
        second_order = self.options.meta_learner == "maml"
        (weights, alphas), loss = meta_gradient(self.learner.train, start, given, queries, rule, second_order=second_order)
        self._move(weights, alphas, rule, share)
        return float(loss)

    def _move(self, weights: Tensor, alphas: Tensor, rule: TaskRule, share: float) -> None:
        self.weights -= self.options.meta_rate * share * weights
        if rule.architecture_steps:
            self.alphas -= self.options.meta_architecture_rate * share * alphas

    def _schedule(self, epoch: int) -> float:
        """The share of the meta learning rates at a meta-update."""
        done = epoch / self.options.meta_epochs
        shares = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
        return shares[self.options.meta_schedule]

    def _switch_off(self, rule: TaskRule) -> None:
        """Meta-level pruning: operations that are improbable at the final temperature never come back; pairs stay."""
        architecture = self.learner.architecture
        if self.options.meta_threshold and rule.architecture_steps and architecture is not None:
            alphas, _ = architecture.split(self.alphas)
            improbable = torch.softmax(alphas / rule.temperature(rule.steps), -1) < self.options.meta_threshold
            alphas.masked_fill_(improbable, NEVER)

    def _validate(self, epoch: int) -> dict[str, Any]:
        found = [self.test("val", ("validation", t)) for t in range(self.options.validation_tasks)]
        means = {name: sum(record[name] for record in found) / len(found) for name in ACCURACIES if name in found[0]}
        self.validations.append({"epoch": epoch + 1, "cpu_seconds": self.learning_seconds, **means})
        return {"event": "validation", "epoch": epoch, **means}

    def test(self, split: str, address: tuple[int | str, ...]) -> dict[str, Any]:
        """One task of a split; see :func:`~engine.methods.metanas_tasks.tested`."""
        start = (self.weights, self.alphas)
        return tested(self.options, self.data, self.learner, self.testing, start, self.moments, split, address, self.also_tested)

    def also_tested(self, found: Learned, given: Supports, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        """What a test task's record holds besides accuracies: nothing here."""
        return {}

    def snapshot(self) -> Saved:
        """Everything that a checkpoint holds."""
        seconds, cpu_seconds, _ = self._watch.read()
        state = {
            "tests": self.tests,
            "validations": self.validations,
            "counts": [self.moments.weight_steps, self.moments.alpha_steps],
            "seconds": [self.seconds + seconds, self.cpu_seconds + cpu_seconds, self.learning_seconds],
        }
        tensors = {"weights": self.weights, "weight_moments": self.moments.weights}
        if len(self.alphas):
            tensors |= {"alphas": self.alphas, "alpha_moments": self.moments.alphas}
        return state, tensors

    def restore(self, saved: Saved) -> None:
        """Go on from a checkpoint."""
        state, tensors = saved
        device = self.options.device
        self.tests, self.validations = state["tests"], state["validations"]
        self.seconds, self.cpu_seconds, self.learning_seconds = state["seconds"]
        self.weights = tensors["weights"].to(device)
        self.alphas = tensors.get("alphas", self.alphas).to(device)
        alpha_moments = tensors.get("alpha_moments", self.moments.alphas).to(device)
        self.moments = Moments(tensors["weight_moments"].to(device), alpha_moments, *state["counts"])

    def result(self) -> dict[str, Any]:
        """The outcome, see :func:`~engine.methods.metanas_result.outcome`."""
        seconds = self.snapshot()[0]["seconds"]
        architecture = self.learner.architecture
        genotype = architecture.genotype(self.alphas) if architecture is not None else self.learner.genotype
        sizes = len(self.weights), len(self.alphas)
        return outcome(self.options, self.tests, self.validations, seconds=seconds, sizes=sizes, genotype=genotype)
