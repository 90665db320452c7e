"""The MetaNAS supernet against the golden numbers of the published code."""

from __future__ import annotations

from typing import Any

import metanas_golden as recipe
import pytest
import torch
from torch.nn import functional as F

from engine.errors import ConfigurationError
from engine.runs.streams import stream
from engine.spaces.genotype import Genotype
from engine.spaces.metanas import Architecture, metanas_supernet, pruned_parameters
from engine.spaces.mixture import Mixture, full
from engine.spaces.space import FEW_SHOT, METANAS
from engine.spaces.stacked import StackedSupernet
from engine.spaces.supernet import Supernet

CASES = sorted(recipe.golden()["cases"])


def setup(case: dict[str, Any]) -> tuple[Architecture, torch.Tensor, torch.Tensor, torch.Tensor]:
    architecture = Architecture(
        sparse_inputs=case["pairwise"], threshold=case["alpha_prune_threshold"], hard=case["sparsify_input_alphas"]
    )
    flat = recipe.golden_architecture(architecture).requires_grad_(True)
    x = recipe.ramp((case["N"], case["C_in"], case["HW"], case["HW"]), 0.37, 0, torch.sin, 1)
    return architecture, flat, x, torch.arange(case["N"]) % case["n_classes"]


def close(found: torch.Tensor, expected: Any) -> None:
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", CASES)
def test_golden_forward_and_gradients(name: str) -> None:
    case = recipe.golden()["cases"][name]
    architecture, flat, x, labels = setup(case)
    model = recipe.golden_supernet(case["C"], case["C_in"], case["n_classes"])
    seen: dict[str, torch.Tensor] = {}

    def watch(module: torch.nn.Module, *keys: str) -> None:
        def keep(_: Any, __: Any, output: torch.Tensor) -> None:
            seen.update(zip(keys, output.chunk(len(keys), 1), strict=True))

        module.register_forward_hook(keep)

    watch(model.stem_norm, "stem")
    for k, cell in enumerate(model.cells):
        watch(cell.preprocess0, f"cell{k}.preproc0")
        watch(cell.preprocess1, f"cell{k}.preproc1")
        watch(cell, *(f"cell{k}.node{i}" for i in range(3)))
    logits = model(x, Mixture(architecture.mixture_weights(flat, case["temperature"]), full(METANAS)))
    loss = F.cross_entropy(logits, labels)
    close(logits, case["logits"])
    close(loss, case["loss"])
    for key, expected in case["tensors"].items():
        found = recipe.stats(seen[key])
        # The mean of normalised maps is rounding; the weighted sum scales with their size.
        tolerance = 1e-9 * seen[key].numel()
        assert found == pytest.approx(expected, rel=1e-9, abs=tolerance), key
    if "alpha_grads" in case:
        wanted = case["alpha_grads"]
        gradients = torch.autograd.grad(loss, [flat, *model.parameters()], allow_unused=True)
        assert gradients[0] is not None
        for key, part in recipe.named_parts(architecture, gradients[0]).items():
            close(part, wanted[key])
        norm = torch.cat([g.flatten() for g in gradients[1:] if g is not None]).norm()
        assert float(norm) == pytest.approx(case["weight_grad_norm_total"], rel=1e-9)


# The two cases of 84x84 differ in the temperature alone, which the stacked form does not see.
@pytest.mark.parametrize("name", [name for name in CASES if name != "in14_pw_T1"])
def test_stacked_golden(name: str) -> None:
    case = recipe.golden()["cases"][name]
    architecture, flat, x, labels = setup(case)
    model = recipe.golden_supernet(case["C"], case["C_in"], case["n_classes"])
    stacked = StackedSupernet(model)
    weights = stacked.pack(dict(model.named_parameters())).requires_grad_(True)
    logits = stacked(weights, x, architecture.mixture_weights(flat, case["temperature"]))
    close(logits, case["logits"])
    if "alpha_grads" in case:
        gradients = torch.autograd.grad(F.cross_entropy(logits, labels), [flat, weights])
        for key, part in recipe.named_parts(architecture, gradients[0]).items():
            close(part, case["alpha_grads"][key])
        assert float(gradients[1].norm()) == pytest.approx(case["weight_grad_norm_total"], rel=1e-9)


