"""Tangent kernels of models that nobody designed them for, against one autograd call a sample and output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_models import Lambda, N, drawn, noise
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from engine.scoring import chunked
from engine.scoring.kernels import ntk
from engine.scoring.proxies.scores import LabelledBatch
from engine.scoring.score import score

Case = Callable[[], tuple[Any, ...]]
CASES: dict[str, Case] = {}


def case(build: Case) -> Case:
    CASES[build.__name__] = build
    return build


def jacobian(model: nn.Module, *inputs: Tensor) -> Tensor:
    """(N, K, P) of a whole batch, by the definition; P counts the real numbers."""
    y = model(*inputs)
    rows = []
    for value in y.reshape(-1):
        gradients = torch.autograd.grad(value, list(model.parameters()), retain_graph=True, allow_unused=True)
        whole = [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), gradients, strict=True)]
        dense = [g.to_dense() if g.is_sparse else g for g in whole]
        rows.append(torch.cat([(torch.view_as_real(g) if g.is_complex() else g).flatten() for g in dense]))
    return torch.stack(rows).unflatten(0, (len(inputs[0]), -1))


def close(found: Tensor, rows: Tensor, outputs: str) -> None:
    summed = rows.sum(1)
    wanted = summed @ summed.T if outputs == "sum" else torch.einsum("nkp,mlp->nkml", rows, rows)
    assert found.shape == wanted.shape
    assert wanted.abs().max() > 0
    assert (found - wanted).abs().max() <= 1e-10 * wanted.abs().max()


@case
def a_loop_over_samples_with_as_many_frames() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.stack([self.norm(torch.tanh(self.conv(frames))).mean((0, 2, 3)) for frames in x])

    return drawn(Lambda(forward, conv=nn.Conv2d(2, 4, 2), norm=nn.GroupNorm(2, 4))), noise(N, N, 2, 3, 3)


@case
def a_loop_over_samples_of_as_many_words() -> tuple[Any, ...]:
    def forward(self: Any, ids: Tensor) -> Tensor:
        return torch.cat([self.head(torch.tanh(self.table(ids[n])).mean(0, keepdim=True)) for n in range(len(ids))])

    ids = torch.tensor([[0, 1, 1, 5], [2, 6, 0, 3], [3, 3, 3, 1], [6, 5, 4, 0]])
    return drawn(Lambda(forward, table=nn.Embedding(7, 3), head=nn.Linear(3, 2))), ids


@case
def a_loop_over_as_many_steps() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 4)
        states = []
        for step in x.transpose(0, 1):
            state = torch.tanh(self.first(step) + self.second(state))
            states.append(state)
        return self.head(torch.stack(states).transpose(0, 1)).flatten(1)

    layers = {"first": nn.Linear(3, 4), "second": nn.Linear(4, 4), "head": nn.Linear(4, 2)}
    return drawn(Lambda(forward, **layers)), noise(N, N, 3)


@case
def samples_in_another_order() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        order = torch.tensor([2, 0, 3, 1])[: len(x)].argsort()
        back = self.second(torch.tanh(self.first(x.flip(0)))).flip(0)
        return back + self.second(torch.tanh(self.first(x.roll(1, 0)))).roll(-1, 0) + self.third(x[order])[order.argsort()]

    return drawn(Lambda(forward, first=nn.Linear(3, 4), second=nn.Linear(4, 2), third=nn.Linear(3, 2))), noise(N, 3)


@case
def rows_of_samples_cut_elsewhere() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        halves = [torch.tanh(self.first(half)) for half in x.flatten(0, 1).chunk(2)]
        tiled = self.first(x[:, 0].repeat(2, 1) * self.scale[: 2 * len(x), None])
        return self.head(torch.cat(halves)).unflatten(0, (len(x), 2)).sum(1) + self.head(tiled).unflatten(0, (2, -1)).sum(0)

    layers = {"first": nn.Linear(3, 4), "head": nn.Linear(4, 2), "scale": nn.Parameter(torch.empty(2 * N))}
    return drawn(Lambda(forward, **layers)), noise(N, 2, 3)


@case
def a_table_of_as_many_rows_in_front() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x) + self.table[:, None])).permute(1, 0, 2).flatten(1)

    layers = {"first": nn.Linear(3, 4), "second": nn.Linear(4, 2), "table": nn.Parameter(torch.empty(N, 4))}
    return drawn(Lambda(forward, **layers)), noise(N, 3)


@case
def windows_of_attention() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        windows = x.unflatten(1, (2, 2)).unflatten(3, (2, 2)).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4)
        q, k, v = self.qkv(self.norm(windows)).chunk(3, -1)
        heard = torch.einsum("wij,wjc->wic", (q @ k.transpose(1, 2) + self.bias).softmax(-1), v)
        return self.head(heard.reshape(len(x), 16, 4).mean(1))

    layers = {"norm": nn.LayerNorm(4), "qkv": nn.Linear(4, 12), "head": nn.Linear(4, 2), "bias": nn.Parameter(torch.empty(4, 4))}
    return drawn(Lambda(forward, **layers)), noise(N, 4, 4, 4)


@case
def complex_parameters() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.dense(torch.fft.fft(x) * self.filter)
        return self.head(y.abs())

    dense = nn.Linear(5, 4, dtype=torch.complex128)
    layers = {"dense": dense, "filter": nn.Parameter(torch.randn(5, dtype=torch.complex128)), "head": nn.Linear(4, 2).double()}
    return Lambda(forward, **layers), noise(N, 5)


@case
def sparse_gradients() -> tuple[Any, ...]:
    table = nn.Embedding(7, 4, sparse=True)
    ids = torch.tensor([[0, 1, 1], [2, 6, 0], [3, 3, 3], [6, 5, 4]])
    return drawn(Lambda(lambda self, ids: self.head(torch.tanh(self.table(ids)).sum(1)), table=table, head=nn.Linear(4, 2))), ids


@case
def power_iteration_in_train_mode() -> tuple[Any, ...]:
    first = parametrizations.spectral_norm(nn.Conv2d(2, 4, 3))
    return nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).double(), noise(N, 2, 4, 4)


@case
def an_energy() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            h = self.first(x)
            inner, outer = torch.autograd.grad(self.second(torch.tanh(h)).sum(), (h, x), create_graph=True)
        return outer + self.third(inner)

    return drawn(Lambda(forward, first=nn.Linear(3, 4), second=nn.Linear(4, 1), third=nn.Linear(4, 3))), noise(N, 3)


@case
def an_inner_loop() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        found = []
        for sample in x:
            with torch.enable_grad():
                loss = F.linear(sample, self.first.weight).square().sum()
                (gradient,) = torch.autograd.grad(loss, self.first.weight, create_graph=True)
            found.append(self.head(torch.tanh(F.linear(sample, self.first.weight - 0.1 * gradient))))
        return torch.stack(found)

    return drawn(Lambda(forward, first=nn.Linear(3, 4, bias=False), head=nn.Linear(4, 2))), noise(N, 3)


@case
def transforms_inside() -> tuple[Any, ...]:
    def forward(self: Any, x: Tensor) -> Tensor:
        def energy(v: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(v))).sum()

        return torch.func.grad(energy)(x)[:, 0] + torch.func.vmap(lambda words: torch.tanh(self.first(words)).mean(0))(x)[:, :3]

    return drawn(Lambda(forward, first=nn.Linear(3, 4), second=nn.Linear(4, 1))), noise(N, N, 3)


@pytest.mark.parametrize("outputs", ["sum", "all"])
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_the_definition(name: str, outputs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = CASES[name]()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    rows = []
    for n in range(N):
        rows.append(jacobian(model, x[n : n + 1]))
        model.load_state_dict(state)
    close(ntk(model, x, outputs, "all"), torch.cat(rows), outputs)
    monkeypatch.setattr(chunked, "FEWEST_BYTES", 0)
    close(ntk(model, x, outputs, "all", chunk=3), torch.cat(rows), outputs)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def _dropout_everywhere() -> nn.Module:
    layers = {"first": nn.Linear(3, 8), "encoder": nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)}
    forward = lambda self, x: self.head(F.dropout(self.encoder(self.first(x)), 0.5) * self.scale).mean(1)  # noqa: E731
    return Lambda(forward, **layers, head=nn.Linear(8, 2), scale=nn.Parameter(torch.empty(8)))


def _dropout_recomputed() -> nn.Module:
    block = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.4))
    forward = lambda self, x: self.head(checkpoint(self.block, self.first(x), use_reentrant=False)).mean(1)  # noqa: E731
    return Lambda(forward, first=nn.Linear(3, 4), block=block, head=nn.Linear(8, 2))


@pytest.mark.parametrize("outputs", ["sum", "all"])
@pytest.mark.parametrize("build", [_dropout_everywhere, _dropout_recomputed])
def test_all_gradients_are_of_the_same_draws(
    build: Callable[[], nn.Module], outputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watched and unwatched parameters, and all slices of a chunked call, meet the dropout of one and the same network."""
    monkeypatch.setattr(chunked, "FEWEST_BYTES", 0)
    model, x = drawn(build()), noise(N, 5, 3)
    with torch.random.fork_rng():
        for sizes, chunk in (([N], None), ([3, 1], 3)):
            start = torch.get_rng_state()
            rows = torch.cat([jacobian(model, part) for part in x.split(sizes)])
            torch.set_rng_state(start)
            close(ntk(model, x, outputs, "all", chunk), rows, outputs)
            assert torch.equal(torch.get_rng_state(), start)


