"""What a call of ``ntk`` leaves behind, accepts and refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_models import CASES, Lambda, N, drawn, noise
from torch import Tensor, nn

from engine.scoring.condition import condition_number
from engine.scoring.kernels import gram, nngp, ntk
from engine.spaces.norms import BatchStatistics


def _network() -> nn.Module:
    layers = (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 3))
    model = drawn(nn.Sequential(*layers))
    model[0].bias.requires_grad_(False)
    model[1].eval()
    model[5].weight.grad = torch.ones_like(model[5].weight)
    return model


class State:
    """Everything about a model, and the world, that a score must leave alone."""

    def __init__(self, model: nn.Module, *inputs: Tensor) -> None:
        self.tensors = [
            (t, t.clone(), t.requires_grad, t.grad, t._version) for t in (*model.parameters(), *model.buffers(), *inputs)
        ]
        self.modules = [(m, m.training, set(vars(m)), m._forward_hooks.copy(), m._backward_hooks.copy()) for m in model.modules()]
        self.random = torch.get_rng_state()
        self.threads, self.grad = torch.get_num_threads(), torch.is_grad_enabled()

    def check(self, model: nn.Module) -> None:
        held = [*model.parameters(), *model.buffers()]
        for tensor, (known, *_) in zip(held, self.tensors[: len(held)], strict=True):
            assert tensor is known
        for tensor, value, flag, grad, version in self.tensors:
            assert torch.equal(tensor, value)
            assert tensor._version == version
            assert tensor.requires_grad is flag
            assert tensor.grad is grad
            assert not tensor._backward_hooks
        for module, training, names, forward, backward in self.modules:
            assert module.training is training
            assert set(vars(module)) == names
            assert module._forward_hooks == forward
            assert module._backward_hooks == backward
        assert torch.equal(torch.get_rng_state(), self.random)
        assert torch.get_num_threads() == self.threads
        assert torch.is_grad_enabled() is self.grad


@pytest.mark.parametrize("outputs", ["sum", "all"])
@pytest.mark.parametrize("chunk", [None, 3])
def test_nothing_of_the_model_or_the_world_is_changed(outputs: Any, chunk: int | None) -> None:
    model, x = _network(), noise(N, 2, 4, 4)
    before = State(model, x)
    ntk(model, x, outputs, "all", chunk)
    before.check(model)


@pytest.mark.parametrize("name", CASES)
def test_no_awkward_model_is_changed(name: str) -> None:
    model, inputs = CASES[name]()
    before = State(model, *(item for item in inputs if isinstance(item, Tensor)))
    ntk(model, inputs, "all", "all")
    ntk(model, inputs, "sum", "all")
    before.check(model)


def test_statistics_of_batch_norm_do_not_move_in_train_mode() -> None:
    model, x = _network().train(), noise(N, 2, 4, 4)
    before = State(model, x)
    ntk(model, x)
    before.check(model)


class Failing(nn.Module):
    """Fails in its forward or in its backward pass."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "forward":
            raise ArithmeticError("here")
        return Refusing.apply(x)


class Refusing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise ArithmeticError("here")


@pytest.mark.parametrize("outputs", ["sum", "all"])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_nothing_is_changed_when_the_model_fails(where: str, outputs: Any) -> None:
    model, x = nn.Sequential(_network(), Failing(where)), noise(N, 2, 4, 4)
    before = State(model, x)
    with pytest.raises(ArithmeticError, match="here"):
        ntk(model, x, outputs)
    before.check(model)


def test_an_input_that_the_model_overwrites_stays_the_callers() -> None:
    x = noise(N, 3)
    kept = x.clone()
    ntk(drawn(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2))), x)
    assert torch.equal(x, kept)


def test_no_grad_and_inference_mode_around_the_call_change_nothing() -> None:
    model, inputs = CASES["dense"]()
    wanted = ntk(model, inputs)
    with torch.no_grad():
        assert torch.equal(ntk(model, inputs), wanted)
    with torch.inference_mode():
        assert torch.equal(ntk(model, tuple(item.clone() for item in inputs)), wanted)


def test_weights_are_those_of_layers_that_are_not_norms() -> None:
    model, inputs = CASES["norms"]()
    chosen = {"0.weight", "10.weight"}
    assert torch.equal(ntk(model, inputs), ntk(model, inputs, params=lambda name, _: name in chosen))
    assert not torch.equal(ntk(model, inputs), ntk(model, inputs, params="all"))


def test_weights_include_parametrised_ones() -> None:
    model, inputs = CASES["reparametrised"]()
    chosen = {"0.parametrizations.weight.original0", "0.parametrizations.weight.original1", "2.weight"}
    assert torch.equal(ntk(model, inputs), ntk(model, inputs, params=lambda name, _: name in chosen))


def test_sets_of_parameters_add_up_to_the_whole() -> None:
    model, inputs = CASES["module_used_several_times"]()
    parts = gram(model, inputs, lambda name, _: name.split(".")[0])
    assert set(parts) == {"conv", "norm", "head"}
    torch.testing.assert_close(sum(parts.values()), ntk(model, inputs, params="all"), rtol=1e-12, atol=0)


