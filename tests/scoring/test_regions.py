from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from engine.runs.streams import stream
from engine.scoring.regions import linear_regions
from engine.scoring.result import Score
from engine.spaces.operations import gated_relu

Patterns = list[Tensor]


def noise(*shape: int, address: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-regions", address))


def initialised(model: nn.Module) -> nn.Module:
    generator = stream(0, "test-regions", "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def distinct(patterns: Patterns) -> int:
    """The definition: distinct rows of the concatenated signs."""
    rows = torch.cat([(p > 0).flatten(1) for p in patterns], 1)
    return len({tuple(row) for row in rows.tolist()})


class Written(nn.Module):
    """A network that keeps its activations' inputs when asked, for the naive count."""

    def __init__(self, activation: Callable[[Tensor], Tensor], norm: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2) if norm else nn.Identity()
        self.second = nn.Conv2d(2, 1, 3)
        self.activation = activation
        self.inputs: Patterns = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        self.inputs.append(x.clone())
        x = self.second(self.activation(x))
        self.inputs.append(x.clone())
        return self.activation(x)


SHARED = nn.ReLU()
RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place": nn.ReLU(inplace=True),
    "nn.LeakyReLU": nn.LeakyReLU(0.1),
    "nn.PReLU": nn.PReLU(),
    "nn.Threshold": nn.Threshold(0.0, 0.0),
    "shared": SHARED,
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.leaky_relu_": lambda x: F.leaky_relu_(x, 0.2),
    "F.threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
    "torch.clamp": lambda x: torch.clamp(x, min=0),
    "Tensor.clamp": lambda x: x.clamp(0),
    "Tensor.clamp_": lambda x: x.clamp_(min=0.0),
    "Tensor.clip": lambda x: x.clip(0),
    "torch.clamp_min": lambda x: torch.clamp_min(x, 0),
    "Tensor.clamp_min_": lambda x: x.clamp_min_(0),
    "gated_relu": gated_relu,
}


@pytest.mark.parametrize("hash_bits", [None, 64, 128])
@pytest.mark.parametrize("name", RELUS)
def test_every_spelling_of_relu_counts_as_the_definition(name: str, hash_bits: None) -> None:
    model, x = initialised(Written(RELUS[name], norm=True)), noise(60, 1, 4, 4).mul(0.1).add(noise(60, 1, 1, 1, address=1))
    score = linear_regions(model, x, hash_bits=hash_bits)
    expected = distinct(model.inputs)  # type: ignore[arg-type]
    assert 1 < expected < 60
    assert score == Score(float(expected), "ok", "linear_regions")


@pytest.mark.parametrize(
    ("activation", "knees"),
    [
        (nn.ReLU6(), (0.0, 6.0)),
        (F.relu6, (0.0, 6.0)),
        (nn.Hardtanh(), (-1.0, 1.0)),
        (lambda x: F.hardtanh_(x, -0.5, max_val=2.0), (-0.5, 2.0)),
        (lambda x: x.clamp(0, 1), (0.0, 1.0)),
        (nn.Threshold(0.25, 0.0), (0.25,)),
    ],
)
def test_saturating_activations_have_one_bit_a_knee(activation: Callable[[Tensor], Tensor], knees: tuple[float, ...]) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return activation(x)

    x = torch.linspace(-8, 8, 33)[:, None]
    expected = len({tuple(float(value) > knee for knee in knees) for value in x})
    assert float(linear_regions(Net(), x)) == expected == len(knees) + 1


def test_batches_are_pooled_and_forwarded_apart() -> None:
    model = initialised(Written(F.relu, norm=True)).train()
    batches = [noise(20, 1, 4, 4, address=a) + noise(20, 1, 1, 1, address=a + 9) for a in range(3)]
    score = linear_regions(model, batches)
    inputs: Patterns = model.inputs  # type: ignore[assignment]
    pooled = [torch.cat(inputs[layer::2]) for layer in (0, 1)]
    assert float(score) == distinct(pooled)
    assert float(score) <= sum(float(linear_regions(model, batch)) for batch in batches)
    model.inputs = []  # type: ignore[assignment]
    linear_regions(model, torch.cat(batches))
    assert not torch.equal(pooled[0], model.inputs[0])  # type: ignore[index]


@given(groups=st.integers(1, 4), per_group=st.integers(1, 6), batches=st.integers(1, 3), width=st.integers(1, 9))
def test_groups_are_what_they_are_alone(groups: int, per_group: int, batches: int, width: int) -> None:
    model = initialised(nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 1), nn.ReLU()))
    xs = [noise(groups * per_group, 2, address=a).round() for a in range(batches)]
    alone = [linear_regions(model, [x.unflatten(0, (groups, -1))[g] for x in xs]) for g in range(groups)]
    for hash_bits in (None, 64, 128):
        together = linear_regions(model, xs, groups=groups, hash_bits=hash_bits)  # type: ignore[arg-type]
        assert together == (alone if groups > 1 else alone[0])