@pytest.mark.parametrize("outputs", ["sum", "all"])
def test_batch_statistics_inside_torchscript_are_known_to_mix_samples(outputs: Any) -> None:
    inner = torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh()))
    model, x = drawn(nn.Sequential(inner, nn.Linear(4, 2))), noise(N, 3)
    for _ in range(3):  # TorchScript optimises after it has seen some calls
        close(ntk(model, x, outputs, "all"), jacobian(model, x), outputs)
    close(ntk(model.eval(), x, outputs, "all"), jacobian(model, x), outputs)


def test_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model, x = (
            drawn(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))).eval(),
            noise(N, 2, 3, 3),
        )
        found = ntk(model, x, params="all")
    copy = drawn(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))).eval()
    close(found, jacobian(copy, x.clone()), "sum")


@pytest.mark.parametrize("outputs", ["sum", "all"])
@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda y: y.argmax(1), "model: its outputs are torch.int64, which have no gradients"),
        (lambda y: y > 0, "model: its outputs are torch.bool"),
        (torch.fft.fft, "model: its outputs are torch.complex128; return their real and imaginary parts"),
    ],
)
def test_outputs_that_are_no_real_numbers_are_refused(end: Callable[[Tensor], Tensor], message: str, outputs: Any) -> None:
    model = drawn(Lambda(lambda self, x: end(self.layer(x)), layer=nn.Linear(3, 2)))
    with pytest.raises(ValueError, match=message):
        ntk(model, noise(N, 3), outputs)


def test_a_lazy_layer_without_a_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"model: '0\.weight' of a lazy layer has no shape yet"):
        ntk(nn.Sequential(nn.LazyLinear(3)), noise(N, 3))


def test_labels_may_come_along() -> None:
    model, x = drawn(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))), noise(N, 3)
    batch = LabelledBatch(x, torch.arange(N) % 2)
    assert score(model, batch, "ntk") == score(model, x, "ntk")
    assert score(model, batch, "regions") == score(model, x, "regions")
