"""Region hashing: the signs of all activations of a sample, folded into 64 or 128 bits while the activations exist.

A network's activation pattern is a sequence of bit strings, one an activation. Folding one of them, of n bits with the name
``salt``, into lane j of a sample's state h is, in arithmetic mod 2^64,

    h  <-  mix(h + n g + sum_k mix(w_k ^ mix(s_j + (k + 1) g))),    s_j = mix((2 salt + j + 1) g)

where bit i of word w_k is the sign of neuron 64 k + i (neurons in the order of the contiguous tensor, whatever the memory format;
the last word is filled with zeros), g is the golden ratio 2^64 / 1.618... and mix the bijection

    mix(z): z ^= z >> 30; z *= 0xBF58476D1CE4E5B9; z ^= z >> 27; z *= 0x94D049BB133111EB; z ^= z >> 31

(splitmix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014, with Stafford's constants). Each word
meets a key of its own, so a word's place counts; the sum takes any order, so every split over programs gives the same bits; the
outer mix makes the order of activations count. Two patterns that differ in the bits of one word only never collide in that fold;
others do with odds near 2^-64 a pair and lane. The keys are public, so patterns made to collide are possible: this is for
counting, not for authentication.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

GOLDEN = 0x9E3779B97F4A7C15
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
WORD = 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Samples are packed a block at a time, so that the block's signs (a byte each) stay in a core's cache.
BLOCK_SIGNS = 256 * 1024
# Up to so many neurons a word is a sum of powers of two that float32 holds exactly; packing has a fixed price a row (measured:
# 0.13 against 0.48 ms for 25200 rows of 9, level at about 24).
NARROW = 24


def fold_signs(state: Tensor, x: Tensor, salt: int, gate: Tensor | None = None, *, threshold: float = 0.0) -> Tensor:
    """Fold the signs of one activation into the hash of every sample's pattern.

    Args:
        state: int64 (B,) for 64-bit or (B, 2) for 128-bit hashes; zeros before the first fold. Lane 0 of two is the 64-bit hash.
        x: activations (B, ...) of float32, bfloat16, float16 or float64, in any memory format; n = prod(...) neurons a sample.
        salt: names the activation, 0 <= salt < 2^62: another salt, another hash.
        gate: bool (G,), G dividing B: group g is samples g B/G to (g+1) B/G - 1. The state of a group whose flag is False stays
            as it is: its operation has weight zero, so its activation does not exist. None folds all.
        threshold: a neuron's bit is x > threshold, so NaN counts as False; rounded to float32 and to the dtype of x.

    Returns:
        The new state, of the shape of ``state`` (which is left alone). The same bits on every device and path. No gradients.

    Reads x once: B n elements. On a GPU one launch, two where few samples are split over several programs; the gate is read on
    the device (no synchronisation), and what it leaves out is not read. On a GPU without Triton the reference runs. On the CPU
    numpy packs the signs: B n / 64 words are mixed, the rest is one comparison and one packing.

    Raises:
        TypeError, ValueError: an argument of a wrong dtype, rank, shape or device, or a salt out of range.
    """
    _check(state, x, salt, gate)
    return _fold(state.contiguous(), x.detach(), salt, threshold, gate)


def count_distinct(state: Tensor, groups: int) -> Tensor:
    """Count the distinct hashes of each group of B / ``groups`` consecutive samples: int64 (groups,).

    ``state`` is int64 (B,) or (B, 2). Exact on the hashes; sorts, so O(B log B), on the device and without synchronisation.
    """
    _check_state(state)
    if groups < 1 or len(state) % groups:
        raise ValueError(
            f"groups: expected a positive divisor of the {len(state)} samples of state {tuple(state.shape)}, got {groups}"
        )
    if not len(state):
        return state.new_zeros(groups)
    lanes = state.reshape(groups, len(state) // groups, -1)
    if lanes.shape[2] == 2:  # two stable sorts order the pairs
        lanes = lanes.take_along_dim(lanes[:, :, 1].argsort(dim=1, stable=True)[:, :, None], 1)
        lanes = lanes.take_along_dim(lanes[:, :, 0].argsort(dim=1, stable=True)[:, :, None], 1)
    else:
        lanes = lanes.sort(dim=1).values
    return (lanes[:, 1:] != lanes[:, :-1]).any(2).sum(1) + 1


def fold_signs_reference(state: Tensor, x: Tensor, salt: int, gate: Tensor | None = None, threshold: float = 0.0) -> Tensor:
    """The module's formula in int64 tensors, on any device."""
    bits = (x > rounded(threshold, x.dtype)).flatten(1)
    neurons = bits.shape[1]
    words = F.pad(bits, (0, -neurons % WORD)).unflatten(1, (-1, WORD)).long()
    words = (words << torch.arange(WORD, device=x.device)).sum(2)
    place = torch.arange(1, words.shape[1] + 1, device=x.device)
    lanes = [
        _mix(lane + signed(neurons * GOLDEN) + _mix(words ^ _mix(signed(seed) + place * signed(GOLDEN))).sum(1))
        for lane, seed in zip(state.reshape(len(state), lane_count(state)).unbind(1), seeds(salt), strict=False)
    ]
    folded = torch.stack(lanes, 1).reshape(state.shape)
    return folded if gate is None else torch.where(_per_sample(gate, state), folded, state)


