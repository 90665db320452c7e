"""One forward and one backward pass of a model, whose per-sample gradients go to a sink as they arrive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.runs.profiling import span
from engine.scoring.capture import Capture, DifferentiatesInside, SamplesInteract, graph_leaves
from engine.scoring.plain import Draws, differentiable, flat_outputs, interacting_rows, run_on, sample_gradient_rows, stand_ins
from engine.scoring.sample_axis import mark
from engine.scoring.sinks import Sink
from engine.scoring.walk import Joined, walk, walkable

_HOOKED = "saved tensors have hooks (checkpointing), so the forward pass cannot be watched"


@dataclass(frozen=True)
class Profile:
    """What one forward pass shows: the parameters it used, in order, the number of outputs, and bytes of the layers' inputs."""

    order: list[str]
    outputs: int
    bytes: int


def stream(model: nn.Module, inputs: tuple[Any, ...], names: set[str], outputs: str, sink: Sink, *, groups: int = 1) -> int:
    """Send the per-sample gradients of the parameters ``names`` to ``sink``; returns K, the number of outputs differentiated.

    Raises:
        SamplesInteract: the forward pass mixes samples.
        ValueError: with ``groups`` > 1, a parameter is used in a way that only single samples can be asked about.
    """
    aliases, draws, alone = stand_ins(model, names), Draws(inputs), False
    capture = _capture(model, aliases, names, inputs, sink)

    def body() -> tuple[int, set[str]]:
        with span("forward"):
            y = _watched_forward(model, inputs, capture)
        count = y.shape[1] if outputs == "all" else 1
        capture.ignore = _unknown(y, aliases)
        if capture.ignore and groups > 1:
            name = min(capture.ignore)
            raise ValueError(
                f"groups: {name!r} is used in a way that only single samples can be asked about; score one group at a time"
            )
        capture.end_forward()
        sink.begin(capture.count)
        if y.requires_grad and y.numel():
            # The engine runs only what leads to these leaves, and above a parameter of unknown use there is no anchor.
            leaves = [capture.anchor, *(aliases[name] for name in capture.ignore)]
            with span("backward"):
                if outputs == "sum":
                    torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True)
                elif capture.hooked or not walkable(y.grad_fn):
                    collected = Joined(sink.take)
                    capture.arrive = collected.arrive
                    collected.run(y, leaves)
                else:
                    seeds = [row.expand_as(y) for row in torch.eye(count, dtype=y.dtype, device=y.device)]
                    roots = [y.grad_fn]
                    del y
                    walk(roots.pop(), seeds, capture, sink.take)
        return count, capture.ignore

    try:
        count, unknown = run_on(model, aliases, body)
    except _UNWATCHABLE as reason:
        alone = isinstance(reason, DifferentiatesInside)
        draws.rewind()
        count, unknown = _outputs(model, inputs, outputs), names
    finally:
        capture.forget()
    if not unknown or not len(inputs[0]):
        return count
    if draws.moved():
        # Single samples would meet other random numbers than the batch; so the batch goes through once more, with the same.
        draws.rewind()
        return by_definition(model, inputs, unknown, outputs, sink)
    for name, rows in sample_gradient_rows(model, sorted(unknown), inputs, outputs, alone=alone):
        sink.add_rows(name, rows)
    return count


def by_definition(model: nn.Module, inputs: tuple[Any, ...], names: set[str], outputs: str, sink: Sink) -> int:
    """:func:`stream` for models whose samples interact: one backward pass through the whole batch a sample and output."""
    aliases = stand_ins(model, None)

    def body() -> int:
        y = differentiable(flat_outputs(model(*inputs), len(inputs[0])))
        count = y.shape[1] if outputs == "all" else 1
        leaves = {name: aliases[name] for name in aliases if name in names}
        for name, rows in interacting_rows(y if outputs == "all" else y.sum(1, keepdim=True), leaves):
            sink.add_rows(name, rows)
        return count

    return run_on(model, aliases, body)


def profile(model: nn.Module, inputs: tuple[Any, ...], names: set[str], outputs: str) -> Profile:
    """Watch a forward pass without a backward pass. Raises SamplesInteract as :func:`stream` does."""
    aliases = stand_ins(model, names)
    capture = _capture(model, aliases, names, inputs, None)
    rest = [name for name in aliases if name in names]
    try:
        y = run_on(model, aliases, lambda: _watched_forward(model, inputs, capture))
    except _UNWATCHABLE:
        return Profile(rest, _outputs(model, inputs, outputs), 0)
    finally:
        capture.forget()
    unknown = _unknown(y, aliases)
    order = [*capture.count, *(name for name in rest if name in unknown and name not in capture.count)]
    return Profile(order, y.shape[1] if outputs == "all" else 1, capture.bytes_held())


class _Hooked(Exception):
    pass


_UNWATCHABLE = (_Hooked, DifferentiatesInside)


def _capture(
    model: nn.Module, aliases: dict[str, Tensor], names: set[str], inputs: tuple[Any, ...], sink: Sink | None
) -> Capture:
    # Nothing can be watched inside TorchScript.
    if any(m.training and "BatchNorm" in m.original_name for m in model.modules() if isinstance(m, torch.jit.ScriptModule)):
        raise SamplesInteract
    for item in inputs:
        if isinstance(item, Tensor):
            mark(item, 0)

    def arrive(use: Any, gradient: Tensor) -> None:
        assert sink is not None
        sink.take(use, [gradient])

    # On the device from the start: a copy to it in the forward pass would wait for the host and forbid a CUDA graph.
    anchor = torch.zeros((), requires_grad=True, device=next(iter(aliases.values())).device)
    # The rules are those of real numbers.
    watched = {id(aliases[name]): name for name in names if not aliases[name].is_complex()}
    return Capture(watched, len(inputs[0]), arrive, anchor=anchor)


def _watched_forward(model: nn.Module, inputs: tuple[Any, ...], capture: Capture) -> Tensor:
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(_HOOKED), capture:
            return differentiable(flat_outputs(model(*inputs), capture.batch))
    except RuntimeError as error:
        if str(error) == _HOOKED:
            raise _Hooked from error
        raise


def _unknown(y: Tensor, aliases: dict[str, Tensor]) -> set[str]:
    """Parameters that autograd still sees: some use of theirs was not watched."""
    leaves = graph_leaves(y)
    return {name for name, alias in aliases.items() if id(alias) in leaves}


def _outputs(model: nn.Module, inputs: tuple[Any, ...], outputs: str) -> int:
    with torch.no_grad():
        y = run_on(model, stand_ins(model, None), lambda: differentiable(flat_outputs(model(*inputs), len(inputs[0]))))
    return y.shape[1] if outputs == "all" else 1
