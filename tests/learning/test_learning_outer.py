"""Outer gradients: all ways agree, frozen parts cost nothing, chunks and lack of memory change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from engine.errors import ConfigurationError
from engine.learning import masked_mlp
from engine.learning.evaluation import learned_outputs, support_predict
from engine.learning.inner import SGD, Adam, adapt
from engine.learning.masked_mlp import is_written_out, mlp_batch, mlp_outputs
from engine.learning.masking import MaskedNetwork, mask_parameters, score_name
from engine.learning.outer import Problem, analytic, automatic, looped, meta_gradient, reptile, vmapped
from engine.learning.tasks import Task, sinusoid_tasks
from engine.runs.streams import stream
from engine.spaces.networks import MLP, SinusoidMLP


def make_tasks(tasks: int = 3, samples: int = 6, inputs: int = 12) -> Task:
    generator = stream(0, "test-tasks")
    x = torch.rand(2, tasks, samples, inputs, dtype=torch.float64, generator=generator)
    labels = (torch.arange(samples) % 3).expand(tasks, samples).contiguous()
    return Task(x[0], labels, x[1], labels)


def network(masked: bool, widths: tuple[int, ...] = (8, 7)) -> tuple[Any, dict[str, Tensor], MaskedNetwork | None]:
    model = MLP(12, widths, 3).double()
    values = {
        name: p.detach() + 0.05 * torch.randn(p.shape, dtype=p.dtype, generator=stream(1, "test", name))
        for name, p in model.named_parameters()
    }
    if not masked:
        return model, values, None
    ticket, params = mask_parameters(model, values, lambda name: name.endswith("linear.weight"), seed=2, sparsity=0.3)
    return model, params, ticket


def make_problem(masked: bool, steps: int, first_order: bool = False, frozen: str | None = None) -> tuple[Any, ...]:
    model, params, ticket = network(masked)
    own = [name for name in params if not name.endswith("_score")]
    rates = {name: 0.3 for name in own if frozen is None or not name.startswith(frozen)}
    predict = ticket.predict if ticket else lambda p, x: functional_call(model, p, (x,))
    learned = ticket.scores if ticket else tuple(own)
    return Problem(predict, rates, steps, learned, first_order), params, model, ticket


@pytest.mark.parametrize("frozen", [None, "classifier", "features"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_all_ways_give_the_same_gradient(masked: bool, steps: int, first_order: bool, frozen: str | None) -> None:
    problem, params, model, ticket = make_problem(masked, steps, first_order, frozen)
    tasks = make_tasks()
    expected = meta_gradient(looped(problem), params, tasks)
    for run in (looped(problem, analytic), vmapped(problem), mlp_batch(problem, model, ticket)):
        found = meta_gradient(run, params, tasks)
        for name in problem.learned:
            torch.testing.assert_close(found.gradients[name], expected.gradients[name], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.outputs, expected.outputs)
        torch.testing.assert_close(found.losses, expected.losses)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("frozen", [None, "classifier", "features"])
@pytest.mark.parametrize("masked", [False, True])
def test_written_out_answers_are_those_of_the_module(
    masked: bool, frozen: str | None, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, params, model, ticket = make_problem(masked, 3, frozen=frozen)
    tasks = make_tasks()
    shared = support_predict(model, 6, ticket.effective if ticket else lambda p: p) if alone else None
    monkeypatch.setattr(masked_mlp, "ADAPTED_NUMBERS", 2 * (12 * 8 + 8 * 7))  # two of the three tasks at a time
    found = mlp_outputs(problem, model, ticket, alone=alone)(params, tasks)
    for together in (False, True):
        expected = learned_outputs(problem, together=together, shared=shared)(params, tasks)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert (found != mlp_outputs(problem, model, ticket, alone=not alone)(params, tasks)).any()


def test_outer_gradient_is_the_derivative_of_the_query_loss() -> None:
    problem, params, _, _ = make_problem(False, 2)
    task = make_tasks(1).take(0)
    gradients, _, _ = automatic(problem, params, task)
    name, step = "features.1.linear.weight", 1e-6

    def query_loss(shift: float) -> Tensor:
        moved = params | {name: params[name] + shift}
        return problem.loss(adapt(problem.loss, moved, task.support, 2, SGD(problem.rates)).params, task.query)

    numeric = (query_loss(step) - query_loss(-step)) / (2 * step)
    assert gradients[name].sum().item() == pytest.approx(numeric.item(), rel=1e-6)


@given(st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=8, deadline=None)
def test_chunks_change_nothing(chunk: int, total: int) -> None:
    problem, params, model, ticket = make_problem(True, 1)
    tasks = make_tasks(total)
    whole = meta_gradient(looped(problem), params, tasks)
    parts = meta_gradient(mlp_batch(problem, model, ticket), params, tasks, chunk=chunk)
    for name in problem.learned:
        torch.testing.assert_close(parts.gradients[name], whole.gradients[name])
    assert parts.losses.shape == (total,)


def test_running_out_of_memory_halves_the_chunk() -> None:
    problem, params, _, _ = make_problem(False, 1)
    sizes: list[int] = []
    run = looped(problem)

    def short(params: dict[str, Tensor], tasks: Task) -> Any:
        sizes.append(len(tasks.support_y))
        if len(tasks.support_y) > 2:
            raise torch.OutOfMemoryError("can't allocate memory")
        return run(params, tasks)

    told: list[int] = []
    found = meta_gradient(short, params, make_tasks(5), halved=told.append)
    assert (sizes, told) == ([5, 2, 2, 1], [2])
    whole = meta_gradient(run, params, make_tasks(5))
    for name in problem.learned:
        torch.testing.assert_close(found.gradients[name], whole.gradients[name])


def test_one_task_that_does_not_fit_is_an_error() -> None:
    def never(params: dict[str, Tensor], tasks: Task) -> Any:
        raise MemoryError

    with pytest.raises(MemoryError):
        meta_gradient(never, {}, make_tasks(2))


def test_mask_and_weight_gradients_are_one_product() -> None:
    """Eq. 9: dL/dm = phi dL/dw and dL/dphi = m dL/dw."""
    problem, params, _, ticket = make_problem(True, 1)
    task = make_tasks(1).take(0)
    found = torch.func.grad(problem.loss)(params, task.support)
    for name, kept in ticket.masks(params).items():
        effective = ticket.effective(params)
        plain = torch.func.grad(lambda w: cross_entropy(functional_call(ticket.module, w, (task.support_x,)), task.support_y))
        outer = plain(effective)[name]
        torch.testing.assert_close(found[score_name(name)], params[name] * outer)
        torch.testing.assert_close(found[name], kept * outer)


def test_frozen_features_take_no_part_in_the_inner_backward() -> None:
    problem, params, _, _ = make_problem(False, 1, frozen="features")
    learner = adapt(problem.loss, params, make_tasks(1).take(0).support, 2, SGD(problem.rates))
    assert set(learner.gradients) == {"classifier.weight", "classifier.bias"}
    assert all(learner.params[name] is params[name] for name in params if name.startswith("features"))


def test_adam_learns_a_sinusoid_and_can_be_differentiated() -> None:
    model = SinusoidMLP().double()
    params = {name: p.detach() for name, p in model.named_parameters()}
    task = Task(*(part.double() for part in sinusoid_tasks(shots=5, tasks=1, seed=0, address=()))).take(0)

    def loss(p: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        return (functional_call(model, p, (batch[0],)) - batch[1]).square().mean()

    learner = adapt(loss, params, task.support, 20, Adam(dict.fromkeys(params, 0.01)))
    assert learner.losses[-1] < learner.losses[0]

    def outer(p: dict[str, Tensor]) -> Tensor:
        return loss(adapt(loss, p, task.support, 2, Adam(dict.fromkeys(p, 0.01))).params, task.query)

    assert all(g.isfinite().all() for g in torch.func.grad(outer)(params).values())


def test_reptile_points_from_the_adapted_parameters() -> None:
    problem, params, _, _ = make_problem(False, 2)
    task = make_tasks(1).take(0)
    gradients, _, _ = reptile(problem, params, task)
    learner = adapt(problem.loss, params, task.support, 2, SGD(problem.rates))
    torch.testing.assert_close(params["classifier.weight"] - gradients["classifier.weight"], learner.params["classifier.weight"])


def test_what_is_not_written_out_is_refused() -> None:
    problem, params, model, ticket = make_problem(True, 1)
    uneven = Problem(problem.predict, {"features.0.linear.weight": 0.1}, 1, problem.learned)
    assert not is_written_out(uneven, model)
    with pytest.raises(ValueError, match="one inner rate a layer"):
        mlp_batch(uneven, model, ticket)
    with pytest.raises(ValueError, match="only the scores"):
        mlp_batch(Problem(problem.predict, problem.rates, 1, tuple(params)), model, ticket)
    with pytest.raises(ConfigurationError, match="nothing to learn"):
        Problem(problem.predict, {}, 1, ())
