"""A meta-learner's parameters, and everything that moves and tests them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from engine.learning.evaluation import Outputs, Tested, learned_outputs, score_outputs, support_predict, with_steps
from engine.learning.flat import Layout
from engine.learning.inner import SGD, Params, adapt
from engine.learning.masked_mlp import is_written_out, mlp_batch, mlp_outputs
from engine.learning.masking import MaskedNetwork
from engine.learning.outer import ManyTasks, Problem, looped, summed_gradient, vmapped
from engine.learning.outer_update import AdamW, Momentum, OuterUpdate, Parts
from engine.learning.ranks import pieces, reduce_pieces
from engine.learning.schedules import constant, warmup_cosine
from engine.learning.tasks import Task
from engine.methods.learning_options import OuterOptions
from engine.methods.meta_data import Address, TaskSource
from engine.runs.distribution import ALONE, Ranks
from engine.spaces.networks import SinusoidMLP

TASKS_AT_ONCE = 25


def make_update(options: OuterOptions, parameters: Tensor, *, rate: float | None = None) -> OuterUpdate:
    """The outer optimiser of these options, with another learning rate if one is given."""
    if options.outer == "adamw":
        return AdamW.zeros(parameters, constant(rate or options.outer_rate_adamw))
    schedule = warmup_cosine(rate or options.outer_rate_sgd, warmup=options.warmup, total=options.iterations)
    return Momentum(torch.zeros_like(parameters), schedule)


def part_of(name: str) -> str:
    """``"classifier"``, the head of the network, which in a :class:`SinusoidMLP` is its last layer, or ``"features"``."""
    return "classifier" if name.startswith(("classifier", "hidden3")) else "features"


class Learner:
    """Meta-parameters and the rest, each in one buffer, and everything that moves them.

    ``after(params, step)`` is called after outer step number ``step``, counted from 1. ``ranks`` share the tasks of a step in
    pieces of ``piece`` tasks; one rank alone goes through them one after the other. In tests BatchNorm takes its statistics from
    the ``leading`` samples of a task, its support, or from all queries where that is None. ``scale_rate`` is the outer learning
    rate of the network's scales, which come last in ``problem.learned``.
    """

    def __init__(
        self,
        options: OuterOptions,
        problem: Problem,
        module: nn.Module,
        params: Params,
        network: MaskedNetwork | None = None,
        after: Callable[[Params, int], None] | None = None,
        *,
        ranks: Ranks = ALONE,
        leading: int | None = None,
        scale_rate: float | None = None,
    ) -> None:
        self.options, self.problem, self.module, self.network, self.after = options, problem, module, network, after
        self.ranks, self.leading = ranks, leading
        learned = {name: params[name] for name in problem.learned}
        rest = {name: value for name, value in params.items() if name not in learned}
        self.layout = Layout.of(learned)
        self.meta = self.layout.pack(learned)
        self.fixed = Layout.of(rest).pack(rest) if rest else self.meta.new_zeros(0)
        self.params = self.layout.views(self.meta) | (Layout.of(rest).views(self.fixed) if rest else {})
        scales = 0 if network is None else len(network.scales)
        self.update = make_update(options, self.meta[: self.layout.size - scales])
        if scales:
            own = make_update(options, self.meta[-scales:], rate=scale_rate)
            self.update = Parts((self.layout.size - scales, scales), (self.update, own))
        self.run = self._way()
        self.piece = options.task_chunk or -(-options.batch // ranks.world)
        self.limit = self.piece
        self._buffers: dict[int, Tensor] = {}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds; all are updated in place."""
        return {"meta": self.meta, "fixed": self.fixed, **self.update.state}

    @property
    def written_out(self) -> bool:
        """Whether gradients and tests are those of :mod:`engine.learning.masked_mlp`."""
        return is_written_out(self.problem, self.module, self.network)

    @property
    def together(self) -> bool:
        """Whether tasks run as one batch: MLPs always, convolutions on a GPU; on a CPU a loop measured faster for those."""
        known = isinstance(self.module, SinusoidMLP) or self.written_out
        return known or self.options.device == "cuda"

    def _way(self) -> ManyTasks:
        if self.written_out:
            return mlp_batch(self.problem, self.module, self.network)
        return vmapped(self.problem) if self.together else looped(self.problem)

    def step(self, tasks: Task, step: int, halved: Callable[[int], None], asked: bool = False) -> tuple[Tensor, bool]:
        """One outer step; returns each task's share of right answers and loss (2, T), and whether some rank ``asked`` to stop.

        No synchronisation with the device unless ranks share the step. Lack of memory halves what is differentiated at once,
        from this step on, and tells ``halved``.
        """
        parts = pieces(len(tasks.support_y), self.piece)
        found = reduce_pieces(
            self.ranks,
            lambda number: self._piece(number, tasks.take(parts[number]), asked, halved),
            parts,
            self.layout.size,
            self.meta,
        )
        self.update.step(self.meta, found.gradient.div_(len(tasks.support_y)), step)
        if self.after is not None:
            self.after(self.params, step + 1)
        return found.facts, found.asked

    def _piece(self, number: int, tasks: Task, asked: bool, halved: Callable[[int], None]) -> Tensor:
        def smaller(size: int) -> None:
            self.limit = size
            halved(size)

        sums = summed_gradient(self.run, self.params, tasks, chunk=self.limit, halved=smaller)
        facts = torch.stack(score_outputs(self.problem, sums.outputs, tasks.query_y))
        piece = self._buffer(number if self.ranks.world > 1 else 0, self.layout.size + facts.numel() + 1)
        for name, view in self.layout.views(piece[: self.layout.size]).items():
            view.copy_(sums.gradients[name])
        piece[self.layout.size : -1] = facts.flatten()
        piece[-1] = float(asked)
        return piece

    def _buffer(self, key: int, size: int) -> Tensor:
        """Memory that outlives a step: fresh pages cost a CPU more than what is written into them."""
        if key not in self._buffers or len(self._buffers[key]) != size:
            self._buffers[key] = self.meta.new_empty(size)
        return self._buffers[key]

    def test(
        self, source: TaskSource, split: str, count: int, address: Address, stop: Any = None, *, steps: int | None = None
    ) -> Tested:
        """How ``count`` tasks of a split are learned in ``steps`` inner steps, None for those of the options.

        Ranks share the tasks, and each knows all results.
        """
        taken = self.options.steps(training=False) if steps is None else steps
        outputs = self._outputs(with_steps(self.problem, taken))

        def work(number: int) -> list[list[float]]:
            first = number * TASKS_AT_ONCE
            tasks = source.draw(split, min(TASKS_AT_ONCE, count - first), (*address, first))
            with torch.no_grad():
                right, losses = score_outputs(self.problem, outputs(self.params, tasks), tasks.query_y)
            if stop is not None:
                stop.check()
            return [[] if self.problem.regression else right.tolist(), losses.tolist()]

        label = "/".join(map(str, ("test", taken, source.name, split, *address)))
        parts = list(self.ranks.deal(label, -(-count // TASKS_AT_ONCE), work))
        right, losses = ([value for part in parts for value in part[row]] for row in (0, 1))
        return Tested(right, losses)

    def _outputs(self, problem: Problem) -> Outputs:
        if self.written_out:
            return mlp_outputs(problem, self.module, self.network, alone=self.leading is not None)
        if self.leading is None:
            return learned_outputs(problem, together=self.together)
        effective = (lambda p: p) if self.network is None else self.network.effective
        shared = support_predict(self.module, self.leading, effective)
        return learned_outputs(problem, together=self.together, shared=shared)

    def task_gradient(self, tasks: Task) -> float:
        """Mean |sum over inner steps of the gradient| of the last feature layer's weight, averaged over tasks (Figure 2)."""
        name = [n for n, p in self.module.named_parameters() if p.ndim > 1 and part_of(n) == "features"][-1]
        if self.problem.rates.get(name, 0.0) == 0.0:
            return 0.0
        sizes = []
        for t in range(len(tasks.support_y)):
            learner = adapt(self.problem.loss, self.params, tasks.take(t).support, self.problem.steps, SGD(self.problem.rates))
            sizes.append(learner.gradients[name].abs().mean())
        return float(torch.stack(sizes).mean())

    def sparsity(self) -> dict[str, float]:
        """Pruned share by layer; empty where nothing is masked."""
        return {} if self.network is None else self.network.sparsity(self.params)
