"""MetaNAS: meta-learning of neural architectures for few-shot learning (paper 000; reference note on MetaNAS).

A supernet's weights w and architecture parameters alpha are meta-learned so that a few steps adapt both to a task
(:class:`~engine.learning.architecture_task.TaskLearner`). Temperatures that fall within every task make the architecture nearly
one-hot, so that it can be pruned after adaptation without retraining.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.kernels.updates import reptile_
from engine.learning.architecture_task import Learned, Moments, Supports, TaskLearner, TaskRule
from engine.learning.unrolled import meta_gradient
from engine.methods.metanas_networks import Learner, build
from engine.methods.metanas_options import MetaNASOptions
from engine.methods.metanas_tasks import drawn, interval, load_data, rules, supports, tested
from engine.runs.loop import steps
from engine.runs.stopwatch import Stopwatch

if TYPE_CHECKING:
    from engine.data import ImageSet
    from engine.runs.run import Run

NEVER = -1e9  # an operation that meta-level pruning switched off


def search(options: MetaNASOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Meta-train, then learn the test tasks, and return what goes into result.json.

    Steps 0 to meta_epochs - 1 of the run are meta-updates, the others test tasks; checkpoints in between hold everything.
    """
    training = MetaTraining(options, load_data(options))
    run_training(training, run, stop, progress)
    return outcome(options, training)


def run_training(training: MetaTraining, run: Run, stop: Any, progress: Any) -> None:
    """Every step that is left of a run."""
    options = training.options
    training.check()
    training.restore(run.load())
    total = options.meta_epochs + options.eval_tasks
    with progress(total, "meta-updates and test tasks", done=training.step) as bar:
        for step in steps(run, stop, training.snapshot, start=training.step, total=total):
            if step < options.meta_epochs:
                lines = training.update(step)
            else:
                lines = [{"event": "test", **training.test(options.eval_split, ("test", step - options.meta_epochs))}]
                training.tests.append(lines[0])
            for line in lines:
                run.append("metrics.jsonl", line)
            bar.advance(1, **{name: lines[-1][name] for name in ("loss", "accuracy") if name in lines[-1]})


