"""Packing, schedules, masking and sinusoids."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigurationError
from engine.learning.flat import Layout
from engine.learning.masking import draw_weight, fix_weights, mask_parameters, rerandomise, score_name
from engine.learning.outer_update import Momentum, Parts
from engine.learning.schedules import constant, warmup_cosine
from engine.learning.tasks import sinusoid_tasks
from engine.runs.streams import stream
from engine.spaces.networks import MLP


@given(st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=5), st.booleans())
def test_packing_is_undone_by_views(shapes: list[tuple[int, ...]], tasks: bool) -> None:
    layout = Layout(tuple((f"p{k}", shape) for k, shape in enumerate(shapes)))
    lead = (3,) if tasks else ()
    tensors = {name: torch.rand((*lead, *shape)) for name, shape in layout.shapes}
    buffer = layout.pack(tensors)
    assert buffer.shape == (*lead, layout.size)
    for name, view in layout.views(buffer).items():
        assert torch.equal(view, tensors[name])
        view.zero_()
    assert not buffer.any()


def test_warmup_and_cosine() -> None:
    rate = warmup_cosine(10.0, warmup=4, total=14)
    assert [rate(t) for t in range(5)] == pytest.approx([2, 4, 6, 8, 10])
    assert rate(9) == pytest.approx(5)
    assert 0 < rate(13) < 0.3
    assert constant(0.1)(7) == 0.1


def masked_mlp(sparsity: float = 0.0, init: str = "kaiming-normal"):  # type: ignore[no-untyped-def]
    model = MLP(12, (8, 7), 3)
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    return mask_parameters(model, values, lambda n: n.endswith("linear.weight"), seed=0, sparsity=sparsity, init=init)  # type: ignore[arg-type]


def test_nothing_is_pruned_at_first_unless_asked() -> None:
    network, params = masked_mlp()
    assert set(network.sparsity(params).values()) == {0.0}
    network, params = masked_mlp(0.5)
    assert all(abs(share - 0.5) < 0.02 for share in network.sparsity(params).values())
    assert all(params[s].abs().max() <= math.sqrt(6 / 7) for s in network.scores)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_impossible_sparsity(sparsity: float) -> None:
    with pytest.raises(ConfigurationError, match="below 1"):
        masked_mlp(sparsity)


def test_a_predicate_that_masks_nothing() -> None:
    with pytest.raises(ConfigurationError, match="masks no parameter; there are features"):
        mask_parameters(MLP(12, (8,), 3), dict(MLP(12, (8,), 3).named_parameters()), lambda n: False, seed=0)


@pytest.mark.parametrize(
    ("init", "magnitudes", "signs"),
    [("signed-constant", 1, 2), ("positive-constant", 1, 1), ("positive-normal", 200, 1), ("kaiming-uniform", 200, 2)],
)
def test_weight_draws(init: str, magnitudes: int, signs: int) -> None:
    weight = draw_weight(torch.Size((20, 10)), init, stream(0, "w"))  # type: ignore[arg-type]
    assert (len(weight.abs().unique()) == 1) == (magnitudes == 1)
    assert len(weight.sign().unique()) == signs
    assert weight.square().mean().item() == pytest.approx(0.2, rel=0.35)


def test_iterand_redraws_pruned_weights_only() -> None:
    network, params = masked_mlp(0.4)
    before = {name: params[name].clone() for name in network.names}
    scores = {name: params[name].clone() for name in network.scores}
    rerandomise(network, params, 1.0, "kaiming-normal", seed=0, step=5)
    for name, kept in network.masks(params).items():
        assert torch.equal(params[name][kept], before[name][kept])
        assert (params[name] != before[name])[~kept].all()
        assert torch.equal(params[score_name(name)], scores[score_name(name)])
    again = {name: params[name].clone() for name in network.names}
    rerandomise(network, params, 0.0, "kaiming-normal", seed=0, step=6)
    assert all(torch.equal(params[name], again[name]) for name in network.names)


@pytest.mark.parametrize("init", ["keep-sign", "asymptotic"])
def test_iterand_of_inits_that_remember_the_old_weight(init: str) -> None:
    network, params = masked_mlp(0.4, init)
    old = {name: params[name].clone() for name in network.names}
    rerandomise(network, params, 0.6, init, seed=0, step=5)  # type: ignore[arg-type]
    for name, kept in network.masks(params).items():
        assert torch.equal(params[name][kept], old[name][kept])
        moved = (params[name] != old[name])[~kept]
        if init == "keep-sign":
            assert torch.equal(params[name].sign(), old[name].sign())
            assert 0.3 < moved.float().mean() < 0.9
        else:
            noise = (params[name] - 0.8 * old[name])[~kept] / 0.6
            assert moved.all()
            assert noise.std().item() == pytest.approx(math.sqrt(2 / kept.shape[1]), rel=0.4)


@pytest.mark.parametrize(("scale", "factor"), [("naive", 1.5), ("normalized", 1 + 0.5 / 96)])
def test_a_learned_scale_multiplies_weights_and_gets_its_gradient(scale: str, factor: float) -> None:
    model = MLP(12, (8,), 3)
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    network, params = mask_parameters(model, values, lambda n: n.endswith("linear.weight"), seed=0, sparsity=0.3, scale=scale)  # type: ignore[arg-type]
    name = "features.0.linear.weight"
    assert network.scales == (f"{name}_scale",)
    plain = network.effective(params)[name]
    params[network.scales[0]] += 0.5
    torch.testing.assert_close(network.effective(params)[name], factor * plain)

    def total(given: dict[str, torch.Tensor]) -> torch.Tensor:
        return network.effective(params | given)[name].sum()

    learned = {key: params[key] for key in (*network.scores, *network.scales)}
    slopes = torch.func.grad(total)(learned)
    torch.testing.assert_close(slopes[network.scores[0]], factor * params[name])
    assert slopes[network.scales[0]].item() == pytest.approx(plain.sum().item() * (factor - 1) / 0.5, rel=1e-4)


def test_parts_of_a_buffer_have_optimisers_of_their_own() -> None:
    buffer, slope = torch.ones(5), torch.ones(5)
    first, second = (Momentum(torch.zeros(size), constant(rate)) for size, rate in ((3, 0.1), (2, 0.5)))
    update = Parts((3, 2), (first, second))
    update.step(buffer, slope, 0)
    assert buffer.tolist() == pytest.approx([0.9] * 3 + [0.5] * 2)
    assert {name: len(t) for name, t in update.state.items()} == {"velocity0": 3, "velocity1": 2}


def test_constant_weights_differ_by_layer_only() -> None:
    network, params = masked_mlp()
    fix_weights(network, params, 1.0)
    assert params["features.0.linear.weight"].unique().tolist() == pytest.approx([math.sqrt(2 / 12)])


def test_sinusoids_obey_their_formula() -> None:
    tasks = sinusoid_tasks(shots=5, tasks=50, seed=0, address=("a",))
    assert tasks.support_x.shape == tasks.query_y.shape == (50, 5, 1)
    assert tasks.support_x.abs().max() <= 5
    assert tasks.support_y.abs().max() <= 5
    same = sinusoid_tasks(shots=5, tasks=20, seed=0, address=("a",))
    assert torch.equal(same.query_y, tasks.query_y[:20])
