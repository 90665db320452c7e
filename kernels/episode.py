"""Episode images: gather from a uint8 bank, mirror, pad, crop and normalise in one pass over the output.

    out[n, c, y, x] = (P[n, c, tops[n] + y, lefts[n] + x] / 255 - mean[c]) / std[c]

in float32, every operation rounded, where P[n] is image index[n], mirrored left to right where flips[n], with ``padding`` zeros
on each side (zeros in raw pixels, so that a padded pixel becomes -mean / std, as a black one does).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# A block of samples is normalised while its float32 pixels lie in a core's cache.
BLOCK_PIXELS = 128 * 1024


def gather_episode(
    images: Tensor,
    index: Tensor,
    tops: Tensor,
    lefts: Tensor,
    flips: Tensor,
    mean: Sequence[float] | Tensor,
    std: Sequence[float] | Tensor,
    padding: int,
    size: int,
) -> Tensor:
    """Build the images of an episode.

    Args:
        images: the bank, uint8 (M, C, H, W), contiguous.
        index: int64 (N,), 0 <= index < M.
        tops, lefts: int64 (N,), the windows' corners in the padded image: 0 <= tops <= H + 2 padding - size, lefts alike with W.
        flips: bool (N,).
        mean, std: C floats; on a GPU, float32 tensors (C,) that are already there save a copy from the host a call.
        padding: at least 0; size: height and width of a window, 1 to min(H, W) + 2 padding.

    Returns:
        float32 (N, C, size, size), contiguous: on every path the bits of flipping, padding, cropping and normalising one after
        the other. Costs N C size^2 bytes read and four times as many written, two divisions a pixel. No gradients.

    An index or corner out of range is a ValueError on the CPU. On a GPU the host does not look at them (that would synchronise):
    there such a window is all NaN. On a GPU without Triton the reference runs, with torch's device-side assertions.

    Raises:
        TypeError, ValueError: an argument of a wrong dtype, rank, shape, layout, device or range.
    """
    _check(images, index, tops, lefts, flips, padding, size)
    mean, std = (_statistic(name, value, images) for name, value in (("mean", mean), ("std", std)))
    return _gather(images, index, tops, lefts, flips, mean, std, padding, size)


def gather_episode_reference(
    images: Tensor, index: Tensor, tops: Tensor, lefts: Tensor, flips: Tensor, mean: Tensor, std: Tensor, padding: int, size: int
) -> Tensor:
    """The module's formula, operation by operation."""
    chosen = images[index]
    chosen = torch.where(flips[:, None, None, None], chosen.flip(-1), chosen)
    span = torch.arange(size, device=images.device)
    sample = torch.arange(len(index), device=images.device)[:, None, None]
    rows, columns = (tops[:, None] + span)[:, :, None], (lefts[:, None] + span)[:, None, :]
    windows = F.pad(chosen, (padding,) * 4)[sample, :, rows, columns].permute(0, 3, 1, 2)
    return ((windows.float() / 255 - mean[:, None, None]) / std[:, None, None]).contiguous()


