"""The supernet against a formulation that computes every operation of every edge by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden_recipe import golden, golden_patches, golden_thin_supernet
from naive_supernet import naive
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from engine.errors import ConfigurationError
from engine.runs.streams import stream
from engine.scoring.regions import linear_regions
from engine.spaces.mixture import Mixture, full, uniform, without
from engine.spaces.operations import gated_relu
from engine.spaces.space import FEW_SHOT, Space, dense_edges
from engine.spaces.supernet import Supernet, initialise

DOUBLE = torch.float64


def exact(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def supernet(space: Space = FEW_SHOT, cells: int = 3, channels: int = 8, **options) -> Supernet:
    model = Supernet(space, cells=cells, channels=channels, outputs=3, **options).double()
    initialise(model, stream(0, "weights"))
    return model


def images(count: int = 2, size: tuple[int, int] = (8, 8), channels: int = 3) -> Tensor:
    return torch.randn(count, channels, *size, generator=stream(0, "images"), dtype=DOUBLE)


def random_mixture(space: Space = FEW_SHOT, groups: int | None = None, dead: float = 0.3) -> Mixture:
    shape = (*(() if groups is None else (groups,)), *full(space).shape)
    generator = stream(0, "mixture", str(shape))
    alive = full(space) & (torch.rand(shape, generator=generator) > dead)
    return Mixture(torch.randn(shape, generator=generator, dtype=DOUBLE) * alive, alive)


@pytest.mark.parametrize("odd", ["pad", "unshifted"])
@pytest.mark.parametrize(("size", "cells"), [((8, 8), 5), ((7, 7), 3), ((9, 5), 3), ((6, 5), 2)])
def test_is_the_sum_over_edges_and_operations(size, cells, odd):
    model, x, mixture = supernet(replace(FEW_SHOT, odd=odd), cells), images(size=size), random_mixture()
    exact(model(x, mixture), naive(model, x, mixture.weights))


def test_space_of_four_nodes_with_names_of_its_own():
    space = Space(
        name="four",
        operations=("none", "max_pool_3x3BN", "skip_connect", "dil_conv_3x3"),
        nodes=4,
        edges=dense_edges(4),
        kinds=("shrink", "keep"),
        reducing=("shrink",),
    )
    model, x, mixture = supernet(space), images(), random_mixture(space)
    assert [cell.plan.kind for cell in model.cells] == ["keep", "shrink", "shrink"]
    exact(model(x, mixture), naive(model, x, mixture.weights))


def test_gradients_are_those_of_the_sum():
    model, x, mixture = supernet(), images(1), random_mixture()
    parameters = list(model.parameters())
    ours = torch.autograd.grad(model(x, mixture).sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad(naive(model, x, mixture.weights).sum(), parameters, allow_unused=True)
    for p, our, their in zip(parameters, ours, theirs, strict=True):
        exact(torch.zeros_like(p) if our is None else our, torch.zeros_like(p) if their is None else their)


def test_weights_of_the_mixture_have_gradients():
    model, x, alive = supernet(), images(1), full(FEW_SHOT)
    weights = random_mixture(dead=0).weights.requires_grad_()
    ours = torch.autograd.grad(model(x, Mixture(weights, alive)).sum(), weights)[0]
    exact(ours, torch.autograd.grad(naive(model, x, weights).sum(), weights)[0])


@pytest.mark.parametrize(("groups", "size"), [(2, (8, 8)), (6, (7, 5))])
def test_batched_architectures_equal_single_ones(groups, size):
    """One row a group of samples, and one row a sample."""
    model, x, mixture = supernet(), images(6, size), random_mixture(groups=groups)
    parts = [
        model(part, Mixture(weights, alive))
        for part, weights, alive in zip(x.chunk(groups), mixture.weights, mixture.alive, strict=True)
    ]
    exact(model(x, mixture), torch.cat(parts))


def test_batched_architectures_equal_single_ones_under_batch_statistics():
    model = supernet(cells=2, channels=1, channels_in=1, norm="batchstat", stem=False)
    x, mixture = images(8, (3, 3), 1), random_mixture(groups=2)
    parts = [
        model(part, Mixture(weights, alive))
        for part, weights, alive in zip(x.chunk(2), mixture.weights, mixture.alive, strict=True)
    ]
    exact(model(x, mixture), torch.cat(parts))
    assert not torch.allclose(model(x[:4], Mixture(mixture.weights[0], mixture.alive[0])), model(x, mixture)[4:])


@pytest.mark.parametrize("groups", [None, 2])
def test_edge_weights_multiply_operation_weights(groups):
    model, x, mixture = supernet(), images(), random_mixture(groups=groups)
    edges = torch.rand(mixture.weights.shape[:-1], generator=stream(0, "edges"), dtype=DOUBLE)
    product = Mixture(mixture.weights * edges.unsqueeze(-1), mixture.alive)
    exact(model(x, Mixture(mixture.weights, mixture.alive, edges)), model(x, product))


def test_dead_operations_are_not_computed():
    model, x = supernet(), images()
    alive = full(FEW_SHOT)
    alive[:, :, FEW_SHOT.operations.index("conv_1x5_5x1")] = False
    expected = model(x, uniform(alive, dtype=DOUBLE))
    for name, p in model.named_parameters():
        if "conv_1x5_5x1" in name:
            p.data.fill_(torch.nan)
    exact(model(x, uniform(alive, dtype=DOUBLE)), expected)
    assert model(x, uniform(full(FEW_SHOT), dtype=DOUBLE)).isnan().all()


def test_operation_that_one_group_has_not_adds_nothing_to_it():
    """Not to its output, not to its gradients, whatever weight the caller left there."""
    model, x = supernet(), images()
    removed = (0, 1, FEW_SHOT.operations.index("sep_conv_3x3"))
    alive = torch.stack([full(FEW_SHOT), without(full(FEW_SHOT), [removed])[0]])
    careless = Mixture(torch.full(alive.shape, 0.2, dtype=DOUBLE), alive)
    alone = Mixture(careless.weights[1], alive[1])
    y = model(x, careless)
    exact(y[1:], model(x[1:], alone))
    touched = [p for name, p in model.named_parameters() if "edges.1.sep_conv_3x3" in name and name.startswith("cells.0")]
    assert touched
    assert all(not g.any() for g in torch.autograd.grad(y[1].sum(), touched, retain_graph=True))
    assert all(g.any() for g in torch.autograd.grad(y[0].sum(), touched))


class SeenRectifiers(TorchFunctionMode):
    """Collects for each call of gated_relu which groups it exists in."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups, self.seen = groups, []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is gated_relu:
            alive = args[1] if args[1] is not None else torch.ones(self.groups, dtype=torch.bool)
            self.seen.append(alive)
        return func(*args, **(kwargs or {}))


