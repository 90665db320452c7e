"""The tangent kernel in little memory: a few samples' activations and a slice of the layers' gradients at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from engine.scoring.capture import SamplesInteract
from engine.scoring.passes import Profile, profile, stream
from engine.scoring.plain import Draws, entries
from engine.scoring.sinks import GramSink, RowSink

# Slices smaller than this would cost passes to save what no machine misses.
FEWEST_BYTES = 32 * 2**20


def chunked_gram(
    model: nn.Module, inputs: tuple[Any, ...], sets: dict[str, str], outputs: str, chunk: int, device: torch.device
) -> dict[str, Tensor]:
    """Gram matrices of sets of parameters (name -> set), ``chunk`` samples at a time.

    The kernel needs every pair of samples, so the per-sample gradients of a slice of the layers are kept for all N samples while
    the chunks pass; then the next slice's. A slice holds as many bytes of gradients as a chunk's layers have inputs, at least
    :data:`FEWEST_BYTES`, or one parameter. A pass forms its slice's gradients only and goes back no further than its first layer.

    Cost: S forward and at most S backward passes for S slices, S about N * K * P * itemsize / (bytes of a chunk's inputs).
    """
    samples, draws = len(inputs[0]), Draws(inputs)
    try:
        found = profile(model, _part(inputs, 0, chunk), set(sets), outputs)
    except SamplesInteract:
        raise ValueError("chunk: this model's samples interact (batch statistics), so they cannot be taken apart") from None
    parameters = dict(model.named_parameters())
    sink = GramSink(sets, samples, 1, device)
    for names in _slices(found, parameters, samples):
        draws.rewind()  # so that every slice sees the same network, dropout and all
        rows = RowSink({name: entries(parameters[name]) for name in names}, samples)
        for start in range(0, samples, chunk):
            rows.offset = start
            stream(model, _part(inputs, start, chunk), names, outputs, rows)
        while rows.rows:
            sink.add_rows(*rows.rows.popitem())
    return sink.finish(outputs, found.outputs)


def _part(inputs: tuple[Any, ...], start: int, chunk: int) -> tuple[Any, ...]:
    return tuple(item[start : start + chunk] if isinstance(item, Tensor) else item for item in inputs)


def _slices(found: Profile, parameters: dict[str, nn.Parameter], samples: int) -> Iterator[set[str]]:
    """Parameters in the order of their use, cut where a slice's gradients would outgrow the activations."""
    names: set[str] = set()
    held = 0
    for name in found.order:
        size = samples * found.outputs * parameters[name].numel() * parameters[name].element_size()
        if names and held + size > max(found.bytes, FEWEST_BYTES):
            yield names
            names, held = set(), 0
        names.add(name)
        held += size
    if names:
        yield names
