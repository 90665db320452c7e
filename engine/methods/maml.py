"""MAML (Finn et al. 2017), ANIL (Raghu et al. 2020) and BOIL (Oh et al. 2021): an initialisation that tasks are learned from.

They differ in what the inner loop adapts: everything, the head, or everything but the head; all parameters are meta-learned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.func import functional_call

from engine.learning.outer import Problem
from engine.methods.learning_options import LearningOptions, MAMLOptions
from engine.methods.meta_data import ImageTasks, draw_network, load_others, load_tasks
from engine.methods.meta_jobs import jobs
from engine.methods.meta_learner import Learner, part_of
from engine.methods.meta_result import finish, protocol
from engine.methods.meta_study import study
from engine.methods.meta_training import settle_length, train
from engine.runs.distribution import ALONE, Ranks
from engine.runs.stopwatch import Stopwatch

if TYPE_CHECKING:
    from engine.runs.run import Run


def search(options: MAMLOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Meta-train and test; the result has no genotype. Several runs where the options compare or vary."""
    if options.is_study:
        return study(options, run, stop, progress)
    watch = Stopwatch()
    source = load_tasks(options)
    others = load_others(options, source)
    options = settle_length(options, lambda settled: make_learner(settled, source, ALONE), source, run)
    learner = make_learner(options, source, run.ranks)
    curve = train(learner, source, run, stop, progress)
    return finish(learner, options, curve, {options.data: source, **others}, run, stop, watch)


def make_learner(options: MAMLOptions, source: ImageTasks, ranks: Ranks) -> Learner:
    """The network, what of it is adapted and what is learned."""
    module, values = draw_network(options, source.data)
    rates = {name: options.inner_rate for name in values if part_of(name) != options.frozen}
    problem = Problem(
        lambda params, x: functional_call(module, params, (x,)),
        rates,
        options.steps(training=True),
        tuple(values),
        options.first_order,
    )
    return Learner(options, problem, module, values, ranks=ranks, leading=options.leading)


def plan(options: LearningOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    runs = jobs(options) if options.is_study else []
    return [
        *([("runs", f"{len(runs)}: {', '.join(job.folder for job in runs)}")] if runs else []),
        ("network", f"{options.network}, width factor {options.factor}"),
        (
            "training",
            f"{options.iterations} outer steps of {options.batch} tasks, {options.steps(training=True)} inner steps each",
        ),
        ("test", protocol(options)),
    ]
