"""Every number of tests/golden/metaticket.json, made by the published code, by all routes to the outer gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from metaticket_recipe import assert_matches, fill, golden, golden_name, golden_network, golden_task
from torch.func import functional_call

from engine.kernels.masked import masked, threshold
from engine.learning.inner import SGD, adapt
from engine.learning.masked_mlp import mlp_batch
from engine.learning.outer import Problem, analytic, automatic, looped
from engine.spaces.networks import ResNet12Block

CASES = golden()["cases"]
LINEAR_BIAS = "linear.bias"  # in front of BatchNorm: its gradient is rounding noise


def tolerance(case: dict[str, Any]) -> dict[str, float]:
    return {"rtol": 1e-10, "atol": 1e-13} if case["name"].startswith("tiny") else {"rtol": 1e-6, "atol": 1e-9}


def problem(case: dict[str, Any], *, learn_all: bool = False) -> tuple[Problem, Any, Any]:
    network, params = golden_network(case)
    own = [name for name in params if name not in network.scores]
    rates = {name: case["inner_lr"] for name in own if not any(word in name for word in case["no_update"])}
    learned = tuple(params) if learn_all else network.scores
    return Problem(network.predict, rates, case["steps"], learned, case["first_order"]), network, params


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_masks(case: dict[str, Any]) -> None:
    _, network, params = problem(case)
    for name, kept in network.masks(params).items():
        layer = str(int(name.split(".")[1]) + 1)
        assert network.thresholds[name].item() == pytest.approx(case["thresholds_by_layer"][layer]["threshold"], rel=1e-12)
        assert int(kept.sum()) == case["mask"][name.replace("features.", "features.1.")]["ones"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_inner_loop(case: dict[str, Any]) -> None:
    given, network, params = problem(case)
    task = golden_task(case)
    logits = network.predict(params, task.support_x)
    assert_matches(logits, case["support_logits_before"], **tolerance(case))
    learner = adapt(given.loss, params, task.support, given.steps, SGD(given.rates))
    assert learner.losses.tolist() == pytest.approx(case["support_losses"], rel=tolerance(case)["rtol"])
    for name, total in learner.gradients.items():
        if not name.endswith(LINEAR_BIAS):
            assert_matches(total, case["task_grad_sum_over_steps"][golden_name(name)], **tolerance(case))
            assert_matches(learner.params[name], case["adapted_params"][golden_name(name)], **tolerance(case))
    assert_matches(network.predict(learner.params, task.query_x), case["query_logits"], **tolerance(case))


@pytest.mark.parametrize("route", [automatic, analytic])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_outer_gradient(case: dict[str, Any], route: Any) -> None:
    given, network, params = problem(case, learn_all=True)
    gradients, loss, outputs = route(given, params, golden_task(case))
    assert loss.item() == pytest.approx(case["query_loss"], rel=tolerance(case)["rtol"])
    assert_matches(outputs, case["query_logits"], **tolerance(case))
    for name in params:
        if not name.endswith(LINEAR_BIAS):
            recorded = case["score_grad" if name in network.scores else "phi0_grad"][golden_name(name)]
            assert_matches(gradients[name], recorded, **tolerance(case))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_outer_gradient_of_the_written_out_mlp(case: dict[str, Any]) -> None:
    given, network, params = problem(case)
    task = golden_task(case)
    batch = type(task)(*(part.unsqueeze(0) for part in task))
    sums = mlp_batch(given, network.module, network)(params, batch)
    assert sums.losses.item() == pytest.approx(case["query_loss"], rel=tolerance(case)["rtol"])
    for name in network.scores:
        assert_matches(sums.gradients[name], case["score_grad"][golden_name(name)], **tolerance(case))
    alone = looped(given)(params, batch)
    torch.testing.assert_close(sums.outputs, alone.outputs)


def test_masked_residual_block() -> None:
    record = golden()["conv"]
    block = ResNet12Block(3, 4).double()
    params = {name: value.detach() for name, value in block.named_parameters()}
    scores, thresholds = {}, {}
    for number, name in enumerate(record["order"], start=1):
        key = name.removeprefix("0.") + ".weight"
        shape = tuple(record["layers"][name]["shape"])
        fan = math.prod(shape[1:])
        params[key] = 2 / math.sqrt(fan) * fill(shape, 0.7, 0.3 * number)
        scores[key] = math.sqrt(6 / fan) * fill(shape, 1.7, 0.6 * number, torch.cos)
        thresholds[key] = threshold(scores[key], 0.25)
        assert thresholds[key].item() == pytest.approx(record["layers"][name]["threshold"], rel=1e-12)
        assert int((scores[key] >= thresholds[key]).sum()) == record["layers"][name]["ones"]
    x = 0.5 + 0.5 * fill((2, 3, 8, 8), 0.37, 0.0)

    def objective(given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        weights = params | {n: masked(params[n], s, thresholds[n]) for n, s in given.items()}
        out = functional_call(block, weights, (x,))
        return out.square().sum(), out

    gradients, (_, out) = torch.func.grad_and_value(objective, has_aux=True)(scores)
    assert_matches(out, record["out"], rtol=1e-10, atol=1e-13)
    for name, value in gradients.items():
        assert_matches(value, record["score_grad"][f"_module.0.{name}_score"], rtol=1e-10, atol=1e-13)
