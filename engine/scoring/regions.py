"""Linear regions: how many distinct activation patterns an untrained network shows on a set of samples.

Source: TE-NAS, as MetaNTK-NAS uses it (reference note, section 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from engine.runs.streams import stream
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
    hash_bits: Literal[64] | None = None,
) -> Score: ...


@overload
def linear_regions(
    model: nn.Module,
    batches: Tensor | Sequence[Tensor],
    *,
    groups: int,
    forward: Forward | None = None,
    hash_bits: Literal[64] | None = None,
) -> Score | list[Score]: ...


def linear_regions(
    model: nn.Module,
    batches: Tensor | Sequence[Tensor],
    *,
    groups: int = 1,
    forward: Forward | None = None,
    hash_bits: Literal[64] | None = None,
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

    The default is exact, on packed bits: B * neurons / 8 bytes a batch. ``hash_bits=64`` keeps 8 bytes a sample: the sum
    mod 2^64 of a fixed random key per active neuron, which takes two of n patterns for one with odds below n^2 / 2^65.
    Comparing, packing and counting are linear in B * neurons and small beside the forward pass.

    Status ``nonfinite`` (value NaN) where a group's activations hold NaN or infinity. No activation at all, batches that
    ``groups`` does not divide, or neurons that differ between batches are a ``ValueError``. No gradients, no hooks; buffers
    (running statistics) are put back, exceptions included, and no flag is touched.
    """
    batches = [batches] if isinstance(batches, Tensor) else list(batches)
    _check_arguments(batches, groups, hash_bits)
    patterns: list[set[bytes]] = [set() for _ in range(groups)]
    finite = np.ones(groups, dtype=bool)
    neurons: int | None = None
    with torch.no_grad(), _preserved_buffers(model):
        for index, batch in enumerate(batches):
            recorder = _Recorder(len(batch), groups, _PackedPatterns() if hash_bits is None else _HashedPatterns(len(batch)))
            samples = batch.clone()  # a network that rectifies its input in place must not change the caller's
            with recorder:
                model(samples) if forward is None else forward(model, samples)
            if recorder.neurons == 0:
                raise ValueError("model: no ReLU-like activation was seen in its forward pass, so it has no patterns to count")
            if neurons not in (None, recorder.neurons):
                raise ValueError(f"batches: batch {index} has {recorder.neurons} neurons a sample, those before it {neurons}")
            neurons = recorder.neurons
            finite &= recorder.finite
            for seen, rows in zip(patterns, np.split(recorder.patterns.rows(), groups), strict=True):
                seen.update(_row_bytes(rows))
    scores = [
        Score(float(len(seen)), "ok", "linear_regions") if usable else Score(math.nan, "nonfinite", "linear_regions")
        for seen, usable in zip(patterns, finite.tolist(), strict=True)
    ]
    return scores[0] if groups == 1 else scores


class _Patterns(Protocol):
    """What collects the bits of one batch."""

    def add(self, bits: Tensor, alive: np.ndarray | None) -> None:
        """Append ``bits`` (B, n); samples that are not ``alive`` (B,) get the same constant."""

    def rows(self) -> np.ndarray:
        """Return one row of fixed length a sample, (B, length), equal where the patterns are."""


class _PackedPatterns:
    """Exact patterns, eight neurons a byte."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []

    def add(self, bits: Tensor, alive: np.ndarray | None) -> None:
        packed = np.packbits(bits.cpu().numpy(), axis=1)
        if alive is not None:
            packed[~alive] = 0
        self.parts.append(packed)

    def rows(self) -> np.ndarray:
        return np.concatenate(self.parts, axis=1)


class _HashedPatterns:
    """Sums mod 2^64 of one random key per active neuron: the sums of two patterns agree with odds 2^-64."""

    def __init__(self, samples: int) -> None:
        self.sums = np.zeros(samples, dtype=np.uint64)
        self.calls = 0

    def add(self, bits: Tensor, alive: np.ndarray | None) -> None:
        # Keys in four pieces of 16 bits: their float64 sums are integers below 2^53, so exact in any order.
        keys = torch.randint(2**16, (bits.shape[1], 4), generator=stream(0, "linear-regions", self.calls))
        pieces = (bits.double() @ keys.to(bits.device, torch.float64)).cpu().numpy().astype(np.uint64)
        sums = (pieces << np.array([0, 16, 32, 48], dtype=np.uint64)).sum(1, dtype=np.uint64)
        self.sums += sums if alive is None else np.where(alive, sums, np.uint64(0))
        self.calls += 1

    def rows(self) -> np.ndarray:
        return self.sums[:, None]


class _Recorder(TorchFunctionMode):
    """Sees every torch call of a forward pass and records the inputs of ReLU-like ones, before the call may overwrite them."""

    def __init__(self, samples: int, groups: int, patterns: _Patterns) -> None:
        super().__init__()
        self.samples, self.groups, self.patterns = samples, groups, patterns
        self.neurons = 0
        self.finite = np.ones(groups, dtype=bool)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        activation = ACTIVATIONS.get(func)
        if activation is not None:
            x, knees, alive, _ = activation(*args, **kwargs)
            if knees and x.is_floating_point() and x.numel():
                self._record(x, knees, alive)
        return func(*args, **kwargs)

    def _record(self, x: Tensor, knees: tuple[float, ...], alive: Tensor | None) -> None:
        if x.ndim == 0 or x.shape[0] % self.samples:
            raise ValueError(f"model: an activation of shape {tuple(x.shape)} does not begin with its {self.samples} samples")
        rows = x.reshape(self.samples, -1)
        grouped = rows.reshape(self.groups, -1)
        finite = (grouped.amin(1).isfinite() & grouped.amax(1).isfinite()).cpu().numpy()
        gate = self._gate(alive)
        self.finite &= finite if gate is None else finite | ~gate
        per_sample = None if gate is None else np.repeat(gate, self.samples // self.groups)
        for knee in knees:
            self.patterns.add(rows > knee, per_sample)
        self.neurons += rows.shape[1]

    def _gate(self, alive: Tensor | None) -> np.ndarray | None:
        if alive is None:
            return None
        if tuple(alive.shape) != (self.groups,):
            raise ValueError(f"alive: shape {tuple(alive.shape)} is not one flag for each of the {self.groups} groups")
        return alive.bool().cpu().numpy()


class Seen(NamedTuple):
    """One call of an activation: its input, where it bends, for which groups it exists, and how many operations share it."""

    x: Tensor
    knees: tuple[float, ...]
    alive: Tensor | None = None
    readers: int = 1


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


def _gated_relu(x: Tensor, alive: Tensor | None = None, readers: int = 1) -> Seen:
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


def _row_bytes(rows: np.ndarray) -> Iterator[bytes]:
    data, width = rows.tobytes(), rows.shape[1] * rows.itemsize
    return (data[start : start + width] for start in range(0, len(data), width))


def _check_arguments(batches: Sequence[Tensor], groups: int, hash_bits: int | None) -> None:
    if hash_bits not in (None, 64):
        raise ValueError(f"hash_bits: expected None (exact) or 64, got {hash_bits}")
    if groups < 1:
        raise ValueError(f"groups: expected at least 1, got {groups}")
    if not batches:
        raise ValueError("batches: none given")
    for index, batch in enumerate(batches):
        if batch.ndim == 0 or len(batch) == 0 or len(batch) % groups:
            raise ValueError(f"batches: batch {index} of shape {tuple(batch.shape)} cannot be split into {groups} equal groups")