@pytest.mark.parametrize("hash_bits", [None, 64, 128])
def test_gates_leave_dead_operations_out(hash_bits: None) -> None:
    alive = torch.tensor([True, False, True])

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return gated_relu(x[:, :1], None) + gated_relu(x[:, 1:], alive) + gated_relu(x[:, 1:] / 0, ~torch.ones(3).bool())

    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).repeat(3, 1)
    scores = linear_regions(Net(), x, groups=3, hash_bits=hash_bits)
    assert isinstance(scores, list)
    assert [(float(score), score.status) for score in scores] == [(4.0, "ok"), (2.0, "ok"), (4.0, "ok")]


def test_gates_of_the_wrong_length_are_refused() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return gated_relu(x, torch.ones(3, dtype=torch.bool))

    with pytest.raises(ValueError, match=r"^alive: "):
        linear_regions(Net(), noise(4, 2), groups=2)


def test_nonfinite_groups_say_so() -> None:
    x = noise(6, 3)
    x[4, 1] = math.nan
    scores = linear_regions(nn.ReLU(), x, groups=3)
    assert isinstance(scores, list)
    assert [score.status for score in scores] == ["ok", "ok", "nonfinite"]
    assert math.isnan(float(scores[2]))
    x[4, 1] = -math.inf
    assert linear_regions(nn.ReLU(), x).status == "nonfinite"


def test_forward_may_take_further_arguments() -> None:
    model = initialised(nn.Linear(2, 8))
    x = noise(20, 2)
    score = linear_regions(model, x, forward=lambda net, data: net(-data).relu())
    assert float(score) == distinct([model(-x).detach()])


def test_a_module_used_twice_counts_twice() -> None:
    model = initialised(nn.Sequential(nn.Linear(1, 4), SHARED, nn.Linear(4, 4), SHARED))
    x = torch.linspace(-3, 3, 200)[:, None]
    hidden = model[0](x)  # type: ignore[index]
    last = model[2](hidden.relu())  # type: ignore[index]
    assert distinct([hidden]) < distinct([hidden, last]) == float(linear_regions(model, x))


def test_rows_of_one_sample_may_be_unrolled() -> None:
    x = noise(12, 3, 2).round()
    score = linear_regions(nn.ReLU(), x, forward=lambda net, data: net(data.flatten(0, 1)))
    assert float(score) == distinct([x])


class Failing(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        raise RuntimeError("broken network")


@pytest.mark.parametrize("kind", [nn.Sequential, Failing])
def test_the_model_is_left_as_it_was(kind: type[nn.Sequential]) -> None:
    model = initialised(kind(nn.ReLU(inplace=True), nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(0.5).eval()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    random, x = torch.random.get_rng_state(), noise(8, 1, 3, 3)
    original = x.clone()
    if kind is Failing:
        with pytest.raises(RuntimeError, match=r"broken network"):
            linear_regions(model, x)
    else:
        linear_regions(model, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(random, torch.random.get_rng_state())
    assert torch.equal(x, original)
    assert torch.is_grad_enabled()
    assert not torch.overrides._is_torch_function_mode_enabled()


def test_hashes_use_all_their_bits() -> None:
    x = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 16)
    assert float(linear_regions(nn.ReLU(), x, hash_bits=64)) == 2**16


def test_other_clamps_and_integers_are_not_activations() -> None:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        index = torch.arange(4).sub(2).clamp(min=0)
        return x.clamp(min=1e-8).clamp_min(0.5).clamp(max=3)[:, index]

    with pytest.raises(ValueError, match=r"no ReLU-like activation"):
        linear_regions(nn.Identity(), noise(5, 4), forward=forward)


def test_fused_transformer_layers_are_seen() -> None:
    layer = initialised(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)).eval()
    assert float(linear_regions(layer, noise(10, 3, 4))) > 1


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"^batches: none"):
        linear_regions(nn.ReLU(), [])
    with pytest.raises(ValueError, match=r"^batches: batch 1 .* 2 equal groups"):
        linear_regions(nn.ReLU(), [noise(4, 2), noise(5, 2)], groups=2)
    with pytest.raises(ValueError, match=r"^batches: batch 1 has 3 neurons a sample, those before it 2"):
        linear_regions(nn.ReLU(), [noise(4, 2), noise(4, 3)])
    with pytest.raises(ValueError, match=r"^groups: "):
        linear_regions(nn.ReLU(), noise(4, 2), groups=0)
    with pytest.raises(ValueError, match=r"^hash_bits: "):
        linear_regions(nn.ReLU(), noise(4, 2), hash_bits=32)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"does not begin with its 4 samples"):
        linear_regions(nn.ReLU(), noise(4, 3), forward=lambda net, x: net(x.T))


def test_dropout_in_train_mode_leaves_the_random_state() -> None:
    model = initialised(nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.ReLU())).train()
    random = torch.random.get_rng_state()
    first = linear_regions(model, noise(20, 3))
    assert torch.equal(random, torch.random.get_rng_state())
    assert linear_regions(model, noise(20, 3)) == first
