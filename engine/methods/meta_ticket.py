"""Meta-ticket (Chijiwa et al., NeurIPS 2022): a mask of a random network, meta-learned so that tasks are learned in it.

Weights phi stay as they were drawn; scores s are the only meta-parameters. Per outer step and task (Algorithm 1): phi is adapted
on the support with w = m(s) phi (Eq. 2), the query loss at the adapted weights gives the score gradient straight through (Eq. 5),
and SGD with momentum moves the scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.learning.inner import Params
from engine.learning.masking import fix_weights, mask_parameters, rerandomise
from engine.learning.outer import Problem
from engine.methods.learning_options import LearningOptions, MetaTicketOptions
from engine.methods.maml import plan as maml_plan
from engine.methods.meta_data import ImageTasks, draw_network, load_others, load_tasks
from engine.methods.meta_learner import Learner, part_of
from engine.methods.meta_result import finish
from engine.methods.meta_study import study
from engine.methods.meta_training import settle_length, train
from engine.runs.distribution import ALONE, Ranks
from engine.runs.stopwatch import Stopwatch

if TYPE_CHECKING:
    from engine.runs.run import Run


def search(options: MetaTicketOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Meta-train the mask and test; the result has no genotype. Several runs where the options compare or vary."""
    if options.is_study:
        return study(options, run, stop, progress)
    watch = Stopwatch()
    source = load_tasks(options)
    others = load_others(options, source)
    options = settle_length(options, lambda settled: make_learner(settled, source, ALONE), source, run)
    learner = make_learner(options, source, run.ranks)
    curve = train(learner, source, run, stop, progress)
    return finish(learner, options, curve, {options.data: source, **others}, run, stop, watch)


def make_learner(options: MetaTicketOptions, source: ImageTasks, ranks: Ranks) -> Learner:
    """The masked network, what of it is adapted, and what happens to it beside learning."""
    module, values = draw_network(options, source.data)
    network, params = mask_parameters(
        module,
        values,
        lambda name: values[name].ndim > 1 and (options.prune_output or part_of(name) != "classifier"),
        seed=options.seed,
        sparsity=options.sparsity,
        init=options.weights,
        scale=options.learnable_scale,
    )
    if options.constant is not None:
        fix_weights(network, params, options.constant)

    def after(params: Params, step: int) -> None:
        if options.rerand_every is not None and step % options.rerand_every == 0:
            rerandomise(network, params, options.rerand_rate, options.weights, seed=options.seed, step=step)

    rates = {name: options.inner_rate for name in values if not (options.boil and part_of(name) == "classifier")}
    learned = (*network.scores, *network.scales)
    problem = Problem(network.predict, rates, options.steps(training=True), learned, options.first_order)
    settings: dict[str, Any] = {"ranks": ranks, "leading": options.leading, "scale_rate": options.scale_rate}
    return Learner(options, problem, module, params, network, after, **settings)


def plan(options: LearningOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    return maml_plan(options)
