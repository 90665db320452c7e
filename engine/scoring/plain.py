"""Per-sample gradients by their definition: slower, but for any parameter and any model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

Rows = Iterator[tuple[str, Tensor]]


def sample_gradient_rows(model: nn.Module, names: list[str], inputs: tuple[Any, ...], outputs: str) -> Rows:
    """``vmap(grad)`` of the named parameters: yields (name, (N, K, P)) one parameter after the other.

    Layers that ``vmap`` cannot batch (fused recurrent layers, custom autograd functions without a rule) are asked sample by
    sample. Non-tensor inputs are passed on as they are.
    """
    if not names:
        return
    fixed = {name: p.detach() for name, p in model.named_parameters() if name not in names}
    fixed |= {name: b.clone() for name, b in model.named_buffers()}
    chosen = {name: p.detach() for name, p in model.named_parameters() if name in names}
    axes = tuple(0 if isinstance(item, Tensor) else None for item in inputs)

    def single(params: dict[str, Tensor], *sample: Any) -> Tensor:
        batch = [item.unsqueeze(0) if isinstance(item, Tensor) else item for item in sample]
        y = functional_call(model, {**fixed, **params}, tuple(batch), tie_weights=True).reshape(-1)
        return y if outputs == "all" else y.sum()

    derivative: Callable[..., dict[str, Tensor]] = jacrev(single) if outputs == "all" else grad(single)
    try:
        found = vmap(derivative, in_dims=(None, *axes))(chosen, *inputs)
    except RuntimeError:
        # Torch raises RuntimeError for layers without a batching rule; a real error of the model is raised again by the loop.
        found = _one_by_one(single, chosen, inputs)
    for name in names:
        gradient = found.pop(name)
        samples = gradient.shape[0]
        count = gradient.shape[1] if outputs == "all" else 1
        yield name, gradient.reshape(samples, count, -1)


def _one_by_one(single: Callable[..., Tensor], chosen: dict[str, Tensor], inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    samples = inputs[0].shape[0]
    rows: dict[str, list[Tensor]] = {name: [] for name in chosen}
    for n in range(samples):
        leaves = {name: p.clone().requires_grad_() for name, p in chosen.items()}
        with torch.enable_grad():
            y = single(leaves, *[item[n] if isinstance(item, Tensor) else item for item in inputs])
        gradients = [_gradients(value, leaves, retain=True) for value in y.reshape(-1)]
        for name in chosen:
            stacked = torch.stack([g[name] for g in gradients])
            rows[name].append(stacked if y.dim() else stacked[0])
    return {name: torch.stack(values) for name, values in rows.items()}


def interacting_rows(y: Tensor, aliases: dict[str, Tensor]) -> Rows:
    """One backward pass a sample and output through the whole batch: yields (name, (N, K, P)). ``y`` is (N, K)."""
    gradients = [_gradients(value, aliases, retain=True) for value in y.reshape(-1)]
    for name in aliases:
        rows = torch.stack([g.pop(name) for g in gradients])
        yield name, rows.reshape(*y.shape, -1)


def _gradients(value: Tensor, leaves: dict[str, Tensor], *, retain: bool) -> dict[str, Tensor]:
    found = torch.autograd.grad(value, list(leaves.values()), retain_graph=retain, allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(leaves.items(), found, strict=True)}
