"""What is compared computes the same thing; a ratio of different things is worth nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from bench import ntk, paired_round, peers, published, regions, sample_gradient
from bench.networks import MEMORY_FORMATS, OUTPUTS, images, space_of, supernet
from bench.registry import Settings
from engine.spaces.mixture import full, uniform, without
from engine.spaces.space import FEW_SHOT

LAYERS = [*sample_gradient.layers("smoke"), sample_gradient.Layer("dense 1x5", 3, 4, 7, stride=2)]
FORMATS = list(MEMORY_FORMATS)
needs_opacus = pytest.mark.skipif(not peers.HAS_OPACUS, reason="needs opacus")


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("network", ["supernet", "path"])
def test_tangent_kernels_agree(network: str, memory_format: str) -> None:
    calls = ntk.calls(network, 2, 16, 8, memory_format, 4)
    expected = calls["loop over samples"]()
    assert isinstance(expected, Tensor)
    for name in {*ntk.OWN, *ntk.PEERS} & set(calls):
        found = calls[name]()
        assert isinstance(found, Tensor)
        if name == "ntk all":
            found = found.sum((1, 3))
        assert difference(found, expected) < 1e-5, name


def test_path_builds_only_its_operations() -> None:
    space = space_of("path")
    assert full(space).sum(-1).eq(1).all()
    whole, path = (supernet(s, cells=2, channels=16, memory_format="contiguous") for s in (FEW_SHOT, space))
    assert sum(1 for _ in path.modules()) < sum(1 for _ in whole.modules()) / 3


def test_training_step_forms_every_weight_gradient() -> None:
    model = supernet(FEW_SHOT, cells=2, channels=16, memory_format="contiguous")
    peers.training_step(model, images(2, size=8, memory_format="contiguous"), uniform(full(FEW_SHOT)))
    assert model.classifier.weight.shape[0] == OUTPUTS
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("memory_format", FORMATS)
def test_pairs_and_batches_agree(memory_format: str) -> None:
    x = images(20, size=8, memory_format=memory_format)
    model = supernet(FEW_SHOT, cells=2, channels=16, memory_format=memory_format)
    candidates = paired_round.CANDIDATES[20:120:40]
    batched = paired_round.score_batch(model, x, candidates, tasks=2)
    whole = float(paired_round.score_batch(model, x, [], tasks=2)[0])
    for candidate, ablated in zip(candidates, batched, strict=True):
        watch = published.hooked_module
        pair = published.score_pair(candidate, x, watch, cells=2, channels=16, tasks=2, memory_format=memory_format)
        assert pair == pytest.approx((whole, float(ablated)), rel=1e-3)
        assert pair[0] != pytest.approx(pair[1], rel=1e-2)


@needs_opacus
def test_hooks_form_the_gradients_that_opacus_forms() -> None:
    model = published.affine_supernet(2, 16, "contiguous")
    x = images(3, size=8, memory_format="contiguous")
    mixture = uniform(without(full(FEW_SHOT), [(0, 1, 6)])[0])
    ours = copy.deepcopy(model)
    for watched in (published.hooked_module(ours), peers.opacus_module(model)):
        peers.hooked_gradients(watched, x, mixture)
    compared = 0
    for (name, own), theirs in zip(ours.named_parameters(), model.parameters(), strict=True):
        mine, other = (getattr(p, "grad_sample", None) for p in (own, theirs))
        assert (mine is None) == (other is None), name
        if mine is not None and other is not None:
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()), msg=name)
            compared += 1
    assert compared > 100


def test_region_counts_agree() -> None:
    one_by_one, *batched = (call() for call in regions.calls(12, "contiguous", 200).values())
    assert isinstance(one_by_one, list)
    assert all(counts == one_by_one for counts in batched)
    assert len(set(one_by_one)) > 1


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    "layer", [*sample_gradient.layers("smoke"), sample_gradient.Layer("dense 1x5", 3, 4, 7, stride=2)], ids=str
)
def test_formulations_agree(layer: sample_gradient.Layer, memory_format: str) -> None:
    calls = sample_gradient.calls(layer, memory_format, 3)
    rows = {name: call() for name, call in calls.items()}
    expected = rows.pop(sample_gradient.BASELINE)
    assert isinstance(expected, Tensor)
    assert expected.shape == (
        3,
        layer.outputs,
        layer.channels * layer.geometry.weight_shape[1] * torch.Size(layer.geometry.kernel).numel(),
    )
    assert rows
    for name, found in rows.items():
        assert isinstance(found, Tensor)
        # "matrix" may order the weight's elements differently, so Gram matrices are compared.
        left, right = (r.double().flatten(0, 1) for r in (found, expected))
        assert difference(left @ left.T, right @ right.T) < 1e-5, name


def test_every_case_is_well_formed() -> None:
    for module in (ntk, paired_round, regions, sample_gradient):
        for scale in ("default", "full"):
            cases = list(module.cases(Settings(scale=scale)))  # type: ignore[arg-type]
            settings = [tuple(case.configuration.items()) for case in cases]
            assert len(set(settings)) == len(settings)
            assert all(set(case.baselines) <= set(case.methods) and set(case.notes) <= set(case.methods) for case in cases)


def test_a_batch_has_no_more_candidates_than_there_are() -> None:
    widths = [case.configuration["width"] for case in paired_round.cases(Settings(width=1000))]
    assert widths == [126] * len(widths)


def test_heavy_peers_only_where_they_are_affordable() -> None:
    def wide(scale: str) -> list[set[str]]:
        cases = ntk.cases(Settings(scale=scale))  # type: ignore[arg-type]
        return [set(case.methods) for case in cases if case.configuration["channels"] == 48]

    assert all(not methods & set(ntk.PEERS) for methods in wide("default"))
    assert all(methods >= set(ntk.PEERS) for methods in wide("full"))
