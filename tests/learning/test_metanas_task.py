"""The task learner against the golden trajectories of the published code, and its own promises."""

from __future__ import annotations

from typing import Any

import metanas_golden as recipe
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from engine.errors import ConfigurationError
from engine.kernels.updates import reptile_
from engine.learning.architecture_task import Learned, Moments, Supports, TaskLearner, TaskRule, predictions
from engine.learning.task_networks import ReferenceNetwork, SearchedNetwork
from engine.runs.streams import stream
from engine.spaces.metanas import Architecture, metanas_supernet

RULE = TaskRule(steps=5, architecture_steps=5, architecture_rate=1e-2, alternating=True)


def image(task: int, batch: int, phase: float) -> torch.Tensor:
    return recipe.ramp((6, 1, 14, 14), 0.37, 0.7 * task + 0.11 * batch + phase, torch.sin, 1)


def setup() -> tuple[SearchedNetwork, tuple[torch.Tensor, torch.Tensor], Supports]:
    """The golden trajectories' network, start and batches: support images are (weights, alphas) x steps."""
    architecture = Architecture(threshold=0.01)
    reference = metanas_supernet(channels=8, outputs=6, channels_in=1).double()
    recipe.fill(reference)
    network = SearchedNetwork(reference, architecture)
    start = network.stacked.pack(dict(reference.named_parameters())), 0.1 * recipe.golden_architecture(architecture)
    x = torch.stack([torch.cat([image(t, b, phase) for phase in (0, 0.05) for b in range(5)]) for t in range(2)])

    def draw(task: int, step: int, purpose: str) -> torch.Tensor:
        return torch.arange(6) + 6 * (step + 5 * (purpose == "alphas"))

    return network, start, Supports(x, torch.arange(60).remainder(6).expand(2, -1), draw, lambda t, s, p: stream(0, p, t, s))


@pytest.mark.parametrize("name", ["paper_semantics", "code_semantics_stale_vnet"])
def test_golden_trajectories(name: str) -> None:
    wanted = recipe.golden()[f"trajectory_{name}"]
    network, start, supports = setup()
    learner = TaskLearner(network, stale=start if name.startswith("code") else None)
    found = learner.learn_in_turn(start, Moments.zeros(*start), supports, RULE)
    for task, expected in enumerate(wanted["tasks"]):
        assert found.losses[..., task].flatten().tolist() == pytest.approx(expected["losses"][:-1], rel=1e-9)
        logits = predictions(network, found.weights[task], found.alphas[task], 0.1, supports.x[task], image(task, 0, 0.5))
        assert float(F.cross_entropy(logits, torch.arange(6))) == pytest.approx(expected["losses"][-1], rel=1e-9)
        for key, part in recipe.named_parts(network.architecture, found.alphas[task]).items():
            torch.testing.assert_close(part, torch.tensor(expected["alphas"][key], dtype=torch.float64), rtol=1e-8, atol=1e-10)
        assert float((found.weights[task] - start[0]).norm()) == pytest.approx(expected["delta_w_norm"], rel=1e-8)
    meta = [part.clone() for part in start]
    reptile_(meta[0], found.weights, 1.0)
    reptile_(meta[1], found.alphas, 0.6)
    for key, part in recipe.named_parts(network.architecture, meta[1]).items():
        torch.testing.assert_close(part, torch.tensor(wanted["meta_alphas"][key], dtype=torch.float64), rtol=1e-8, atol=1e-10)
    names = {
        "stem.0.weight": "stem.weight",
        "linear.weight": "classifier.weight",
        "cells.0.preproc1.net.1.weight": "cells.0.preprocess1.0.weight",
    }
    parameters = network.stacked.unpack(meta[0])
    for key, expected in wanted["meta_w_stats"].items():
        assert recipe.stats(parameters[names[key]]) == pytest.approx(expected, rel=1e-8)


def learned(learner: TaskLearner, rule: TaskRule = RULE, **changes: Any) -> Learned:
    _, start, supports = setup()
    return learner.learn(start, Moments.zeros(*start), supports, rule)


def test_stale_copy_gives_other_architectures() -> None:
    """What --faithful reproduces: after the first step the frozen copy's gradients lead elsewhere."""
    network, start, _ = setup()
    rule = TaskRule(steps=2, architecture_steps=2, alternating=True, architecture_rate=1e-2)
    current, stale = learned(TaskLearner(network), rule), learned(TaskLearner(network, stale=start), rule)
    assert torch.equal(current.losses[0], stale.losses[0])
    assert float((current.alphas - stale.alphas).abs().max()) > 1e-3


