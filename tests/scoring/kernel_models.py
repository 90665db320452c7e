"""Awkward models for the tests of tangent kernels: (name, builder of (model, inputs))."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm
from torch.utils.checkpoint import checkpoint

from engine.runs.streams import stream

N = 4
Case = Callable[[], tuple[nn.Module, tuple[Any, ...]]]
CASES: dict[str, Case] = {}


def noise(*shape: int, address: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test-kernels", address), dtype=torch.float64)


def drawn(model: nn.Module) -> nn.Module:
    """Every parameter and running statistic at random, so that no gradient vanishes by initialisation."""
    generator = stream(0, "test-kernels", "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.double()


def case(build: Callable[[], tuple[Any, ...]]) -> Case:
    def made() -> tuple[nn.Module, tuple[Any, ...]]:
        model, *inputs = build()
        return drawn(model), tuple(inputs)

    CASES[build.__name__] = made
    return made


class Lambda(nn.Module):
    """Layers and a forward of one line."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.body = forward

    def forward(self, *inputs: Any) -> Tensor:
        return self.body(self, *inputs)


def _convolutions(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))


def _ready(model: nn.Module, *inputs: Tensor) -> tuple[Any, ...]:
    model.double()(*inputs)
    return model, *inputs


@case
def dense() -> tuple[Any, ...]:
    body = _convolutions(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, bias=False), nn.Tanh())
    return _ready(body, noise(N, 3, 6, 5))


@case
def channels_last() -> tuple[Any, ...]:
    body = _convolutions(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(True), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1))
    model, x = _ready(body, noise(N, 3, 7, 7))
    return model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)


@case
def grouped_strided_dilated_asymmetric() -> tuple[Any, ...]:
    first = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), groups=2)
    second = nn.Conv2d(6, 6, (2, 3), dilation=(2, 1), padding=(2, 0), stride=(1, 2), bias=False)
    return _ready(_convolutions(first, nn.ReLU(), second), noise(N, 4, 9, 8))


@case
def depthwise() -> tuple[Any, ...]:
    first = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False)
    second = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4)
    multiplier = nn.Conv2d(4, 8, 3, groups=4)
    return _ready(_convolutions(nn.Conv2d(3, 4, 1), first, nn.ReLU(), second, multiplier), noise(N, 3, 9, 8))


@case
def one_dimensional() -> tuple[Any, ...]:
    first, second = nn.Conv1d(2, 4, 3, stride=2, padding=1), nn.Conv1d(4, 4, 2, groups=4, dilation=2)
    return _ready(_convolutions(first, nn.ReLU(inplace=True), second), noise(N, 2, 12))


@case
def three_dimensional() -> tuple[Any, ...]:
    body = _convolutions(nn.Conv3d(2, 4, (2, 3, 1), padding=(1, 0, 0)), nn.ReLU(), nn.Conv3d(4, 4, 2, stride=2, groups=2))
    return _ready(body, noise(N, 2, 4, 5, 4))


@case
def transposed() -> tuple[Any, ...]:
    first = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
    second = nn.ConvTranspose2d(6, 2, (2, 3), dilation=(2, 1), bias=False)
    return _ready(_convolutions(nn.Conv2d(3, 4, 1), first, nn.ReLU(), second), noise(N, 3, 3, 4))


@case
def transposed_1d_and_3d() -> tuple[Any, ...]:
    line, volume = nn.ConvTranspose1d(2, 4, 3, stride=2, output_padding=1), nn.ConvTranspose3d(4, 2, 2, stride=2, groups=2)
    body = _convolutions(line, nn.ReLU(), nn.Unflatten(2, (2, 2, 2)), volume)
    return _ready(body, noise(N, 2, 3)[..., :3])


@case
def padding_by_name() -> tuple[Any, ...]:
    first = nn.Conv2d(2, 3, (3, 2), padding="same")
    second = nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular", stride=2)
    third = nn.Conv2d(3, 3, 2, padding="valid")
    return _ready(_convolutions(first, nn.ReLU(), second, third), noise(N, 2, 6, 5))


@case
def linear_on_leading_shapes() -> tuple[Any, ...]:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Flatten(1, 2), nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 2))
    return model, noise(N, 3, 2, 3)


@case
def linear_changed_in_place() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.first(x)
        h += x
        h[:, 0] *= 2
        h.relu_()
        return self.second(h).sum(1)

    return Lambda(forward, first=nn.Linear(3, 3), second=nn.Linear(3, 2)), noise(N, 5, 3)


@case
def sequence_first_as_long_as_the_batch() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.first(x.transpose(0, 1))))
        return self.second(h).transpose(0, 1).sum(1)

    return Lambda(forward, first=nn.Linear(3, 4), norm=nn.LayerNorm(4), second=nn.Linear(4, 2)), noise(N, N, 3)


@case
def positions_as_many_as_samples() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        places = self.scale(self.places(torch.arange(x.shape[1]).to(x.device)))
        return self.last(torch.tanh(x + places)).flatten(1)

    return Lambda(forward, places=nn.Embedding(N, 3), scale=nn.Linear(3, 3), last=nn.Linear(3, 1)), noise(N, N, 3)


