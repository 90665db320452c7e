"""The tasks of a MetaNAS meta-update dealt to the ranks of a process group (:mod:`engine.learning.ranks`)."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.learning.architecture_task import Learned, Moments, Supports, TaskLearner, TaskRule
from engine.learning.ranks import GroupStop, in_order
from engine.runs.distribution import Ranks


class TaskSharing:
    """Task t of a meta-batch belongs to rank t mod world; every rank then holds what all of them learned, in the tasks' order.

    So meta-parameters have the same bytes for any number of ranks. ``stop`` is told at every exchange whether a rank was asked to
    stop, so that all stop at the same step.
    """

    def __init__(self, ranks: Ranks, stop: GroupStop) -> None:
        self.ranks, self.stop = ranks, stop

    def learn(
        self, learner: TaskLearner, start: tuple[Tensor, Tensor], moments: Moments, supports: Supports, rule: TaskRule
    ) -> Learned:
        """What :meth:`TaskLearner.learn` returns. Costs a broadcast a task of its weights, architecture and moments."""
        if self.ranks.world == 1:
            return learner.learn(start, moments, supports, rule)
        weights, alphas = start
        sizes = [len(weights), len(alphas), len(weights), len(alphas), 2 * rule.steps, 1]

        def work(task: int) -> Tensor:
            found = learner.learn(start, moments, supports.of_task(task), rule)
            asked = weights.new_tensor([float(self.stop.own)])
            learned = found.weights[0], found.alphas[0], found.moments.weights, found.moments.alphas
            return torch.cat([*learned, found.losses.flatten(), asked])

        total = sum(sizes)
        found = torch.stack([piece.clone() for piece in in_order(self.ranks, work, [total] * len(supports.x), weights)])
        adapted, architectures, second, alpha_second, losses, asked = found.split(sizes, 1)
        self.stop.agree(bool(asked.any()))
        counts = moments.weight_steps + rule.steps, moments.alpha_steps + rule.architecture_steps
        after = Moments(second.mean(0), alpha_second.mean(0), *counts)
        return Learned(adapted.contiguous(), architectures.contiguous(), after, losses.view(-1, rule.steps, 2).permute(1, 2, 0))

    def agree(self, like: Tensor) -> None:
        """Exchange the requests to stop where no tasks are shared."""
        if self.ranks.world > 1:
            pieces = in_order(self.ranks, lambda _: like.new_tensor([float(self.stop.own)]), [1] * self.ranks.world, like)
            self.stop.agree(bool(torch.cat([piece.clone() for piece in pieces]).any()))
