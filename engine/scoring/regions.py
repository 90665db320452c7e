"""Linear regions: how many distinct activation patterns an untrained network shows on a set of samples.

Source: TE-NAS, as MetaNTK-NAS uses it (reference note, section 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from engine.scoring.pattern_sets import HashedPatterns, PackedPatterns, PatternSets
from engine.scoring.result import Score
from engine.spaces.operations import gated_relu

Forward = Callable[[nn.Module, Tensor], object]


@overload
def linear_regions(
    model: nn.Module,
    batches: Tensor | Sequence[Tensor],
    *,
    groups: Literal[1] = 1,
    forward: Forward | None = None,
    hash_bits: Literal[64, 128] | None = None,
) -> Score: ...


@overload
def linear_regions(
    model: nn.Module,
    batches: Tensor | Sequence[Tensor],
    *,
    groups: int,
    forward: Forward | None = None,
    hash_bits: Literal[64, 128] | None = None,
) -> Score | list[Score]: ...


def linear_regions(
    model: nn.Module,
    batches: Tensor | Sequence[Tensor],
    *,
    groups: int = 1,
    forward: Forward | None = None,
    hash_bits: Literal[64, 128] | None = None,
) -> Score | list[Score]:
    """Count the distinct activation patterns of ``model`` over all samples of all ``batches``.

    ``batches`` is one tensor (B, ...) or several; each is one forward pass (batch statistics stay its own), and the patterns
    of all are pooled. With ``groups=G`` every batch holds G candidates of B/G consecutive samples each, and the result is a
    list of G scores; ``groups=1`` gives one :class:`Score`. ``forward(model, x)`` replaces ``model(x)``.

    A pattern has one bit a neuron, input > 0, for every call of ``relu``, ``leaky_relu``, ``rrelu``, ``prelu``, ``clamp`` or
    ``clip`` with ``min=0`` (also ``clamp_min``) and ``threshold`` (input > threshold), and two bits, one a knee, for ``relu6``,
    ``hardtanh`` and ``clamp(0, max)``: as module, function, method, in place or not, once a call, so a module used twice counts
    twice. Smooth activations, maxima and absolute values do not count. ``gated_relu`` counts only for the groups where its
    operation is alive. Calls that torch functions modes cannot see (TorchScript, ``rnn_relu``) do not count either. The
    first axis of an activation is the sample's; it may be a multiple of the batch (consecutive rows of one sample).

    On the CPU the default is exact, on packed bits: B * neurons / 8 bytes a batch. ``hash_bits`` keeps 8 or 16 bytes a sample
    (:func:`engine.kernels.regions.fold_signs`), which takes two of n patterns for one with odds near n^2 / 2^65 (64) or n^2 /
    2^129 (128). On a GPU the default is 128: patterns are folded where they arise, and the host reads nothing but the counts.
    Comparing, packing and counting are linear in B * neurons and small beside the forward pass.

    Status ``nonfinite`` (value NaN) where a group's activations hold NaN or infinity. No activation at all, batches that
    ``groups`` does not divide, or neurons that differ between batches are a ``ValueError``. No gradients, no hooks; buffers
    (running statistics) and global random state are put back, exceptions included, and no flag is touched.
    """
    batches = [batches] if isinstance(batches, Tensor) else list(batches)
    _check_arguments(batches, groups, hash_bits)
    device = batches[0].device
    bits = hash_bits or (128 if device.type == "cuda" else None)
    patterns: PatternSets = PackedPatterns(groups) if bits is None else HashedPatterns(groups, bits // 64, device)
    finite = torch.ones(groups, dtype=torch.bool, device=device)
    neurons: int | None = None
    streams = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with torch.no_grad(), streams, _preserved_buffers(model):
        for index, batch in enumerate(batches):
            patterns.begin(len(batch))
            recorder = _Recorder(len(batch), patterns, finite)
            samples = batch.clone()  # a network that rectifies its input in place must not change the caller's
            with recorder:
                model(samples) if forward is None else forward(model, samples)
            if recorder.neurons == 0:
                raise ValueError("model: no ReLU-like activation was seen in its forward pass, so it has no patterns to count")
            if neurons not in (None, recorder.neurons):
                raise ValueError(f"batches: batch {index} has {recorder.neurons} neurons a sample, those before it {neurons}")
            neurons, finite = recorder.neurons, recorder.finite
            patterns.end()
    scores = [
        Score(float(count), "ok", "linear_regions") if usable else Score(math.nan, "nonfinite", "linear_regions")
        for count, usable in zip(patterns.counts().tolist(), finite.tolist(), strict=True)
    ]
    return scores[0] if groups == 1 else scores


class _Recorder(TorchFunctionMode):
    """Sees every torch call of a forward pass and records the inputs of ReLU-like ones, before the call may overwrite them.

    ``finite`` (G,) says whose activations were finite; groups whose operation is dead are not asked.
    """

    def __init__(self, samples: int, patterns: PatternSets, finite: Tensor) -> None:
        super().__init__()
        self.samples, self.patterns, self.finite = samples, patterns, finite
        self.neurons = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        activation = ACTIVATIONS.get(func)
        if activation is not None:
            x, knees, alive, _ = activation(*args, **kwargs)
            if knees and x.is_floating_point() and x.numel():
                self._record(x, knees, alive)
        return func(*args, **kwargs)

    def _record(self, x: Tensor, knees: tuple[float, ...], alive: Tensor | None) -> None:
        groups = len(self.finite)
        if x.ndim == 0 or x.shape[0] % self.samples:
            raise ValueError(f"model: an activation of shape {tuple(x.shape)} does not begin with its {self.samples} samples")
        if alive is not None and tuple(alive.shape) != (groups,):
            raise ValueError(f"alive: shape {tuple(alive.shape)} is not one flag for each of the {groups} groups")
        rows = x.reshape(self.samples, -1)
        grouped = rows.reshape(groups, -1)
        finite = (grouped.amin(1).isfinite() & grouped.amax(1).isfinite()).to(self.finite.device)
        gate = None if alive is None else alive.to(self.finite.device, torch.bool)
        self.finite = self.finite & (finite if gate is None else finite | ~gate)
        for knee in knees:
            self.patterns.add(rows, knee, gate)
        self.neurons += rows.shape[1]


class Seen(NamedTuple):
    """One call of an activation: its input, where it bends, for which groups it exists, and how many operations share it, (G,)
    where groups differ.
    """

    x: Tensor
    knees: tuple[float, ...]
    alive: Tensor | None = None
    readers: int | Tensor = 1


def _relu(input: Tensor, *_: Any, **__: Any) -> Seen:
    return Seen(input, (0.0,))


def _relu6(input: Tensor, inplace: bool = False) -> Seen:
    return Seen(input, (0.0, 6.0))


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Seen:
    return Seen(input, (min_val, max_val))


def _threshold(input: Tensor, threshold: float, *_: Any, **__: Any) -> Seen:
    return Seen(input, (threshold,))


def _clamp(input: Tensor, min: Any = None, max: Any = None, **_: Any) -> Seen:
    if not isinstance(min, int | float) or min != 0 or isinstance(max, Tensor):
        return Seen(input, ())
    return Seen(input, (0.0,) if max is None else (0.0, float(max)))


def _gated_relu(x: Tensor, alive: Tensor | None = None, readers: int | Tensor = 1) -> Seen:
    return Seen(x, (0.0,), alive, readers)


def _activations() -> Iterator[tuple[Any, Callable[..., Seen]]]:
    """Every callable that a mode can meet, with the reader of its arguments."""
    readers: dict[str, Callable[..., Seen]] = {
        **dict.fromkeys(("relu", "leaky_relu", "rrelu", "prelu"), _relu),
        **dict.fromkeys(("clamp", "clamp_min", "clip"), _clamp),
        "relu6": _relu6,
        "hardtanh": _hardtanh,
        "threshold": _threshold,
    }
    for name, reader in readers.items():
        for owner in (F, torch, torch.Tensor):
            yield from ((getattr(owner, spelling), reader) for spelling in (name, f"{name}_") if hasattr(owner, spelling))
    yield gated_relu, _gated_relu


ACTIVATIONS: dict[Any, Callable[..., Seen]] = dict(_activations())


@contextmanager
def _preserved_buffers(model: nn.Module) -> Iterator[None]:
    """Put every buffer back as it was: a forward pass in train mode moves running statistics."""
    tables = [module._buffers for module in model.modules()]
    kept = [(table, name, buffer, buffer.clone()) for table in tables for name, buffer in table.items() if buffer is not None]
    try:
        yield
    finally:
        for table, name, buffer, value in kept:
            table[name] = buffer.copy_(value)


def _check_arguments(batches: Sequence[Tensor], groups: int, hash_bits: int | None) -> None:
    if hash_bits not in (None, 64, 128):
        raise ValueError(f"hash_bits: expected None, 64 or 128, got {hash_bits}")
    if groups < 1:
        raise ValueError(f"groups: expected at least 1, got {groups}")
    if not batches:
        raise ValueError("batches: none given")
    for index, batch in enumerate(batches):
        if batch.ndim == 0 or len(batch) == 0 or len(batch) % groups:
            raise ValueError(f"batches: batch {index} of shape {tuple(batch.shape)} cannot be split into {groups} equal groups")