def test_tasks_together_are_tasks_alone() -> None:
    network, start, supports = setup()
    rule = TaskRule(steps=2, architecture_steps=2, drop_path=0.2)
    together = TaskLearner(network).learn(start, Moments.zeros(*start), supports, rule)
    for task in range(2):
        alone = TaskLearner(network).learn(start, Moments.zeros(*start), supports.of_task(task), rule)
        assert torch.equal(alone.weights[0], together.weights[task])
        assert torch.equal(alone.alphas[0], together.alphas[task])


def test_simultaneous_gradients_are_those_of_the_reference() -> None:
    network, _, _ = setup()
    slow = ReferenceNetwork(metanas_supernet(channels=8, outputs=6, channels_in=1).double(), network.architecture)
    rule = TaskRule(steps=1, architecture_steps=1, t_min=0.5, t_max=0.5)
    fast, plain = learned(TaskLearner(network), rule), learned(TaskLearner(slow), rule)
    # One Adam step from zero moments moves by the sign of the gradient; the moments hold its square.
    torch.testing.assert_close(fast.moments.weights, plain.moments.weights, rtol=1e-8, atol=1e-14)
    torch.testing.assert_close(fast.moments.alphas, plain.moments.alphas, rtol=1e-8, atol=1e-14)


def test_warm_up_leaves_the_architecture_alone() -> None:
    network, start, _ = setup()
    found = learned(TaskLearner(network), RULE.frozen())
    assert torch.equal(found.alphas[0], start[1])
    assert found.moments.alpha_steps == 0
    assert found.losses[:, 0].isnan().all()
    assert RULE.frozen().temperature(3) == 1.0


def test_settled_operations_are_left_out_without_changing_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    network, start, supports = setup()
    network = SearchedNetwork(metanas_supernet(channels=8, outputs=6, channels_in=1).double(), Architecture(threshold=0.05))
    sharp = start[0], 10 * start[1]
    rule = TaskRule(steps=3, architecture_steps=2, t_min=0.05)
    found = TaskLearner(network).learn(sharp, Moments.zeros(*sharp), supports.of_task(0), rule)
    assert int(network.active(found.alphas[0], 0.05).sum()) < 40
    monkeypatch.setattr(network, "active", lambda alphas, temperature: None)
    whole = TaskLearner(network).learn(sharp, Moments.zeros(*sharp), supports.of_task(0), rule)
    torch.testing.assert_close(found.losses, whole.losses, rtol=1e-10, atol=0, equal_nan=True)


class Reads(TorchDispatchMode):
    """Counts what reads a tensor back to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default or func is torch.ops.aten.equal.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("alternating", [False, True])
def test_a_step_reads_nothing_back(alternating: bool) -> None:
    network, _, _ = setup()
    rule = TaskRule(steps=2, architecture_steps=2, alternating=alternating)
    with Reads() as reads:
        learned(TaskLearner(network), rule)
    assert reads.count == 0


def test_drop_path_without_a_mask_is_the_plain_network() -> None:
    network, start, supports = setup()
    x = supports.x[0, :6]
    plain = network(*start, x, 1.0)
    whole = network.drop_path(0.0, 6, stream(0, "drop")).double()
    torch.testing.assert_close(network(*start, x, 1.0, masks=whole), plain, rtol=1e-10, atol=1e-12)
    some = network.drop_path(0.5, 6, stream(0, "drop")).double()
    assert set(some.unique().tolist()) == {0.0, 2.0}
    assert float((network(*start, x, 1.0, masks=some) - plain).abs().max()) > 1e-6


def test_dropping_an_operation_everywhere_is_weighing_it_nothing() -> None:
    network, start, supports = setup()
    weights = network.architecture.mixture_weights(start[1], 1.0)
    masks = torch.ones(4, 9, 7, 6, dtype=torch.float64)
    for operation in (0, 1, 3, 4, 5, 6):
        masked = masks.clone()
        masked[:, :, operation] = 0
        without = weights.clone()
        without[:, :, operation] = 0
        found = network.stacked(start[0], supports.x[0, :6], weights, masks=masked)
        torch.testing.assert_close(found, network.stacked(start[0], supports.x[0, :6], without), rtol=1e-10, atol=1e-12)


def test_predictions_beside_the_support() -> None:
    network, start, supports = setup()
    support, query = supports.x[0, :6], supports.x[1, :3]
    found = predictions(network, *start, 1.0, support, query, transductive=False)
    torch.testing.assert_close(found[1], network(*start, torch.cat([support, query[1:2]]), 1.0)[-1].detach())
    assert not torch.allclose(found, predictions(network, *start, 1.0, support, query))


def test_one_architecture_step_cannot_anneal() -> None:
    with pytest.raises(ConfigurationError, match="at least 2"):
        TaskRule(steps=1, architecture_steps=1)
