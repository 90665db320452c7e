"""Per-sample Jacobian and Gram: the inner products of per-sample gradients, which are never written out.

A layer that multiplies its input by a weight at Q positions has, for sample r, the gradient

    G_r = sum_q left_rq right_rq^T            (outputs x inputs; left: gradient of the layer's output, right: its input)

and adds sum over (o, i) of G_r[o, i] G_s[o, i] to element (r, s) of a tangent kernel. Depthwise convolutions have G_r[c, t] =
sum_q left_rqc right_rqct, with the T input positions that output position q reads in channel c. On a GPU the fused kernel forms
a tile of the gradients of all samples, multiplies it with itself and drops it: nothing but (R, R) sums leaves the chip. Gradients
are float32, products and sums float64, since a float32 Gram matrix loses the smallest eigenvalues (see
:mod:`engine.kernels.gram`).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from engine.kernels.cuda_source import cupy_available
from engine.kernels.gram import add_contracted_gram, add_gram, contracts
from engine.kernels.sample_gradient import ConvGeometry, linear_sample_gradient

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Where no fused kernel runs, gradients are formed for as many outputs at a time as fit in this many elements.
BLOCK_ELEMENTS = 16 * 1024 * 1024
# Programs that fill a large GPU several times over; a fixed number, since the order of the sums depends on it.
TARGET_PROGRAMS = 1024


def add_jacobian_gram(total: Tensor, left: Tensor, right: Tensor, *, float32_precision: Literal["ieee", "tf32"] = "ieee") -> None:
    """Add the Gram matrix of the gradients G_r to ``total``, in place.

    Args:
        total: (G, R, R) float64, the running sum of G groups (candidates) that are not compared with each other.
        left: gradients of the outputs, (G, R, Q, O); a linear head without positions has Q = 1.
        right: inputs, (G, R', Q, I), R' dividing R: row r' serves the R/R' consecutive rows of left (the K outputs of one
            sample). Depthwise: left (G, R, Q, C) with right (G, R', Q, C, T), or left (G, R, H, W, C) with right (G, R', H, W,
            C, kh, kw), which :func:`depthwise_windows` makes without a copy.
        float32_precision: ``"tf32"`` allows a GPU's tensor cores to round the factors to 10 bits, and ``"ieee"`` forbids it,
            whatever torch's own setting. In a small network TF32 moved condition numbers by 1e-3 to 6e-3 (reference note
            metantk-nas, 9b). Depthwise gradients are never rounded.

    left and right are both float32, bfloat16 or float16 (widened when read), or float64 (formed in float64), of any strides.

    Costs G R Q P multiply-adds for P parameters a gradient, and G R^2 P float64 ones; contracts the factors where that is
    cheaper (few positions, see :func:`engine.kernels.gram.add_contracted_gram`). On the CPU gradients are formed for a block of
    outputs at a time. On a GPU the dense ones stay on the chip; above 64 rows each is formed ceil(R/32) - 1 times. It has G
    ceil(O/16) ceil(I/32) tiles to share among its multiprocessors, so candidates should come in batches. A depthwise gradient,
    T/(H W) of its layer's input, does pass through memory. Repeated runs give the same bits.

    Raises:
        TypeError, ValueError: an argument of a wrong dtype, rank, shape or device; or one that requires a gradient where
            gradients are recorded: scores are not differentiated, so no derivative of any order is defined.
    """
    _check(total, left, right, float32_precision)
    if left.dim() == right.dim():
        total += _dense(left, right, float32_precision)
    elif left.dim() == 4:
        total += _depthwise(left.unsqueeze(2), right.unsqueeze(2).unsqueeze(-2))
    else:
        total += _depthwise(left, right)


def jacobian_gram_reference(left: Tensor, right: Tensor) -> Tensor:
    """The Gram matrices (G, R, R) that :func:`add_jacobian_gram` adds, in float64 from the formula."""
    right = right.repeat_interleave(left.shape[1] // right.shape[1], 1).double()
    if left.dim() == right.dim():
        gradients = torch.einsum("grqo,grqi->groi", left.double(), right)
    else:
        positions = (2, left.dim() - 2)
        gradients = torch.einsum("grqc,grqct->grct", left.double().flatten(*positions), right.flatten(*positions).flatten(4))
    return torch.einsum("grp,gsp->grs", gradients.flatten(2), gradients.flatten(2))


def depthwise_windows(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """What a depthwise 2-D convolution reads: (N, C, H, W) -> (N, H', W', C, kh, kw), a view of ``x``, or of a padded copy."""
    (kh, kw), (ph, pw) = geometry.kernel, geometry.padding
    (sh, sw), (dh, dw) = geometry.stride, geometry.dilation
    padded = torch.nn.functional.pad(x, (pw, pw, ph, ph)) if ph or pw else x
    samples, channels, high, wide = padded.shape
    n, c, h, w = padded.stride()
    size = (samples, (high - dh * (kh - 1) - 1) // sh + 1, (wide - dw * (kw - 1) - 1) // sw + 1, channels, kh, kw)
    return padded.as_strided(size, (n, h * sh, w * sw, c, h * dh, w * dw))


def pair_count(samples: int, rows: int) -> int:
    """Pairs of half blocks in which every two samples meet, for kernels that hold ``rows`` samples a program."""
    blocks = max(2, -(-samples // (rows // 2)))
    return blocks * (blocks - 1) // 2


def cut_tiles(tiles: int, programs: int) -> tuple[int, int]:
    """(splits, tiles a split) of the parameter tiles, so that ``programs`` times as many programs fill a GPU."""
    per_split = -(-tiles // min(tiles, -(-TARGET_PROGRAMS // programs)))
    return -(-tiles // per_split), per_split


@torch.library.custom_op("engine::jacobian_gram", mutates_args=(), device_types="cpu")
def _dense(left: Tensor, right: Tensor, float32_precision: str) -> Tensor:
    return _dense_plain(left, right)


def _dense_plain(left: Tensor, right: Tensor) -> Tensor:
    """(G, R, Q, O), (G, R', Q, I) -> (G, R, R): contracted, or formed for a block of outputs at a time."""
    groups, rows, positions, outputs = left.shape
    total = left.new_zeros(groups, rows, rows, dtype=torch.float64)
    if not left.numel() or not right.numel():
        return total
    repeat, inputs = rows // right.shape[1], right.shape[3]
    if contracts(rows, positions, outputs, inputs):
        add_contracted_gram(total, left, right.repeat_interleave(repeat, 1) if repeat > 1 else right)
        return total
    left, right = _widened(left), _widened(right)
    step = max(1, BLOCK_ELEMENTS // (groups * rows * inputs))
    x, cotangents = right.flatten(0, 1), left.reshape(-1, repeat, positions, outputs)
    for start in range(0, outputs, step):
        gradients = linear_sample_gradient(x, cotangents[..., start : start + step])
        add_gram(total, gradients.view(groups, rows, -1))
    return total


@_dense.register_kernel("cuda")
def _(left: Tensor, right: Tensor, float32_precision: str) -> Tensor:
    _, rows, positions, outputs = left.shape
    if not left.numel() or not right.numel() or contracts(rows, positions, outputs, right.shape[3]):
        return _dense_plain(left, right)
    if left.dtype != torch.float64 and find_spec("triton") is not None:
        from engine.kernels.triton_jacobian_gram import launch_jacobian_gram

        return launch_jacobian_gram(left, right, float32_precision)
    if left.dtype == torch.float32 and cupy_available():
        from engine.kernels import cuda_jacobian_gram as cuda

        chosen = cuda.chosen_launcher(left, right)
        if chosen is not None:
            return (cuda.launch_jacobian_gram_hopper if chosen == "hopper" else cuda.launch_jacobian_gram_cuda)(left, right)
    # Torch's float32 products may be TF32, by a setting that is not ours to change; its float64 ones never are.
    return _dense_plain(left.double(), right.double())


@_dense.register_fake
def _(left: Tensor, right: Tensor, float32_precision: str) -> Tensor:
    return left.new_empty(left.shape[0], left.shape[1], left.shape[1], dtype=torch.float64)


@_dense.register_vmap
def _(info: Any, in_dims: Sequence[int | None], left: Tensor, right: Tensor, float32_precision: str) -> Any:
    left, right = (_outermost(info, *pair) for pair in ((left, in_dims[0]), (right, in_dims[1])))
    return _dense(left.flatten(0, 1), right.flatten(0, 1), float32_precision).unflatten(0, left.shape[:2]), 0


@torch.library.custom_op("engine::depthwise_jacobian_gram", mutates_args=(), device_types="cpu")
def _depthwise(left: Tensor, right: Tensor) -> Tensor:
    return _depthwise_plain(left, right)


def _depthwise_plain(left: Tensor, right: Tensor) -> Tensor:
    """(G, R, H, W, C), (G, R', H, W, C, kh, kw) -> (G, R, R): one shifted product and sum a tap."""
    groups, rows = left.shape[:2]
    left, right = _widened(left), _widened(right)
    cotangents = left.unflatten(1, (right.shape[1], -1)) if rows else left.unsqueeze(2)
    windows = right.unsqueeze(2)
    taps = [
        (cotangents * windows[..., i, j]).sum((3, 4)).flatten(1, 2) for i in range(right.shape[5]) for j in range(right.shape[6])
    ]
    total = left.new_zeros(groups, rows, rows, dtype=torch.float64)
    if taps:
        add_gram(total, torch.stack(taps, 3).flatten(2))
    return total


@_depthwise.register_kernel("cuda")
def _(left: Tensor, right: Tensor) -> Tensor:
    if left.dtype == torch.float64 or not left.numel() or not right.numel() or find_spec("triton") is None:
        return _depthwise_plain(left, right)
    from engine.kernels.triton_jacobian_gram import launch_depthwise_rows

    total = left.new_zeros(left.shape[0], left.shape[1], left.shape[1], dtype=torch.float64)
    add_gram(total, launch_depthwise_rows(left, right).flatten(2))
    return total


@_depthwise.register_fake
def _(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], left.shape[1], left.shape[1], dtype=torch.float64)


@_depthwise.register_vmap
def _(info: Any, in_dims: Sequence[int | None], left: Tensor, right: Tensor) -> Any:
    left, right = (_outermost(info, *pair) for pair in ((left, in_dims[0]), (right, in_dims[1])))
    return _depthwise(left.flatten(0, 1), right.flatten(0, 1)).unflatten(0, left.shape[:2]), 0


def _outermost(info: Any, tensor: Tensor, axis: int | None) -> Tensor:
    """A mapped axis becomes more groups: one launch."""
    return tensor.expand(info.batch_size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)


def _widened(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check(total: Tensor, left: Tensor, right: Tensor, float32_precision: str) -> None:
    if float32_precision not in ("ieee", "tf32"):
        raise ValueError(f"float32_precision: expected 'ieee' or 'tf32', got {float32_precision!r}")
    for name, tensor in (("left", left), ("right", right)):
        if tensor.dtype not in DTYPES or tensor.dtype != left.dtype:
            wanted = ", ".join(str(d) for d in DTYPES) if name == "left" else f"{left.dtype} as left is"
            raise TypeError(f"{name}: expected {wanted}, got {tensor.dtype} {tuple(tensor.shape)}")
        if tensor.layout != torch.strided:
            raise ValueError(f"{name}: expected a strided tensor, got {tensor.layout} {tuple(tensor.shape)}")
        if tensor.device != total.device:
            raise ValueError(f"{name}: expected on {total.device} as total is, got {tuple(tensor.shape)} on {tensor.device}")
        if (torch.is_grad_enabled() and tensor.requires_grad) or forward_ad.unpack_dual(tensor).tangent is not None:
            raise ValueError(
                f"{name}: has no derivative here, but {tuple(tensor.shape)} asks for one; expected a detached tensor"
            )
    _check_shapes(left, right)
    if total.dtype != torch.float64:
        raise TypeError(f"total: expected torch.float64, got {total.dtype} {tuple(total.shape)}")
    expected = (left.shape[0], left.shape[1], left.shape[1])
    if tuple(total.shape) != expected:
        raise ValueError(f"total: expected {expected} for left {tuple(left.shape)}, got {tuple(total.shape)}")


def _check_shapes(left: Tensor, right: Tensor) -> None:
    shapes = f"left {tuple(left.shape)} and right {tuple(right.shape)}"
    if (left.dim(), right.dim()) not in ((4, 4), (4, 5), (5, 7)):
        raise ValueError(f"right: expected 4 axes (dense) or 5 (depthwise) with 4 of left, or 7 with 5 of left, got {shapes}")
    axes = left.dim() - (left.dim() == right.dim())
    if left.shape[0] != right.shape[0] or left.shape[2:axes] != right.shape[2:axes]:
        raise ValueError(f"right: expected left's groups, positions and (depthwise) channels, got {shapes}")
    rows, shared = left.shape[1], right.shape[1]
    if rows != shared and (not shared or rows % shared):
        raise ValueError(f"right: expected rows (axis 1) that divide left's, got {shapes}")
