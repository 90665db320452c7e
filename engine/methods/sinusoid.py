"""Sinusoid regression (Finn et al. 2017, section 5.1): meta-learn to fit y = A sin(x - b) from a few points.

A ticket masks the middle weight of the 1-40-40-1 network alone and meta-learns the others beside its scores, by one AdamW, since
the published rates of both are equal (reference note meta-ticket, sections 5 and 6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call

from engine.learning.evaluation import with_steps
from engine.learning.inner import SGD, Params, adapt
from engine.learning.masking import mask_parameters, rerandomise
from engine.learning.outer import Problem, mean_squared_error
from engine.learning.tasks import Task, sinusoid_tasks
from engine.methods.meta_data import Address, drawn
from engine.methods.meta_jobs import jobs
from engine.methods.meta_learner import Learner, part_of
from engine.methods.meta_result import plots, tested
from engine.methods.meta_study import study
from engine.methods.meta_training import settle_length, train
from engine.methods.sinusoid_options import SinusoidOptions
from engine.runs.distribution import ALONE, Ranks
from engine.runs.stopwatch import Stopwatch
from engine.spaces.networks import SinusoidMLP

if TYPE_CHECKING:
    from engine.runs.run import Run

MASKED = "hidden2.weight"
FROZEN = {"maml": "", "anil": "features", "boil": "classifier", "meta-ticket": ""}
GRID = 60  # points of a drawn curve


@dataclass(frozen=True)
class Sinusoids:
    """Regressions by address; the splits are draws of their own."""

    options: SinusoidOptions
    name: str = "sinusoid"

    @property
    def validates(self) -> bool:
        """Whether training is watched."""
        return self.options.validation_tasks > 0

    def draw(self, split: str, count: int, address: Address) -> Task:
        """``count`` tasks on the device."""
        options = self.options
        drawn = sinusoid_tasks(shots=options.shots, tasks=count, seed=options.seed, address=(split, *address))
        return Task(*(part.to(options.device) for part in drawn))


def search(options: SinusoidOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Meta-train and test; the result has no genotype. Several runs where the options compare or vary."""
    if options.is_study:
        return study(options, run, stop, progress)
    watch = Stopwatch()
    source = Sinusoids(options)
    options = settle_length(options, lambda settled: make_learner(settled, ALONE), source, run)
    learner = make_learner(options, run.ranks)
    curve = train(learner, source, run, stop, progress)
    found = learner.test(source, "test", options.test_tasks, (), stop)
    by_step = [learner.test(source, "test", options.test_tasks, (), stop, steps=k) for k in range(options.steps(training=False))]
    errors = [each.to_dict() for each in (*by_step, found)]
    sparsity = learner.sparsity()
    seconds, cpu_seconds, _ = watch.read()
    return {
        **found.to_dict(),
        "protocol": f"{options.shots} points to learn and {options.shots} to test, {options.test_tasks} tasks, "
        f"{options.steps(training=False)} inner steps, mean squared error; 95 % interval over tasks",
        "outer_steps": options.iterations,
        "learned_parameters": learner.layout.size,
        **({"masked_weights": learner.params[MASKED].numel(), "sparsity": sparsity} if sparsity else {}),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "plots": [*plots(curve), step_plot(errors), example_plot(learner, source.draw("test", 1, ("example",)).take(0))],
        "tables": [step_table(errors)],
        "tests": tested({source.name: found}),
    }


def plan(options: SinusoidOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    runs = [job.folder for job in jobs(options)] if options.is_study else [options.learner]
    steps = f"{options.iterations} outer steps of {options.batch} tasks, {options.steps(training=True)} inner steps each"
    return [("runs", f"{len(runs)}: {', '.join(runs)}"), ("training", steps)]


def make_learner(options: SinusoidOptions, ranks: Ranks) -> Learner:
    """The regressor with what is learned of it."""
    with torch.device("meta"):
        model = SinusoidMLP(options.factor)
    module, params = drawn(model, options)
    rates = {name: options.inner_rate for name in params if part_of(name) != FROZEN[options.learner]}
    steps, order = options.steps(training=True), options.first_order
    if options.learner != "meta-ticket":
        problem = Problem(lambda p, x: functional_call(module, p, (x,)), rates, steps, tuple(params), order, mean_squared_error)
        return Learner(options, problem, module, params, ranks=ranks)
    others = [name for name in params if name != MASKED] if options.auxiliary else []
    network, params = mask_parameters(module, params, lambda name: name == MASKED, seed=options.seed)

    def after(params: Params, step: int) -> None:
        if options.rerand_every is not None and step % options.rerand_every == 0:
            rerandomise(network, params, 1.0, "kaiming-normal", seed=options.seed, step=step)

    problem = Problem(network.predict, rates, steps, (*network.scores, *others), order, mean_squared_error)
    return Learner(options, problem, module, params, network, after, ranks=ranks)


def step_table(errors: list[dict[str, Any]]) -> dict[str, Any]:
    """Error by inner step."""
    rows = [[step, round(test["loss"], 4), round(test["interval"], 4)] for step, test in enumerate(errors)]
    return {"title": "Squared error of test tasks", "columns": ["inner steps", "mean", "95 % interval"], "rows": rows}


def step_plot(errors: list[dict[str, Any]]) -> dict[str, Any]:
    """The same as a plot."""
    mean, half = ([test[name] for test in errors] for name in ("loss", "interval"))
    low, high = [m - h for m, h in zip(mean, half, strict=True)], [m + h for m, h in zip(mean, half, strict=True)]
    series = {"name": "test tasks", "x": list(range(len(mean))), "y": mean, "low": low, "high": high}
    return {"title": "Error by inner step", "x_label": "inner steps", "y_label": "squared error", "series": [series]}


def example_plot(learner: Learner, task: Task) -> dict[str, Any]:
    """One test task: the points it is learned from, and the network before and after."""
    problem = with_steps(learner.problem, learner.options.steps(training=False))
    adapted = adapt(problem.loss, learner.params, task.support, problem.steps, SGD(problem.rates)).params
    x = torch.linspace(-5, 5, GRID, device=task.support_x.device).unsqueeze(1)
    order = task.support_x.flatten().argsort()
    lines = {
        "before": (x, problem.predict(learner.params, x)),
        f"after {problem.steps} steps": (x, problem.predict(adapted, x)),
        "points": (task.support_x[order], task.support_y[order]),
    }
    series = [{"name": name, "x": a.flatten().tolist(), "y": b.flatten().tolist()} for name, (a, b) in lines.items()]
    return {"title": "One test task", "x_label": "x", "y_label": "y", "series": series, "scale": "linear"}