def seeds(salt: int) -> tuple[int, int]:
    """s_0 and s_1 of the module's formula, in 0 to 2^64 - 1."""
    return _mix_int((2 * salt + 1) * GOLDEN), _mix_int((2 * salt + 2) * GOLDEN)


def rounded(threshold: float, dtype: torch.dtype) -> float:
    """The threshold as every path compares with it: a kernel's scalar arguments are float32."""
    return torch.tensor(threshold, dtype=torch.float32).to(dtype).item()


def lane_count(state: Tensor) -> int:
    return 1 if state.ndim == 1 else 2


def _mix_int(z: int) -> int:
    for shift, factor in MIX:
        z %= 1 << WORD
        z = (z ^ (z >> shift)) * factor
    return z


def _mix(z: Tensor) -> Tensor:
    # int64 products wrap as unsigned ones do; its right shift copies the sign, so the copies are masked away.
    for shift, factor in MIX:
        z = (z ^ ((z >> shift) & ((1 << (WORD - shift)) - 1))) * signed(factor)
    return z


def signed(value: int) -> int:
    """The int64 with the bits of ``value`` mod 2^64."""
    value %= 1 << WORD
    return value - (1 << WORD) if value >> (WORD - 1) else value


def _per_sample(gate: Tensor, state: Tensor) -> Tensor:
    per_sample = gate[:, None].expand(-1, len(state) // len(gate)).reshape(-1)
    return per_sample if state.ndim == 1 else per_sample[:, None]


@torch.library.custom_op(
    "engine::fold_signs",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor state, Tensor x, int salt, float threshold, Tensor? gate) -> Tensor",
)
def _fold(state: Tensor, x: Tensor, salt: int, threshold: float, gate: Tensor | None) -> Tensor:
    """On the CPU: compare, pack eight signs a byte, mix the words, a block of samples at a time."""
    knee, lanes = rounded(threshold, x.dtype), lane_count(state)
    neurons = x[0].numel() if len(x) else 0
    place = np.arange(1, -(-neurons // WORD) + 1, dtype=np.uint64)
    keys = [_mix_words(np.uint64(seed) + place * np.uint64(GOLDEN)) for seed in seeds(salt)[:lanes]]
    digests = np.empty((len(x), lanes), dtype=np.uint64)
    step = max(1, BLOCK_SIGNS // max(1, neurons))
    for start in range(0, len(x), step):
        words = _packed_words(x[start : start + step] > knee)
        for lane, key in enumerate(keys):
            digests[start : start + step, lane] = _mix_words(words ^ key).sum(1, dtype=np.uint64)
    digests += np.uint64(neurons * GOLDEN % 2**WORD)
    digests += state.reshape(len(x), lanes).numpy().view(np.uint64)
    folded = torch.from_numpy(_mix_words(digests).view(np.int64)).reshape(state.shape)
    return folded if gate is None else torch.where(_per_sample(gate, state), folded, state)


@_fold.register_kernel("cuda")
def _(state: Tensor, x: Tensor, salt: int, threshold: float, gate: Tensor | None) -> Tensor:
    if find_spec("triton") is None:
        return fold_signs_reference(state, x, salt, gate, threshold)
    from engine.kernels.triton_regions import launch_fold_signs

    return launch_fold_signs(state, x, seeds(salt), rounded(threshold, x.dtype), gate)


@_fold.register_fake
def _(state: Tensor, x: Tensor, salt: int, threshold: float, gate: Tensor | None) -> Tensor:
    return torch.empty_like(state, memory_format=torch.contiguous_format)


@_fold.register_vmap
def _(
    info: Any, in_dims: Sequence[int | None], state: Tensor, x: Tensor, salt: int, threshold: float, gate: Tensor | None
) -> Any:
    """The mapped axis becomes an outer axis of the samples: one launch."""

    def outermost(tensor: Tensor, axis: int | None) -> Tensor:
        return tensor.expand(info.batch_size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)

    state, x = outermost(state, in_dims[0]), outermost(x, in_dims[1])
    gate = None if gate is None else outermost(gate, in_dims[4]).flatten(0, 1)
    return _fold(state.flatten(0, 1), x.flatten(0, 1), salt, threshold, gate).reshape(state.shape), 0


def _packed_words(bits: Tensor) -> np.ndarray:
    """(B, ...) bool -> (B, ceil(n / 64)) uint64, the first neuron in the lowest bit."""
    if 0 < bits[0].numel() <= NARROW:
        sums = bits.flatten(1).float() @ torch.arange(bits[0].numel()).exp2()
        return sums.long().unsqueeze(1).numpy().view(np.uint64)
    flat = bits.flatten(1).numpy()
    packed = np.packbits(flat, axis=1, bitorder="little")
    words = np.zeros((len(flat), -(-flat.shape[1] // WORD) * (WORD // 8)), dtype=np.uint8)
    words[:, : packed.shape[1]] = packed
    return words.view("<u8")


def _mix_words(z: np.ndarray) -> np.ndarray:
    for shift, factor in MIX:
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z


def _check(state: Tensor, x: Tensor, salt: int, gate: Tensor | None) -> None:
    _check_state(state)
    if x.dtype not in DTYPES:
        raise TypeError(f"x: expected {', '.join(str(d) for d in DTYPES)}, got {x.dtype} {tuple(x.shape)}")
    if x.ndim < 2 or len(x) != len(state):
        raise ValueError(f"x: expected (B, ...) with the B = {len(state)} samples of state, got shape {tuple(x.shape)}")
    if not isinstance(salt, int) or isinstance(salt, bool):
        raise TypeError(f"salt: expected an int, got {type(salt).__name__}")
    if not 0 <= salt < 2**62:
        raise ValueError(f"salt: expected 0 <= salt < 2^62, got {salt}")
    if gate is not None and gate.dtype != torch.bool:
        raise TypeError(f"gate: expected torch.bool, got {gate.dtype} {tuple(gate.shape)}")
    if gate is not None and (gate.ndim != 1 or not len(gate) or len(state) % len(gate)):
        raise ValueError(
            f"gate: expected shape (G,) with G >= 1 dividing the {len(state)} samples, got shape {tuple(gate.shape)}"
        )
    for name, tensor in (("x", x), ("gate", gate)):
        if tensor is not None and tensor.device != state.device:
            raise ValueError(f"{name}: expected on {state.device} as state is, got {tuple(tensor.shape)} on {tensor.device}")


def _check_state(state: Tensor) -> None:
    if state.dtype != torch.int64:
        raise TypeError(f"state: expected torch.int64, got {state.dtype} {tuple(state.shape)}")
    if state.ndim not in (1, 2) or (state.ndim == 2 and state.shape[1] != 2):
        raise ValueError(f"state: expected shape (B,) or (B, 2), got {tuple(state.shape)}")
