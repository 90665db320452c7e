"""No step waits for the device: what a scored batch, an inner step and a training step compute is not read by the host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from host_reads import host_reads
from torch.nn import functional as F

from bench.faults import WORDS
from engine.kernels.updates import reptile_
from engine.learning.inner import SGD, Adam, adapt
from engine.learning.outer import Problem, looped, meta_gradient, vmapped
from engine.learning.tasks import Task
from engine.methods.darts import Darts
from engine.methods.darts_base import Base
from engine.methods.darts_data import Halves
from engine.methods.metanas import MetaTraining
from engine.methods.metanas_tasks import drawn, load_data, rules, supports
from engine.methods.pcdarts import PartialBase
from engine.methods.tetlo import Tetlo
from engine.runs.config import resolve
from engine.runs.streams import stream
from engine.scoring.ablations import KernelScorer, RegionScorer
from engine.scoring.kernels import gram
from engine.scoring.regions import linear_regions
from engine.spaces.mixture import full, uniform, without
from engine.spaces.space import FEW_SHOT

ALIVE = without(full(FEW_SHOT), [(0, 0, 0), (0, 1, 2)])


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=stream(0, "test-syncs"))


def test_what_counts_as_a_read() -> None:
    x, host = noise(3), noise(3)
    with host_reads([x]) as reads:
        float((2 * x).sum())
        x[x > 0]
        torch.where(x > 0)
        bool(x.any())
        (x + host).tolist()
        x.numpy()
        x.cpu().tolist()
    assert len(reads) == 7
    with host_reads([x]) as reads:
        float(host.sum())
        host[host > 0].tolist()
        torch.vmap(lambda value: value * 2)(x)
        x[torch.tensor([0, 1])]
    assert reads == []


@pytest.mark.parametrize("outputs", ["sum", "all"])
def test_kernels_of_a_candidate_batch(outputs: Any) -> None:
    scorer = KernelScorer(
        FEW_SHOT, cells=2, channels=16, outputs=2, channels_in=3, seed=0, condition=lambda pair: pair.theta, kaiming=True
    )
    scorer.draw((0,), (0,))
    mixture, images = uniform(ALIVE), noise(4, 3, 8, 8).repeat(2, 1, 1, 1)
    with host_reads(images, mixture.weights, list(scorer.model.parameters())) as reads:
        gram(scorer.model, (images, mixture), lambda name, parameter: "all", outputs=outputs, groups=2, fused=True)
    assert reads == []


def test_scores_are_read_once_they_are_there() -> None:
    scorer = KernelScorer(FEW_SHOT, cells=2, channels=16, outputs=2, channels_in=3, seed=0, condition=lambda pair: pair.theta)
    scorer.draw((0,), (0,))
    images = noise(4, 3, 8, 8)
    with host_reads(images, list(scorer.model.parameters())) as reads:
        pair = scorer.kernels(ALIVE, images)
        assert reads == []
        scorer.scores(pair)
    assert [read.split()[0] for read in reads] == ["cpu"]


def test_regions_of_a_candidate_batch_are_read_once_they_are_counted() -> None:
    scorer = RegionScorer(FEW_SHOT, seed=0)
    scorer.draw((0,))
    mixture, patches = uniform(ALIVE), [noise(20, 1, 3, 3).repeat(2, 1, 1, 1) for _ in range(2)]
    with host_reads(patches, mixture.weights, list(scorer.model.parameters())) as reads:
        linear_regions(scorer.model, patches, groups=2, hash_bits=128, forward=lambda model, x: model(x, mixture))
    assert [read.split()[0] for read in reads] == ["tolist", "tolist"]  # counts, and whether all was finite


def tasks() -> Task:
    labels = torch.arange(4).expand(3, 4)
    return Task(noise(3, 4, 5), labels, noise(3, 4, 5), labels)


def predict(params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return F.relu(x @ params["a"]) @ params["b"]


@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_inner_steps(optimizer: Any) -> None:
    params, rates, task = {"a": noise(5, 6), "b": noise(6, 4)}, {"a": 0.1, "b": 0.1}, tasks().take(0)
    problem = Problem(predict, rates, 2, ("a", "b"))
    with host_reads(params, task) as reads:
        adapt(problem.loss, params, task.support, 2, optimizer(rates))
    assert reads == []


@pytest.mark.parametrize("way", [looped, vmapped])
@pytest.mark.parametrize("first_order", [False, True])
def test_meta_gradients(way: Any, first_order: bool) -> None:
    params, batch = {"a": noise(5, 6), "b": noise(6, 4)}, tasks()
    problem = Problem(predict, {"a": 0.1, "b": 0.1}, 2, ("a", "b"), first_order)
    with host_reads(params, batch) as reads:
        meta_gradient(way(problem), params, batch, chunk=2)
    assert reads == []


def test_updates_of_flat_buffers() -> None:
    weights, learned = noise(7), noise(3, 7)
    with host_reads(weights, learned) as reads:
        reptile_(weights, learned, 0.5)
    assert reads == []


LEARNED: dict[str, Any] = {"darts": Base, "pcdarts": PartialBase}


@pytest.mark.parametrize("method", ["darts", "pcdarts", "tetlo"])
def test_steps_of_the_darts_family(method: str) -> None:
    options: Any = replace(resolve(method, [*WORDS[method].split(), "--interval", "1"]), device="cpu")
    data = Halves(options)
    learner = Tetlo(options, data) if method == "tetlo" else Darts(options, data, LEARNED[method](options))
    learner.iterate(0, 0)
    with host_reads(learner.tensors(), learner.sums, data.data.images, data.data.labels) as reads:
        learner.iterate(1, 0)
    assert reads == []


@pytest.mark.parametrize("settled", [False, True])
def test_inner_steps_of_metanas_read_once_a_task_where_the_architecture_is_settled(settled: bool) -> None:
    options: Any = replace(resolve("metanas", WORDS["metanas"].split()), device="cpu")
    training = MetaTraining(options, load_data(options))
    task = drawn(options, training.data, "train", shots=3, tasks=2, address=("meta-train", 0))
    given, (rule, _) = supports(options, task, options.batch, ("meta-train", 0)), rules(options)
    start = (training.weights, training.alphas)
    with host_reads(start, training.moments.weights, training.moments.alphas, given.x, given.y) as reads:
        training.adapting.learn(start, training.moments, given, rule.frozen() if settled else rule)
    assert [read.split()[0] for read in reads] == (["cpu"] * 2 if settled else []), reads
