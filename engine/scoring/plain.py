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


def stand_ins(model: nn.Module, tracked: set[str] | None) -> dict[str, Tensor]:
    """Aliases of a model's parameters, of which those in ``tracked`` require gradients and no others do; None means all."""
    for name, p in model.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(f"model: {name!r} of a lazy layer has no shape yet; call the model once on such an input")
    # What was made in inference mode can require no gradients; a copy can.
    aliases = {name: (p.clone() if p.is_inference() else p).detach() for name, p in model.named_parameters()}
    return {name: alias.requires_grad_(tracked is None or name in tracked) for name, alias in aliases.items()}


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


def differentiable(y: Tensor) -> Tensor:
    """``y``, if gradients of it make sense: integers have none, and complex numbers no kernel."""
    if not y.is_floating_point():
        remedy = "; return their real and imaginary parts (torch.view_as_real)" if y.is_complex() else ", which have no gradients"
        raise ValueError(f"model: its outputs are {y.dtype}{remedy}")
    return y


class Draws:
    """Where the global random streams stand, on the CPU and on the devices of the inputs, to notice draws and repeat them."""

    def __init__(self, inputs: tuple[Any, ...]) -> None:
        devices = {item.device for item in inputs if isinstance(item, Tensor) and item.device.type == "cuda"}
        self._cpu = torch.get_rng_state()
        self._cuda = {device: torch.cuda.get_rng_state(device) for device in devices}

    def moved(self) -> bool:
        """Whether anything was drawn."""
        there = torch.equal(self._cpu, torch.get_rng_state())
        return not (there and all(torch.equal(state, torch.cuda.get_rng_state(d)) for d, state in self._cuda.items()))

    def rewind(self) -> None:
        """Go back, so that the same numbers are drawn again."""
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)


def sample_gradient_rows(
    model: nn.Module, names: list[str], inputs: tuple[Any, ...], outputs: str, *, alone: bool = False
) -> Rows:
    """``vmap(grad)`` of the named parameters: yields (name, (N, K, P)) one parameter after the other.

    Layers that ``vmap`` cannot batch (fused recurrent layers, custom autograd functions without a rule) are asked sample by
    sample, and so is everything if ``alone`` (the model takes gradients itself, which transforms do not mix with). Non-tensor
    inputs are passed on as they are.
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
    if not alone:
        try:
            found = vmap(derivative, in_dims=(None, *axes))(chosen, *inputs)
        except (RuntimeError, NotImplementedError):
            # Torch raises these for layers without a batching rule; a real error of the model is raised again by the loop.
            alone = True
    if alone:
        found = _one_by_one(model, names, inputs, outputs)
    for name in names:
        gradient = found.pop(name)
        count = gradient.shape[1] if outputs == "all" else 1
        yield name, _real(gradient).reshape(gradient.shape[0], count, entries(chosen[name]))


def _one_by_one(model: nn.Module, names: list[str], inputs: tuple[Any, ...], outputs: str) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    for n in range(inputs[0].shape[0]):
        stands = stand_ins(model, None)
        sample = [item[n : n + 1] if isinstance(item, Tensor) else item for item in inputs]

        def gradients(stands: dict[str, Tensor] = stands, sample: list[Any] = sample) -> dict[str, Tensor]:
            y = flat_outputs(model(*sample), 1)
            leaves = {name: stands[name] for name in names}
            return dict(interacting_rows(y if outputs == "all" else y.sum(1, keepdim=True), leaves))

        for name, row in run_on(model, stands, gradients).items():
            rows[name].append(row[0] if outputs == "all" else row[0, 0])
    return {name: torch.stack(values) for name, values in rows.items()}


def interacting_rows(y: Tensor, leaves: dict[str, Tensor]) -> Rows:
    """One backward pass a sample and output through the whole batch: yields (name, (N, K, P)). ``y`` is (N, K)."""
    gradients = [_gradients(value, leaves) for value in y.reshape(-1)]
    for name, leaf in leaves.items():
        rows = [g.pop(name).detach() for g in gradients]
        gradient = torch.stack(rows) if rows else leaf.new_zeros(*y.shape, *leaf.shape)
        yield name, _real(gradient).reshape(*y.shape, entries(leaf))


def _gradients(value: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    if not value.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, allow_unused=True)
    dense = [g.to_dense() if g is not None and g.is_sparse else g for g in found]
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(leaves.items(), dense, strict=True)}


def _real(gradient: Tensor) -> Tensor:
    """A complex parameter counts as its real and its imaginary part."""
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def entries(parameter: Tensor) -> int:
    """Real numbers P of a parameter."""
    return parameter.numel() * (2 if parameter.is_complex() else 1)