def test_nngp_is_the_kernel_of_the_last_linear_layer() -> None:
    model, inputs = CASES["dense"]()
    torch.testing.assert_close(nngp(model, inputs), ntk(model, inputs, params=lambda name, _: name == "5.weight"))
    torch.testing.assert_close(
        nngp(model, inputs, "all", head="2", chunk=2), ntk(model, inputs, "all", lambda name, _: name == "2.weight")
    )
    with pytest.raises(ValueError, match=r"head: Sequential has no parameter 'nine\.weight'"):
        nngp(model, inputs, head="nine")
    with pytest.raises(ValueError, match=r"head: Conv2d has no nn\.Linear"):
        nngp(nn.Conv2d(1, 1, 1), noise(2, 1, 2, 2))


@pytest.mark.parametrize("outputs", ["sum", "all"])
@pytest.mark.parametrize("chunk", [None, 1])
def test_groups_are_blocks_of_the_whole_kernel(outputs: Any, chunk: int | None) -> None:
    model, inputs = CASES["channels_last"]()
    whole = ntk(model, inputs, outputs, "all")
    blocks = ntk(model, inputs, outputs, "all", chunk, groups=2)
    diagonal = [whole[:2, :2], whole[2:, 2:]] if outputs == "sum" else [whole[:2, :, :2], whole[2:, :, 2:]]
    torch.testing.assert_close(blocks, torch.stack(diagonal), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["raw_parameter", "batch_statistics"])
def test_groups_that_cannot_be_told_apart_are_refused(name: str) -> None:
    model, inputs = CASES[name]()
    with pytest.raises(ValueError, match="groups: "):
        ntk(model, inputs, groups=2)


def test_chunks_that_cannot_be_cut_are_refused() -> None:
    model, inputs = CASES["batch_statistics"]()
    with pytest.raises(ValueError, match="chunk: this model's samples interact"):
        ntk(model, inputs, chunk=2)
    model, inputs = CASES["several_inputs"]()
    with pytest.raises(ValueError, match="chunk: with groups every input must be a tensor"):
        ntk(model, inputs, chunk=1, groups=2)


@pytest.mark.parametrize("outputs", ["sum", "all"])
def test_no_samples_give_an_empty_kernel(outputs: Any) -> None:
    shape = (0, 0) if outputs == "sum" else (0, 3, 0, 3)
    for name in ("dense", "channels_last", "grouped_strided_dilated_asymmetric"):
        model, inputs = CASES[name]()
        assert ntk(model, inputs[0][:0], outputs).shape == shape


@pytest.mark.parametrize("outputs", ["sum", "all"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_narrow_types_give_the_kernel_to_their_precision(dtype: torch.dtype, tolerance: float, outputs: Any) -> None:
    for name in ("dense", "depthwise", "linear_on_leading_shapes", "raw_parameter"):
        model, inputs = CASES[name]()
        wanted = ntk(model, inputs, outputs, "all")
        found = ntk(model.to(dtype), inputs[0].to(dtype), outputs, "all")
        assert found.dtype == torch.float64
        assert (found - wanted).norm() <= tolerance * wanted.norm()


def test_chunks_need_less_memory_for_activations() -> None:
    """The largest input that a layer keeps in a chunked call belongs to one chunk."""
    sizes: list[int] = []
    layer = nn.Linear(3, 4)
    layer.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    model = drawn(nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 2)))
    ntk(model, noise(7, 3), chunk=2)
    assert max(sizes) == 2


def test_float32_gradients_keep_the_smallest_eigenvalue_of_an_ill_conditioned_kernel() -> None:
    """Near duplicates: kappa above 1e6, which a float32 Gram matrix loses."""
    base = noise(6, 3, 8, 8)
    x = torch.cat([base, base + 3e-4 * noise(6, 3, 8, 8, address=1)])
    model = drawn(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(128, 1))
    )
    wanted = float(condition_number(ntk(model, x)))
    assert wanted > 1e6
    found = ntk(model.float(), x.float())
    assert abs(float(condition_number(found)) / wanted - 1) < 0.01


def _linear() -> nn.Module:
    return drawn(nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": ()}, "x: expected a tensor"),
        ({"x": torch.tensor(1.0)}, "x: expected a tensor"),
        ({"x": (torch.zeros(2, 3), torch.zeros(3, 3))}, "x: inputs must share"),
        ({"outputs": "each"}, "outputs: expected 'sum' or 'all', got 'each'"),
        ({"params": "biases"}, "params: expected 'weights', 'all' or a predicate"),
        ({"params": lambda name, parameter: False}, "params: no parameter of Linear is selected"),
        ({"chunk": 0}, "chunk: expected a positive number"),
        ({"groups": 3}, "groups: 4 samples cannot be divided into 3"),
        (
            {"model": Lambda(lambda self, x: self.layer(x).sum(), layer=nn.Linear(3, 2)).double()},
            "model: expected an output with 4",
        ),
        (
            {"model": Lambda(lambda self, x: [self.layer(x)], layer=nn.Linear(3, 2)).double()},
            "model: expected an output .* got list",
        ),
    ],
)
def test_what_does_not_fit_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ntk(**{"model": _linear(), "x": noise(N, 3), **arguments})


def test_batch_statistics_of_the_spaces_are_known_to_mix_samples() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), BatchStatistics(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).double()
    x = torch.randn(4, 1, 4, 4, dtype=torch.float64)
    weights = [model[0].weight, model[4].weight]
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(y, weights, retain_graph=True)]) for y in model(x).sum(1)]
    wanted = torch.stack(rows) @ torch.stack(rows).T
    assert torch.allclose(ntk(model, x), wanted, rtol=1e-10, atol=0)
