"""One call for every score, on models of any kind and on an operation and a space of one's own."""

from __future__ import annotations

import pytest
import torch
from golden_recipe import golden, golden_images, golden_supernet
from torch import Tensor, nn

import engine
from engine.runs.streams import stream
from engine.scoring.result import Score
from engine.scoring.score import METRICS, EpisodeBatch, score
from engine.spaces import operations, space
from engine.spaces.mixture import full, uniform
from engine.spaces.network import build_network
from engine.spaces.operations import Chain, register_operation
from engine.spaces.space import FEW_SHOT, Space, dense_edges, register_space
from engine.spaces.supernet import initialise


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=stream(0, "images"), dtype=torch.float64)


def small() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 6), nn.ReLU(), nn.Linear(6, 2))
    model.double()
    initialise(model, stream(0, "weights"))
    return model


def episodes() -> EpisodeBatch:
    x = images(10, 1, 4, 4)
    return EpisodeBatch(x[:4], x[4:], 2)


def jacobian(model: nn.Module, x: Tensor, names: list[str]) -> Tensor:
    rows = []
    for sample in x:
        parameters = [dict(model.named_parameters())[name] for name in names]
        gradients = torch.autograd.grad(model(sample[None]).sum(), parameters)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows)


WEIGHTS = ["0.weight", "3.weight", "5.weight"]


@pytest.mark.parametrize(
    ("options", "adapted"),
    [
        ({}, WEIGHTS),
        ({"kernel": "maml", "time": 0.01, "reg": 0.1}, WEIGHTS),
        ({"kernel": "anil", "time": 0.5}, ["5.weight"]),
        ({"kernel": "anil", "head": "3", "chunk": 3}, ["3.weight"]),
        ({"kernel": "mtl"}, []),
    ],
)
def test_metantk_by_definition(options, adapted):
    """Query block minus what the support explains, with an inverse and an exponential of matrices."""
    model, data = small(), episodes()
    gradients = jacobian(model, torch.cat(data[:2]), WEIGHTS)
    theta = gradients @ gradients.T
    s = torch.cat([torch.eye(4), torch.zeros(4, 6)], 1).double()
    if adapted:
        inner = jacobian(model, torch.cat(data[:2]), adapted)
        kernel, time = inner @ inner.T, options.get("time", torch.inf)
        for i in range(2):
            q, sup = slice(2 * i, 2 * i + 2), slice(4 + 3 * i, 7 + 3 * i)
            learned = torch.eye(3).double() - (0 if time == torch.inf else torch.linalg.matrix_exp(-time * kernel[sup, sup]))
            s[q, sup] = -kernel[q, sup] @ torch.linalg.inv(kernel[sup, sup] + options.get("reg", 1e-3) * torch.eye(3)) @ learned
    eigenvalues = torch.linalg.eigvalsh(s @ theta @ s.T)
    found = score(model, data, **options)
    assert found.ok
    assert float(found) == pytest.approx(float(eigenvalues[-1] / eigenvalues[0]), rel=1e-8)


def test_plain_tuples_are_episodes():
    assert score(small(), tuple(episodes())) == score(small(), episodes())


def test_ntk_and_regions_are_the_library_functions():
    model, x = small(), images(6, 1, 4, 4)
    assert score(model, x, "ntk") == engine.condition_number(engine.ntk(model, x))
    assert score(model, x, "ntk", outputs="all", params="all") == engine.condition_number(engine.ntk(model, x, "all", "all"))
    assert score(model, x, "regions") == engine.linear_regions(model, x)
    assert score(model, [x, -x], "regions", hash_bits=64) == engine.linear_regions(model, [x, -x], hash_bits=64)


def test_golden_supernet():
    model, x, expected = golden_supernet(), golden_images(), golden()["supernet"]
    mixture = uniform(full(FEW_SHOT), dtype=torch.float64)

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x, mixture)

    found = score(Mixed(), (x[:15], x[15:], 3), kernel="anil", time=1e-2, reg=1e-5)
    assert float(found) == pytest.approx(expected["cond_anil_lt1e-2_1e-5"], rel=1e-9)


def test_model_comes_back_as_it_was():
    model = small().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for metric, data in (("metantk", episodes()), ("ntk", images(4, 1, 4, 4)), ("regions", images(4, 1, 4, 4))):
        score(model, data, metric)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_two_equal_queries_are_singular():
    query = images(1, 1, 4, 4).repeat(2, 1, 1, 1)
    found = score(small(), (query, images(3, 1, 4, 4), 1))
    assert found.status == "singular"
    assert not found.ok


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (episodes(), {"metric": "meta"}, "^metric: unknown 'meta'; known are metantk, ntk, regions, naswot, "),
        (images(4, 1, 4, 4), {}, "^data: the metric 'metantk' takes an EpisodeBatch"),
        ((images(4, 1, 4, 4), images(4, 1, 4, 4)), {}, "^data: the metric 'metantk' takes an EpisodeBatch"),
        (episodes()._replace(tasks=3), {}, "^data: 4 query and 6 support images cannot be divided among 3 tasks$"),
        (episodes()._replace(tasks=0), {}, "cannot be divided among 0 tasks"),
        (episodes()._replace(support=images(0, 1, 4, 4)), {}, "^data: 4 query and 0 support"),
        (episodes(), {"kernel": "anil", "head": "9"}, "^head: Sequential has no parameter '9.weight'"),
        (episodes(), {"kernel": "boil"}, "^kernel: 'boil'"),
    ],
)
def test_what_does_not_fit_is_a_value_error(data, options, message):
    with pytest.raises(ValueError, match=message):
        score(small(), data, **options)


def test_models_without_weights_or_head():
    with pytest.raises(ValueError, match=r"^model: Flatten has no weights to score"):
        score(nn.Flatten(), episodes())
    with pytest.raises(ValueError, match=r"^head: Sequential has no nn\.Linear"):
        score(nn.Sequential(nn.Conv2d(1, 2, 4), nn.Flatten()), episodes(), kernel="anil")


def test_a_metric_joins_by_the_table(monkeypatch):
    monkeypatch.setitem(METRICS, "weights", lambda model, data: Score(float(len(list(model.parameters())))))
    assert float(score(small(), None, "weights")) == 6


def test_own_operation_and_space_end_to_end(monkeypatch):
    """What the README teaches: register an operation, name it in a table, build a network of it and score that."""
    monkeypatch.setattr(operations, "OPERATIONS", dict(operations.OPERATIONS))
    monkeypatch.setattr(space, "SPACES", dict(space.SPACES))
    monkeypatch.setattr("engine.spaces.network.SPACES", space.SPACES)

    def conv_1x1(channels, stride, norm, odd):
        return Chain([nn.Conv2d(channels, channels, 1, stride, bias=False), norm(channels)])

    register_operation("conv_1x1", conv_1x1, reads_relu=True)
    toy = Space(name="toy", operations=("none", "skip_connect", "conv_1x1"), nodes=2, edges=dense_edges(2))
    register_space(toy)
    alive = [[[name == "conv_1x1" for name in toy.operations] for _ in toy.edges] for _ in toy.kinds]
    genotype = toy.genotype(alive)
    network = build_network(genotype, channels=8, cells=3, classes=5, norm="groupnorm16", tail=True).double()
    initialise(network, stream(0, "weights"))
    x = images(10, 3, 6, 6)
    for found in (score(network, x, "ntk"), score(network, EpisodeBatch(x[:5], x[5:], 1))):
        assert found.ok
        assert found.value > 1
    assert float(score(network, x, "regions")) == 10