def rectifiers(model: Supernet, mixture: Mixture) -> list[int]:
    """How many rectifiers each architecture has."""
    with SeenRectifiers(mixture.groups) as mode:
        model(images(mixture.groups), mixture)
    return torch.stack(mode.seen).sum(0).tolist()


def test_rectifiers_belong_to_the_groups_that_have_them():
    model, whole = supernet(), full(FEW_SHOT)
    skips, half = torch.zeros_like(whole), whole.clone()
    skips[:, :, 1] = True
    half[0] = skips[0]
    alive = torch.stack([whole, skips, half, whole & (torch.rand(whole.shape, generator=stream(0, "some")) > 0.7)])
    alone = [rectifiers(model, uniform(row, dtype=DOUBLE))[0] for row in alive]
    assert len(set(alone)) == 4
    assert rectifiers(model, uniform(alive, dtype=DOUBLE)) == alone


def test_none_takes_its_share_and_adds_nothing():
    model, x = supernet(), images()
    alive = torch.ones_like(full(FEW_SHOT))
    weights = torch.rand(alive.shape, generator=stream(0, "none"), dtype=DOUBLE).softmax(-1)
    exact(model(x, Mixture(weights, alive)), naive(model, x, weights))


PRUNED = {
    "one node": lambda target, source: target == 3,
    "the inputs": lambda target, source: source < 2,
    "everything": lambda target, source: True,
}


@pytest.mark.parametrize("pruned", PRUNED)
@pytest.mark.parametrize(("size", "cells"), [((8, 8), 2), ((7, 7), 3), ((9, 5), 4)])
def test_nodes_that_nothing_reaches_are_zero(pruned, size, cells):
    model, x, mixture = supernet(cells=cells), images(size=size), random_mixture(dead=0)
    keep = torch.tensor([not PRUNED[pruned](target, source) for source, target in FEW_SHOT.edges])
    alive = mixture.alive & keep[:, None]
    exact(model(x, Mixture(mixture.weights, alive)), naive(model, x, mixture.weights * alive))


def test_reductions_may_be_fully_pruned():
    """A reduction cell without edges still halves the resolution, right after another one too."""
    model, x, alive = supernet(cells=4), images(size=(9, 5)), full(FEW_SHOT)
    alive[1] = False
    assert [cell.plan.reduces for cell in model.cells] == [False, True, True, False]
    exact(model(x, uniform(alive, dtype=DOUBLE)), naive(model, x, uniform(alive, dtype=DOUBLE).weights))