def plan(options: MetaNASOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    inner = options.meta_epochs * options.meta_batch * options.steps
    return [
        ("network", options.network),
        ("meta-updates", f"{options.meta_epochs} of {options.meta_batch} tasks, {options.warm_up} of them warm-up"),
        ("inner steps", f"{inner} in meta-training, {options.eval_tasks * options.test_steps} in test tasks"),
        ("test tasks", f"{options.eval_tasks} of {options.ways} ways and {options.shots} shots from split {options.eval_split}"),
    ]


class MetaTraining:
    """The meta-parameters, and one meta-update or one test task at a time."""

    def __init__(self, options: MetaNASOptions, data: ImageSet) -> None:
        self.options, self.data = options, data
        self.learner: Learner = build(options, data.images.shape[1], data.images.shape[-1])
        self.weights, self.alphas = (t.to(options.device).clone() for t in (self.learner.weights, self.learner.alphas))
        # The published copy of the network, with the weights it was constructed with (reference note, section 6.1).
        stale = (self.weights.clone(), self.alphas.clone()) if options.faithful and options.searches else None
        self.adapting = TaskLearner(self.learner.train, stale=stale)
        self.testing = TaskLearner(self.learner.test, stale=stale)
        self.moments = Moments.zeros(self.weights, self.alphas)
        self.step = 0
        self.tests: list[dict[str, Any]] = []
        self.validations: list[dict[str, float]] = []
        self.seconds = self.cpu_seconds = 0.0
        self._watch = Stopwatch()

    def check(self) -> None:
        """Draw once what the run will draw, so that data that cannot give it is refused before the work begins."""
        options = self.options
        drawn(options, self.data, "train", shots=options.train_shots, tasks=1, address=("meta-train", 0))
        for split in (options.eval_split, *(["val"] if options.validation_tasks else [])):
            drawn(options, self.data, split, shots=options.shots, tasks=1, address=("test", 0))

    def update(self, epoch: int) -> list[dict[str, Any]]:
        """One meta-update; returns its line for metrics.jsonl, and one of the validation tasks when they are due."""
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
            found = learn(start, self.moments, given, rule)
            self._adopt(found, given, rule, share)
            loss = float(found.losses[-1, 1].mean())
        else:
            loss = self._descend(start, given, (task.query_x, task.query_y), rule, share)
        lines: list[dict[str, Any]] = [{"event": "meta-update", "epoch": epoch, "loss": loss}]
        if (epoch + 1) % options.eval_every == 0:
            self._switch_off(rule)
            if options.validation_tasks:
                lines.append(self._validate(epoch))
        return lines

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
        names: list[str] = [name for name in ("accuracy", "pruned_accuracy") if name in found[0]]
        means = {name: interval([record[name] for record in found])["mean"] for name in names}
        self.validations.append({"epoch": epoch + 1, **means})
        return {"event": "validation", "epoch": epoch, **means}

    def test(self, split: str, address: tuple[int | str, ...]) -> dict[str, Any]:
        """One task of a split; see :func:`~engine.methods.metanas_tasks.tested`."""
        start = (self.weights, self.alphas)
        return tested(self.options, self.data, self.learner, self.testing, start, self.moments, split, address, self.also_tested)

    def also_tested(self, found: Learned, given: Supports, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        """What a test task's record holds besides accuracies: nothing here."""
        return {}

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Everything that a checkpoint holds."""
        seconds, cpu_seconds, _ = self._watch.read()
        state = {
            "tests": self.tests,
            "validations": self.validations,
            "counts": [self.moments.weight_steps, self.moments.alpha_steps],
            "seconds": self.seconds + seconds,
            "cpu_seconds": self.cpu_seconds + cpu_seconds,
        }
        tensors = {"weights": self.weights, "weight_moments": self.moments.weights}
        if len(self.alphas):
            tensors |= {"alphas": self.alphas, "alpha_moments": self.moments.alphas}
        return state, tensors

    def restore(self, loaded: tuple[dict[str, Any], dict[str, Tensor]] | None) -> None:
        """Go on from a checkpoint, if there is one."""
        if loaded is None:
            return
        state, tensors = loaded
        device = self.options.device
        self.step, self.tests, self.validations = state["step"], state["tests"], state["validations"]
        self.seconds, self.cpu_seconds = state["seconds"], state["cpu_seconds"]
        self.weights = tensors["weights"].to(device)
        alphas = tensors.get("alphas", self.alphas).to(device)
        alpha_moments = tensors.get("alpha_moments", self.moments.alphas).to(device)
        self.alphas, counts = alphas, state["counts"]
        self.moments = Moments(tensors["weight_moments"].to(device), alpha_moments, *counts)


def outcome(options: MetaNASOptions, training: MetaTraining) -> dict[str, Any]:
    """The result of a finished run."""
    tests, state = training.tests, training.snapshot()[0]
    names: list[str] = [name for name in ("accuracy", "pruned_accuracy") if name in tests[0]]
    columns = {name: interval([t[name] for t in tests]) for name in names}
    counted: list[str] = [name for name in ("parameters", "pruned_parameters") if name in tests[0]]
    sizes = {name: interval([float(t[name]) for t in tests])["mean"] for name in counted}
    result: dict[str, Any] = {
        "network": options.network,
        "accuracy": columns["accuracy"]["mean"],
        "interval": columns["accuracy"]["interval"],
        "test_tasks": len(tests),
        **{f"test_{name}": value for name, value in columns.items()},
        **{f"mean_{name}": value for name, value in sizes.items()},
        "meta_parameters": len(training.weights) + len(training.alphas),
        "seconds": round(state["seconds"], 3),
        "cpu_seconds": round(state["cpu_seconds"], 3),
        "tables": [_table(options, columns, sizes, len(training.weights))],
        "plots": _plots(training.validations),
    }
    architecture = training.learner.architecture
    genotype = architecture.genotype(training.alphas) if architecture is not None else training.learner.genotype
    return {**result, "genotype": genotype} if genotype is not None else result


def _table(options: MetaNASOptions, columns: dict[str, dict[str, float]], sizes: dict[str, float], fixed: int) -> dict[str, Any]:
    rows = []
    for name, label in (("accuracy", "as it was learned"), ("pruned_accuracy", "one-hot, not retrained")):
        if name in columns:
            found = columns[name]
            count = sizes.get({"accuracy": "parameters", "pruned_accuracy": "pruned_parameters"}[name], fixed)
            rows.append([label, f"{100 * found['mean']:.1f} ± {100 * found['interval']:.1f}", f"{count:,.0f}"])
    title = f"{options.ways}-way {options.shots}-shot accuracy of {options.eval_tasks} test tasks (%, 95 % interval over tasks)"
    return {"title": title, "columns": ["network", "accuracy", "parameters"], "rows": rows}


def _plots(validations: list[dict[str, float]]) -> list[dict[str, Any]]:
    if not validations:
        return []
    labels = {"accuracy": "as it was learned", "pruned_accuracy": "one-hot, not retrained"}
    epochs = [v["epoch"] for v in validations]
    series = [
        {"name": label, "x": epochs, "y": [v[key] for v in validations]} for key, label in labels.items() if key in validations[0]
    ]
    return [{"title": "Validation tasks", "x_label": "meta-updates", "y_label": "accuracy", "series": series, "kind": "line"}]