@torch.library.custom_op(
    "engine::gather_episode",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor images, Tensor index, Tensor tops, Tensor lefts, Tensor flips, Tensor mean, Tensor std, SymInt padding,"
    " SymInt size) -> Tensor",
)
def _gather(
    images: Tensor, index: Tensor, tops: Tensor, lefts: Tensor, flips: Tensor, mean: Tensor, std: Tensor, padding: int, size: int
) -> Tensor:
    """On the CPU: cut each window out of the bank, then normalise a block of them in place."""
    height, width = images.shape[2:]
    _check_range("index", index, len(images))
    _check_range("tops", tops, height + 2 * padding - size + 1)
    _check_range("lefts", lefts, width + 2 * padding - size + 1)
    bank, count, channels = images.numpy(), len(index), images.shape[1]
    out = torch.empty(count, channels, size, size)
    step = max(1, BLOCK_PIXELS // max(1, channels * size * size))
    windows = np.zeros((min(step, count), channels, size, size), dtype=np.uint8)
    corners = list(zip(index.tolist(), (tops - padding).tolist(), (lefts - padding).tolist(), flips.tolist(), strict=True))
    for start in range(0, count, step):
        block = corners[start : start + step]
        if padding:
            windows[:] = 0
        for window, (chosen, top, left, flip) in zip(windows, block, strict=False):
            image = bank[chosen, :, :, ::-1] if flip else bank[chosen]
            (y, bottom), (x, right) = _overlap(top, size, height), _overlap(left, size, width)
            window[:, y:bottom, x:right] = image[:, top + y : top + bottom, left + x : left + right]
        pixels = out[start : start + step].copy_(torch.from_numpy(windows[: len(block)]))
        pixels.div_(255).sub_(mean[:, None, None]).div_(std[:, None, None])
    return out


@_gather.register_kernel("cuda")
def _(
    images: Tensor, index: Tensor, tops: Tensor, lefts: Tensor, flips: Tensor, mean: Tensor, std: Tensor, padding: int, size: int
) -> Tensor:
    if find_spec("triton") is None:
        return gather_episode_reference(images, index, tops, lefts, flips, mean, std, padding, size)
    from engine.kernels.triton_episode import launch_gather_episode

    return launch_gather_episode(images, index, tops, lefts, flips, mean, std, padding, size)


@_gather.register_fake
def _(
    images: Tensor, index: Tensor, tops: Tensor, lefts: Tensor, flips: Tensor, mean: Tensor, std: Tensor, padding: int, size: int
) -> Tensor:
    return mean.new_empty(index.shape[0], images.shape[1], size, size)


def _overlap(start: int, size: int, length: int) -> tuple[int, int]:
    """The part of a window from ``start`` that lies within 0 to ``length``, counted from the window's start."""
    first = min(size, max(0, -start))
    return first, max(first, min(size, length - start))


def _statistic(name: str, value: Sequence[float] | Tensor, images: Tensor) -> Tensor:
    channels = images.shape[1]
    tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float32, device=images.device)
    if tensor.dtype != torch.float32:
        raise TypeError(f"{name}: expected floats or a float32 tensor, got {tensor.dtype} {tuple(tensor.shape)}")
    if tuple(tensor.shape) != (channels,) or tensor.device != images.device:
        raise ValueError(
            f"{name}: expected ({channels},) on {images.device} as images are, got {tuple(tensor.shape)} on {tensor.device}"
        )
    return tensor


def _check(images: Tensor, index: Tensor, tops: Tensor, lefts: Tensor, flips: Tensor, padding: int, size: int) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(f"images: expected torch.uint8, got {images.dtype} {tuple(images.shape)}")
    if images.ndim != 4 or not images.is_contiguous():
        layout = f"shape {tuple(images.shape)}, strides {images.stride()}"
        raise ValueError(f"images: expected a contiguous (M, C, H, W), got {layout}")
    for name, tensor, dtype in (
        ("index", index, torch.int64),
        ("tops", tops, torch.int64),
        ("lefts", lefts, torch.int64),
        ("flips", flips, torch.bool),
    ):
        if tensor.dtype != dtype:
            raise TypeError(f"{name}: expected {dtype}, got {tensor.dtype} {tuple(tensor.shape)}")
        if tensor.ndim != 1 or len(tensor) != len(index):
            raise ValueError(f"{name}: expected shape (N,) as index has, got {tuple(tensor.shape)}, index {tuple(index.shape)}")
        if tensor.device != images.device:
            raise ValueError(f"{name}: expected on {images.device} as images are, got {tuple(tensor.shape)} on {tensor.device}")
    if padding < 0:
        raise ValueError(f"padding: expected at least 0, got {padding}")
    largest = min(images.shape[2:]) + 2 * padding
    if not 1 <= size <= largest:
        raise ValueError(f"size: expected 1 to {largest} for images {tuple(images.shape)} padded by {padding}, got {size}")


def _check_range(name: str, values: Tensor, end: int) -> None:
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < end:
        raise ValueError(f"{name}: expected 0 to {end - 1}, got {int(values.min())} to {int(values.max())}")
