"""MetaNAS's task learner: weights and architecture of T tasks learned together from their support sets.

Everything is flat: weights (T, P), architecture parameters (T, A), their gradients and Adam's second moments, so that an update
of all tasks is one pass. Gradients are formed task by task: a task fills a CPU's caches, and ten tasks side by side as one
grouped convolution make its pointwise layers slower (0.58 against 0.23 ms a task for 14 channels and 20 images of 28x28).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels.updates import AdamRule, adam_
from engine.runs.profiling import span
from engine.spaces.relaxations import annealed_temperature, check_annealing

Loss = Callable[[Tensor, Tensor], Tensor]  # (logits (N, K), labels (N,)) -> scalar


class Classifier(Protocol):
    """Logits (N, K) of images as a function of weights (P,) and architecture parameters (A,); A = 0 without architecture.

    ``alive`` may leave out what does not weigh; ``masks`` are DropPath's.
    """

    def __call__(
        self,
        weights: Tensor,
        alphas: Tensor,
        x: Tensor,
        temperature: float,
        *,
        alive: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> Tensor:
        """Logits (N, K)."""


class TaskModel(Classifier, Protocol):
    """What a task learner trains."""

    def active(self, alphas: Tensor, temperature: float) -> Tensor | None:
        """Which operations weigh something, on the host; None where that is fixed."""

    def drop_path(self, probability: float, samples: int, generator: torch.Generator) -> Tensor:
        """DropPath's masks for a batch."""


@dataclass(frozen=True)
class TaskRule:
    """How a task is learned (reference note on MetaNAS, section 3).

    ``steps`` Adam steps (beta1 = 0), of which the first ``architecture_steps`` also move the architecture: ``alternating``, the
    architecture first, on two draws from the support set (published code), or both from one gradient (paper 002, Eq. 2). The
    temperature falls from ``t_max`` to ``t_min`` over the architecture steps; without any (warm-up) it stays 1. Decay is L2.
    """

    steps: int
    architecture_steps: int
    rate: float = 1e-3
    architecture_rate: float = 1e-3
    decay: float = 0.0
    architecture_decay: float = 1e-3
    t_max: float = 1.0
    t_min: float = 0.1
    alternating: bool = False
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.architecture_steps:
            check_annealing(self.architecture_steps, self.t_max, self.t_min)

    def temperature(self, step: int) -> float:
        """At a step; at ``steps`` and later, when the task is tested, it is that of the end."""
        if not self.architecture_steps:
            return 1.0
        return annealed_temperature(step, self.architecture_steps, self.t_max, self.t_min)

    def frozen(self) -> TaskRule:
        """The same without architecture steps: the warm-up."""
        return replace(self, architecture_steps=0)


@dataclass
class Moments:
    """Adam's second moments and step counts, which outlive a task (published code, as in supervised-reptile).

    ``weights`` (P,) and ``alphas`` (A,). Tasks that advance together all start from these, and their mean is kept.
    """

    weights: Tensor
    alphas: Tensor
    weight_steps: int = 0
    alpha_steps: int = 0

    @classmethod
    def zeros(cls, weights: Tensor, alphas: Tensor) -> Moments:
        """Before the first task."""
        return cls(torch.zeros_like(weights), torch.zeros_like(alphas))


@dataclass(frozen=True)
class Supports:
    """The support sets of T tasks, ``x`` (T, N, C, H, W) and ``y`` (T, N), and how batches and DropPath are drawn from them.

    ``draw(task, step, purpose)`` gives the indices of a batch, None for the whole support set; ``generator(task, step, purpose)``
    is where DropPath's masks come from. ``purpose`` is "weights" or "alphas".
    """

    x: Tensor
    y: Tensor
    draw: Callable[[int, int, str], Tensor | None]
    generator: Callable[[int, int, str], torch.Generator]

    def batch(self, task: int, step: int, purpose: str) -> tuple[Tensor, Tensor]:
        """One batch of one task."""
        index = self.draw(task, step, purpose)
        x, y = self.x[task], self.y[task]
        return (x, y) if index is None else (x[index], y[index])

    def of_task(self, task: int) -> Supports:
        """One task alone, with the draws that it has among the others."""
        one = slice(task, task + 1)
        return Supports(
            self.x[one],
            self.y[one],
            lambda t, step, purpose: self.draw(task + t, step, purpose),
            lambda t, step, purpose: self.generator(task + t, step, purpose),
        )


@dataclass(frozen=True)
class Learned:
    """What T tasks learned: ``weights`` (T, P), ``alphas`` (T, A), the moments after them, and ``losses`` (steps, 2, T).

    ``losses[s]`` are the losses of the architecture's and of the weights' batch, NaN where there was none.
    """

    weights: Tensor
    alphas: Tensor
    moments: Moments
    losses: Tensor