@case
def embeddings() -> tuple[Any, ...]:
    def forward(self: Any, ids: Tensor) -> Tensor:
        h = self.table(ids).mean(1) + F.embedding(ids[:, 0], self.table.weight)
        return F.linear(torch.tanh(h), self.table.weight)

    ids = torch.tensor([[0, 1, 1], [2, 6, 0], [3, 3, 3], [6, 5, 4]])
    return Lambda(forward, table=nn.Embedding(7, 4, padding_idx=6)), ids


@case
def embedding_alone() -> tuple[Any, ...]:
    ids = torch.tensor([[0, 1, 1], [2, 6, 0], [3, 3, 3], [6, 5, 4]])
    table = nn.Embedding(9, 3, padding_idx=-3)
    return Lambda(lambda self, ids: self.head(torch.tanh(self.table(ids))).sum(1), table=table, head=nn.Linear(3, 2)), ids


@case
def embedding_by_frequency_and_bag() -> tuple[Any, ...]:
    def forward(self: Any, ids: Tensor) -> Tensor:
        return torch.tanh(self.table(ids).sum(1) + self.bag(ids))

    ids = torch.tensor([[0, 1, 1], [2, 4, 0], [3, 3, 3], [4, 2, 1]])
    return Lambda(forward, table=nn.Embedding(5, 3, scale_grad_by_freq=True), bag=nn.EmbeddingBag(5, 3, mode="mean")), ids


@case
def norms() -> tuple[Any, ...]:
    return _ready(
        _convolutions(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.GroupNorm(2, 4),
            nn.Tanh(),
            nn.LayerNorm([4, 4, 3]),
            nn.InstanceNorm2d(4, affine=True),
            nn.BatchNorm2d(4).eval(),
            nn.LayerNorm(3, bias=False),
            nn.RMSNorm([4, 3]),
            nn.LocalResponseNorm(2),
        ),
        noise(N, 2, 4, 3),
    )


@case
def norm_on_vectors() -> tuple[Any, ...]:
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4).eval(), nn.Tanh(), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.Linear(4, 2)
    ), noise(N, 3)


@case
def batch_statistics() -> tuple[Any, ...]:
    body = _convolutions(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    return _ready(body, noise(N, 2, 4, 4))


@case
def module_used_several_times() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = x
        for _ in range(3):
            h = torch.tanh(self.norm(self.conv(h)) + self.pool(self.conv(x)))
        return self.head(h.mean((2, 3)))

    layers = {"conv": nn.Conv2d(3, 3, 3, padding=1), "norm": nn.GroupNorm(3, 3), "pool": nn.AvgPool2d(3, 1, 1)}
    return Lambda(forward, **layers, head=nn.Linear(3, 2)), noise(N, 3, 4, 4)


@case
def tied_weights() -> tuple[Any, ...]:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), first), noise(N, 3)


@case
def functional_calls() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = F.conv2d(x, self.w, stride=2, padding=1)
        h = F.conv2d(h, weight=self.w2, bias=self.b, dilation=1)
        h = torch.conv2d(h, self.w3, None, (1, 1), 0, 1, 2)
        return F.linear(h.flatten(1), bias=None, weight=self.w4)

    weights = {"w": (4, 3, 3, 3), "w2": (4, 4, 2, 2), "b": (4,), "w3": (2, 2, 1, 1), "w4": (3, 8)}
    return Lambda(forward, **{name: nn.Parameter(torch.empty(shape)) for name, shape in weights.items()}), noise(N, 3, 5, 6)


@case
def several_inputs() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor, ids: Tensor, scale: float, gate: Tensor) -> Tensor:
        return self.head(torch.tanh(scale * self.first(x) + self.table(ids)) * gate[:, None])

    layers = {"first": nn.Linear(3, 4), "table": nn.Embedding(5, 4), "head": nn.Linear(4, 2)}
    return Lambda(forward, **layers), noise(N, 3), torch.tensor([0, 3, 3, 1]), 1.5, noise(N, address=1)


@case
def functional_call_inside() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        doubled = {name: 2 * p for name, p in self.inner.named_parameters()}
        return self.inner(x) + functional_call(self.inner, doubled, (torch.tanh(x),)) + functional_call(self.inner, {}, (x * x,))

    return Lambda(forward, inner=nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))), noise(N, 3)


@case
def raw_parameter() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(x) * self.scale_weight) @ self.mix_weight)

    raw = {"scale_weight": nn.Parameter(torch.empty(4)), "mix_weight": nn.Parameter(torch.empty(4, 4))}
    return Lambda(forward, first=nn.Linear(3, 4), head=nn.Linear(4, 2), **raw), noise(N, 3)


@case
def watched_and_raw_use_of_one_parameter() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x)) * self.first.weight.sum() + self.first.bias

    return Lambda(forward, first=nn.Linear(3, 4)), noise(N, 3)


