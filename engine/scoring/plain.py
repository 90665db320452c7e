"""Running a model on stand-ins for its parameters, and per-sample gradients by their definition: slower, but for any model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

Rows = Iterator[tuple[str, Tensor]]
Result = TypeVar("Result")


class _Inside(nn.Module):
    """Runs a function while the model has its stand-ins: what a backward pass computes afresh (checkpointing) then has them
    too.
    """

    def __init__(self, model: nn.Module, body: Callable[[], Any]) -> None:
        super().__init__()
        self.model, self.body = model, body

    def forward(self) -> Any:
        return self.body()


def stand_ins(model: nn.Module, tracked: set[str]) -> dict[str, Tensor]:
    """Aliases of a model's parameters, of which those in ``tracked`` require gradients and no others do."""
    return {name: p.detach().requires_grad_(name in tracked) for name, p in model.named_parameters()}


def run_on(model: nn.Module, parameters: Mapping[str, Tensor], body: Callable[[], Result]) -> Result:
    """``body()`` with ``parameters`` and copies of all buffers in the model's place; the model itself is never touched."""
    stands = {id(p): parameters[name] for name, p in model.named_parameters()}
    stands |= {id(b): b.clone() for b in model.buffers()}
    inside = _Inside(model, body)
    # Every place of every module is named once: functional_call's own tying puts a module that is registered twice back wrongly.
    state = {
        f"{prefix}.{name}": stands[id(tensor)]
        for prefix, module in inside.named_modules()
        for places in (module._parameters, module._buffers)
        for name, tensor in places.items()
        if tensor is not None
    }
    return functional_call(inside, state, (), tie_weights=False)


@contextmanager
def untouched(inputs: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Copies of the inputs, and a setting in which gradients can be taken whatever the caller's: global random state comes back
    as it was, and compiled modules run eagerly, because only eager calls can be watched.
    """
    devices = {item.device for item in inputs if isinstance(item, Tensor) and item.device.type == "cuda"}
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(list(devices)),
        torch.compiler.set_stance("force_eager"),
    ):
        yield tuple(item.detach().clone() if isinstance(item, Tensor) else item for item in inputs)


def flat_outputs(y: Any, samples: int) -> Tensor:
    """The model's output as (N, K)."""
    if not isinstance(y, Tensor) or y.dim() == 0 or y.shape[0] != samples:
        shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"model: expected an output with {samples} samples along axis 0, got {shape}")
    return y.flatten(1) if y.dim() > 1 else y.unsqueeze(1)


def sample_gradient_rows(model: nn.Module, names: list[str], inputs: tuple[Any, ...], outputs: str) -> Rows:
    """``vmap(grad)`` of the named parameters: yields (name, (N, K, P)) one parameter after the other.

    Layers that ``vmap`` cannot batch (fused recurrent layers, custom autograd functions without a rule) are asked sample by
    sample. Non-tensor inputs are passed on as they are.
    """
    if not names:
        return
    aliases = stand_ins(model, set())
    chosen = {name: aliases.pop(name) for name in names}
    axes = tuple(0 if isinstance(item, Tensor) else None for item in inputs)

    def single(params: dict[str, Tensor], *sample: Any) -> Tensor:
        batch = [item.unsqueeze(0) if isinstance(item, Tensor) else item for item in sample]
        y = run_on(model, {**aliases, **params}, lambda: flat_outputs(model(*batch), 1)[0])
        return y if outputs == "all" else y.sum()

    derivative: Callable[..., dict[str, Tensor]] = jacrev(single) if outputs == "all" else grad(single)
    try:
        found = vmap(derivative, in_dims=(None, *axes))(chosen, *inputs)
    except (RuntimeError, NotImplementedError):
        # Torch raises these for layers without a batching rule; a real error of the model is raised again by the loop.
        found = _one_by_one(model, aliases, chosen, inputs, outputs)
    for name in names:
        gradient = found.pop(name)
        count = gradient.shape[1] if outputs == "all" else 1
        yield name, gradient.reshape(gradient.shape[0], count, chosen[name].numel())


def _one_by_one(
    model: nn.Module, fixed: dict[str, Tensor], chosen: dict[str, Tensor], inputs: tuple[Any, ...], outputs: str
) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = {name: [] for name in chosen}
    for n in range(inputs[0].shape[0]):
        leaves = {name: p.clone().requires_grad_() for name, p in chosen.items()}
        sample = [item[n : n + 1] if isinstance(item, Tensor) else item for item in inputs]

        def gradients(leaves: dict[str, Tensor] = leaves, sample: list[Any] = sample) -> dict[str, Tensor]:
            y = flat_outputs(model(*sample), 1)
            return dict(interacting_rows(y if outputs == "all" else y.sum(1, keepdim=True), leaves))

        for name, row in run_on(model, {**fixed, **leaves}, gradients).items():
            rows[name].append(row[0] if outputs == "all" else row[0, 0])
    return {name: torch.stack(values) for name, values in rows.items()}


def interacting_rows(y: Tensor, leaves: dict[str, Tensor]) -> Rows:
    """One backward pass a sample and output through the whole batch: yields (name, (N, K, P)). ``y`` is (N, K)."""
    gradients = [_gradients(value, leaves) for value in y.reshape(-1)]
    for name, leaf in leaves.items():
        rows = [g.pop(name).detach() for g in gradients]
        yield name, torch.stack(rows).reshape(*y.shape, leaf.numel()) if rows else leaf.new_zeros(*y.shape, leaf.numel())


def _gradients(value: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    if not value.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(leaves.items(), found, strict=True)}