class TaskLearner:
    """Learns tasks from a common start; see :class:`TaskRule`.

    ``stale`` (weights (P,), alphas (A,)) makes architecture gradients those of this fixed network, as in the published code,
    whose copy of the network was never renewed (reference note, section 6.1); None takes the network that is being trained.
    """

    def __init__(self, model: TaskModel, *, loss: Loss = F.cross_entropy, stale: tuple[Tensor, Tensor] | None = None) -> None:
        self.model, self.loss, self.stale = model, loss, stale

    def learn(self, start: tuple[Tensor, Tensor], moments: Moments, supports: Supports, rule: TaskRule) -> Learned:
        """All tasks together, step by step, from ``start`` = (weights (P,), alphas (A,)).

        On a GPU there is no host synchronisation except one a task when the architecture is settled and steps on the weights
        alone are left. On a CPU, where looking costs nothing, operations that weigh nothing are left out of every step.
        """
        tasks = len(supports.x)
        state = _State(*(t.detach().expand(tasks, -1).clone() for t in (*start, moments.weights, moments.alphas)))
        losses = state.weights.new_full((rule.steps, 2, tasks), torch.nan)
        alive: list[Tensor | None] = [None] * tasks
        for step in range(rule.steps):
            with span("inner step"):
                searching = step < rule.architecture_steps
                if not searching and step == rule.architecture_steps:
                    alive = [self.model.active(alphas, rule.temperature(step)) for alphas in state.alphas]
                if searching and rule.alternating:
                    for task in range(tasks):
                        losses[step, 0, task] = self._alpha_gradient(state, supports, rule, task, step)
                    self._move_alphas(state, rule, moments.alpha_steps + step + 1)
                for task in range(tasks):
                    both = searching and not rule.alternating
                    losses[step, 1, task] = self._weight_gradient(state, supports, rule, task, step, alive[task], both)
                if searching and not rule.alternating:
                    self._move_alphas(state, rule, moments.alpha_steps + step + 1)
                adam = AdamRule((0.0, 0.999), weight_decay=rule.decay)
                count = moments.weight_steps + step + 1
                adam_(state.weights, state.weight_gradient, state.first, state.second, count, rate=rule.rate, rule=adam)
        after = Moments(
            state.second.mean(0),
            state.alpha_second.mean(0),
            moments.weight_steps + rule.steps,
            moments.alpha_steps + rule.architecture_steps,
        )
        return Learned(state.weights, state.alphas, after, losses)

    def learn_in_turn(self, start: tuple[Tensor, Tensor], moments: Moments, supports: Supports, rule: TaskRule) -> Learned:
        """The tasks one after the other, each starting from the moments that the one before left (published code)."""
        found = []
        for task in range(len(supports.x)):
            found.append(self.learn(start, moments, supports.of_task(task), rule))
            moments = found[-1].moments
        return Learned(
            torch.cat([f.weights for f in found]),
            torch.cat([f.alphas for f in found]),
            moments,
            torch.cat([f.losses for f in found], 2),
        )

    def _alpha_gradient(self, state: _State, supports: Supports, rule: TaskRule, task: int, step: int) -> Tensor:
        """The architecture's gradient on its own batch, without weight gradients; returns the loss."""
        weights, alphas = self.stale or (state.weights[task], state.alphas[task])
        alphas = alphas.detach().requires_grad_(True)
        loss = self._loss(weights.detach(), alphas, supports, rule, task, step, "alphas")
        (state.alpha_gradient[task],) = torch.autograd.grad(loss, alphas)
        return loss.detach()

    def _weight_gradient(
        self, state: _State, supports: Supports, rule: TaskRule, task: int, step: int, alive: Tensor | None, both: bool
    ) -> Tensor:
        """The weights' gradient and, if ``both``, the architecture's from the same pass; returns the loss."""
        weights = state.weights[task].detach().requires_grad_(True)
        alphas = state.alphas[task].detach().requires_grad_(both and self.stale is None)
        loss = self._loss(weights, alphas, supports, rule, task, step, "weights", alive)
        wanted = [weights, alphas] if alphas.requires_grad else [weights]
        gradients = torch.autograd.grad(loss, wanted)
        state.weight_gradient[task] = gradients[0]
        if alphas.requires_grad:
            state.alpha_gradient[task] = gradients[1]
        elif both:
            self._alpha_gradient(state, supports, rule, task, step)
        return loss.detach()

    def _loss(
        self,
        weights: Tensor,
        alphas: Tensor,
        supports: Supports,
        rule: TaskRule,
        task: int,
        step: int,
        purpose: str,
        alive: Tensor | None = None,
    ) -> Tensor:
        x, y = supports.batch(task, step, purpose)
        temperature = rule.temperature(step)
        if alive is None and alphas.device.type == "cpu":
            alive = self.model.active(alphas, temperature)
        masks = None
        if rule.drop_path:
            masks = self.model.drop_path(rule.drop_path, len(x), supports.generator(task, step, purpose))
        return self.loss(self.model(weights, alphas, x, temperature, alive=alive, masks=masks), y)

    def _move_alphas(self, state: _State, rule: TaskRule, count: int) -> None:
        adam = AdamRule((0.0, 0.999), weight_decay=rule.architecture_decay)
        first = torch.zeros_like(state.alphas)
        adam_(state.alphas, state.alpha_gradient, first, state.alpha_second, count, rate=rule.architecture_rate, rule=adam)


class _State:
    """The flat buffers of T tasks while they are learned."""

    def __init__(self, weights: Tensor, alphas: Tensor, second: Tensor, alpha_second: Tensor) -> None:
        self.weights, self.alphas, self.second, self.alpha_second = weights, alphas, second, alpha_second
        self.weight_gradient, self.alpha_gradient = torch.zeros_like(weights), torch.zeros_like(alphas)
        self.first = torch.zeros_like(weights)  # beta1 = 0: overwritten by every step


def predictions(
    model: Classifier,
    weights: Tensor,
    alphas: Tensor,
    temperature: float,
    support: Tensor,
    query: Tensor,
    *,
    transductive: bool = True,
    alive: Tensor | None = None,
) -> Tensor:
    """Logits (Q, K) of a task's query images (Q, ...).

    Norms take the statistics of the batch, so what stands beside an image matters: ``transductive`` puts all queries into one
    batch (published code); otherwise each query joins the support set (supervised-reptile's other protocol), Q passes.
    """
    with torch.no_grad():
        if transductive:
            return model(weights, alphas, query, temperature, alive=alive)
        rows: list[Any] = [
            model(weights, alphas, torch.cat([support, one]), temperature, alive=alive)[-1] for one in query.split(1)
        ]
        return torch.stack(rows)