@case
def attention() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0]).sum(1)

    return Lambda(forward, attention=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, 2)), noise(N, 3, 4)


@case
def transformer() -> tuple[Any, ...]:
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0)
    return Lambda(lambda self, x: self.layer(x.transpose(0, 1)).transpose(0, 1).sum(2), layer=layer), noise(N, N, 4)


@case
def recurrent() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.first(x))[0][:, -1])

    return Lambda(forward, first=nn.Linear(3, 3), lstm=nn.LSTM(3, 4, batch_first=True), head=nn.Linear(4, 2)), noise(N, 5, 3)


class Scaled(torch.autograd.Function):
    """Multiplies by a parameter; only tensors matter, so the positions of its gradients are not those of its arguments."""

    @staticmethod
    def forward(ctx: Any, factor: float, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.factor = factor
        return factor * x * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight = ctx.saved_tensors
        return None, ctx.factor * gradients[0] * weight, (ctx.factor * gradients[0] * x).sum(0)


@case
def custom_function_with_parameter() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(Scaled.apply(3.0, self.first(x), self.scale_weight))))

    layers = {"first": nn.Linear(3, 4), "middle": nn.Linear(4, 4), "head": nn.Linear(4, 2)}
    return Lambda(forward, **layers, scale_weight=nn.Parameter(torch.empty(4))), noise(N, 3)


@case
def custom_function_without_parameter() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(Scaled.apply(3.0, self.first(x), torch.ones(4, dtype=x.dtype)))))

    return Lambda(forward, first=nn.Linear(3, 4), middle=nn.Linear(4, 4), head=nn.Linear(4, 2)), noise(N, 3)


@case
def checkpointed() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, self.first(x), use_reentrant=False))

    block = nn.Sequential(nn.Linear(N, N), nn.LayerNorm(N), nn.Tanh(), nn.Linear(N, N))
    return Lambda(forward, first=nn.Linear(3, N), block=block, head=nn.Linear(N, 2)), noise(N, 3)


@case
def in_place() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.first(x).relu_()
        h = self.second(h)
        h += self.shortcut(x)
        h[:, 1].mul_(2)
        return self.head(F.relu(h, inplace=True).mean((2, 3)))

    convs = {"first": nn.Conv2d(2, 3, 3, padding=1), "second": nn.Conv2d(3, 3, 1), "shortcut": nn.Conv2d(2, 3, 1, bias=False)}
    return Lambda(forward, **convs, head=nn.Linear(3, 2)), noise(N, 2, 4, 4)


@case
def branches_and_broadcasts() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.first(x)
        pooled = self.gate(h.mean((2, 3), keepdim=True))
        a, b = (h * pooled + pooled).chunk(2, 1)
        merged = torch.cat([a, torch.maximum(a, b), b.detach()], 1)
        values, _ = merged.flatten(2).sort(dim=2)
        return self.head(values[:, :, -2:].flatten(1)) + (h.sum((1, 2, 3)).unsqueeze(1) ** 2)

    return Lambda(forward, first=nn.Conv2d(2, 4, 3), gate=nn.Conv2d(4, 4, 1), head=nn.Linear(12, 2)), noise(N, 2, 5, 5)


@case
def unused_parameters() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.ignored(x)
        with torch.no_grad():
            shift = self.constant(x)
        first = self.first(x)
        return torch.stack([self.left(first).sum(1), self.right(first + shift).sum(1)], 1)

    layers = ("never", "ignored", "constant", "first", "left", "right")
    return Lambda(forward, **{name: nn.Linear(3, 3) for name in layers}), noise(N, 3)


@case
def frozen() -> tuple[Any, ...]:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).requires_grad_(False)
    return model, noise(N, 3)


@case
def reparametrised() -> tuple[Any, ...]:
    first = parametrizations.weight_norm(nn.Linear(3, 4))
    return nn.Sequential(first, nn.Tanh(), nn.Linear(4, 2)), noise(N, 3)


@case
def reparametrised_by_hook() -> tuple[Any, ...]:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), weight_norm(nn.Linear(4, 2))), noise(N, 3)


@case
def convolution_without_batch_axis() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.stack([self.conv(sample).sum((1, 2)) for sample in x])

    return Lambda(forward, conv=nn.Conv2d(N, 3, 2)), noise(N, N, 3, 3)


@case
def tensor_hook() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.first(x)
        if h.requires_grad:
            h.register_hook(lambda g: 3 * g)
        return self.head(torch.tanh(h))

    return Lambda(forward, first=nn.Linear(3, 4), head=nn.Linear(4, 2)), noise(N, 3)


@case
def scripted() -> tuple[Any, ...]:
    inner = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    return nn.Sequential(nn.Linear(3, 4), inner, nn.Linear(4, 2)), noise(N, 3)


@case
def many_dimensional_output() -> tuple[Any, ...]:
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Conv2d(3, 2, 2, bias=False)), noise(N, 2, 3, 4)


@case
def scalar_output() -> tuple[Any, ...]:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)), noise(N, 3)