def test_restricted_edges_build_and_accept_only_their_operations():
    space = replace(FEW_SHOT, edge_operations={("normal", 0): ("none", "skip_connect"), ("reduction", 3): ()})
    model, x, mixture = supernet(space), images(), random_mixture(space, dead=0)
    assert list(model.cells[0].edges[0]) == []
    assert list(model.cells[1].edges[3]) == []
    exact(model(x, mixture), naive(model, x, mixture.weights))
    with pytest.raises(ValueError, match="an edge that does not carry it in the space 'few-shot-cell'"):
        model(x, random_mixture(dead=0))


def test_mixture_must_fit_batch_and_space():
    model, x = supernet(), images(3)
    with pytest.raises(ValueError, match="a batch of 3 cannot be divided among 2 architectures"):
        model(x, random_mixture(groups=2))
    with pytest.raises(ValueError, match=r"is \(2, 9, 7\), the space 'few-shot-cell' has \(2, 9, 8\)"):
        model(x, uniform(torch.ones(2, 9, 7, dtype=torch.bool)))


def test_operation_of_a_wrong_shape_is_named(monkeypatch):
    class Narrow(nn.Module):
        def forward(self, x, groups=1, alive=None):
            return x[:, :1]

    from engine.spaces import operations

    monkeypatch.setattr(operations, "OPERATIONS", dict(operations.OPERATIONS))
    operations.register_operation("narrow", lambda *_: Narrow(), reads_relu=False)
    space = replace(FEW_SHOT, operations=("none", "skip_connect", "narrow"))
    message = r"^operation 'narrow': made \(2, 1, 8, 8\) of \(2, 8, 8, 8\) at stride 1, expected \(2, 8, 8, 8\)$"
    with pytest.raises(ConfigurationError, match=message):
        supernet(space)(images(), random_mixture(space, dead=0))


@pytest.mark.parametrize("bad", [{"cells": 0}, {"channels": 0}, {"outputs": 0}, {"channels_in": 0}, {"channels": 24}])
def test_impossible_dimensions_are_configuration_errors(bad):
    with pytest.raises(ConfigurationError):
        Supernet(FEW_SHOT, **{"cells": 2, "channels": 16, "outputs": 2, **bad})


def test_published_parameter_counts():
    """Reference note, section 1: 12.72 M in 487 convolutions, 19.22 M in 763."""
    for cells, millions, count in ((5, 12.72, 487), (8, 19.22, 763)):
        with torch.device("meta"):
            model = Supernet(FEW_SHOT, cells=cells, channels=48, outputs=64)
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        parameters = sum(p.numel() for m in convolutions for p in m.parameters())
        assert (len(convolutions), int(parameters / 1e4) / 100) == (count, millions)
        assert model.features == 576


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_region_counts(dtype):
    """The thin network: batch statistics, two cells, no stem."""
    model, expected = golden_thin_supernet(dtype), golden()["linear_regions"]
    whole = full(FEW_SHOT)
    skips = torch.zeros_like(whole)
    skips[:, :, 1] = True
    alive = torch.stack([whole, without(whole, [(0, 3, 2)])[0], skips])
    found = linear_regions(
        model,
        [batch.repeat(3, 1, 1, 1) for batch in golden_patches(dtype)],
        groups=3,
        forward=lambda model, x: model(x, uniform(alive, dtype=dtype)),
    )
    kind = str(dtype).removeprefix("torch.")
    assert [s.value for s in found] == [expected[net][kind]["regions"] for net in ("supernet", "rm_0_3_2", "all_skip")]


def test_initialise_draws_what_it_says():
    model = nn.Sequential(nn.Conv2d(32, 64, 3), nn.ConvTranspose1d(64, 64, 5), nn.GroupNorm(4, 64), nn.Linear(400, 100))
    model[2].weight.data.fill_(3)
    model.requires_grad_(False)
    state = torch.get_rng_state()
    initialise(model, stream(1, "weights"))
    assert torch.equal(torch.get_rng_state(), state)
    for layer, fan_in in ((model[0], 288), (model[1], 320)):
        assert layer.weight.mean().abs() < 0.01
        assert layer.weight.std() == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)
        assert not layer.bias.any()
    assert 0.049 < model[3].weight.abs().max() < 0.05
    assert model[3].weight.std() == pytest.approx(0.05 / 3**0.5, rel=0.02)
    assert (model[2].weight == 3).all()
    initialise(model, stream(1, "weights"), kaiming=False)
    assert model[0].weight.std() == pytest.approx((1 / 288 / 3) ** 0.5, rel=0.02)


def test_initialise_depends_on_the_address_alone():
    first, second = (supernet(cells=2) for _ in range(2))
    initialise(first, stream(3, "weights", 0, 1))
    torch.rand(5)
    initialise(second.float(), stream(3, "weights", 0, 1))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one.float(), other)
    initialise(second, stream(3, "weights", 1, 1))
    assert not torch.equal(first.stem.weight.float(), second.stem.weight)