@pytest.mark.parametrize("size", [7, 8])
def test_stacked_with_operations_left_out(size: int) -> None:
    """Any set of operations gives what the reference gives: nodes that nothing reaches, odd sizes, gradients of the weights."""
    model = recipe.golden_supernet(4, 1, 3)
    stacked = StackedSupernet(model)
    x = recipe.ramp((3, 1, size, size), 0.37, 0, torch.sin, 1)
    for seed in range(6):
        draws = torch.rand(2, 9, 7, generator=stream(seed, "alive"), dtype=torch.float64)
        alive = draws < (0.1 if seed < 3 else 0.6)
        weights = stacked.pack(dict(model.named_parameters())).requires_grad_(True)
        found = stacked(weights, x, draws * alive, alive)
        plain = model(x, Mixture(draws, alive))
        torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-12)
        (gradient,) = torch.autograd.grad(found.square().sum(), weights, allow_unused=True)
        wanted = torch.autograd.grad(plain.square().sum(), list(model.parameters()), allow_unused=True)
        filled = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(model.named_parameters(), wanted, strict=True)}
        torch.testing.assert_close(gradient, stacked.pack(filled), rtol=1e-7, atol=1e-9)


def test_stacked_weights_by_name() -> None:
    model = recipe.golden_supernet(4, 1, 3)
    stacked = StackedSupernet(model)
    parts = stacked.unpack(stacked.pack(dict(model.named_parameters())))
    assert all(torch.equal(parts[name], parameter) for name, parameter in model.named_parameters())
    with pytest.raises(ConfigurationError, match="cannot stack"):
        StackedSupernet(Supernet(FEW_SHOT, cells=2, channels=16, outputs=2))


@pytest.mark.parametrize("name", CASES)
def test_golden_genotypes_and_counts(name: str) -> None:
    case = recipe.golden()["cases"][name]
    architecture, flat, _, _ = setup(case)
    sizes = {"channels": case["C"], "outputs": case["n_classes"], "channels_in": case["C_in"]}
    found = architecture.genotype(flat)
    for kind, wanted in (("normal", case["genotype"]["normal"]), ("reduction", case["genotype"]["reduce"])):
        nodes = {
            (source, node + 2, name.replace("pool_3x3", "pool_3x3BN"))
            for node, inputs in enumerate(wanted)
            for name, source in inputs
        }
        assert set(found[kind].connections) == nodes
    assert sum(p.numel() for p in metanas_supernet(**sizes).parameters()) == case["total_net_params"]
    if "sparse_num_params" in case:
        assert pruned_parameters(architecture, flat, case["temperature"], **sizes) == case["sparse_num_params"]


def test_sizes_of_the_published_settings() -> None:
    assert sum(p.numel() for p in metanas_supernet(channels=28, outputs=20, channels_in=1).parameters()) == 462_272
    assert sum(p.numel() for p in metanas_supernet(channels=28, outputs=5, channels_in=3).parameters()) == 462_509
    assert Architecture().size == 146
    assert [k for k, plan in enumerate(METANAS.layout(5, 8)) if plan.reduces] == [1, 3]
    assert {plan.channels for plan in METANAS.layout(5, 8)} == {8}


def test_odd_channels_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be even"):
        metanas_supernet(channels=7, outputs=5, channels_in=1)


def test_genotype_can_be_written_and_read() -> None:
    architecture = Architecture()
    genotype = architecture.genotype(recipe.golden_architecture(architecture))
    METANAS.check(genotype)
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert all(len(cell.connections) == 6 for _, cell in genotype.cells)
