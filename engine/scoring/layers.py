"""How each known layer is watched: what it notes about its use and how it goes on without its parameters' history."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels.depthwise import frozen_depthwise
from engine.kernels.group_norm import frozen_group_norm
from engine.kernels.sample_gradient import ConvGeometry
from engine.scoring.capture import Capture, SamplesInteract, Use
from engine.spaces.norms import batch_statistics


def _tuple(value: int | tuple[int, ...] | list[int], length: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * length
    return tuple(value) * (length if len(value) == 1 else 1)


def _frozen(capture: Capture, *tensors: Tensor | None) -> list[Tensor | None]:
    """Tracked parameters without their history; a tensor that the model computed from parameters keeps its own."""
    return [t if t is None or capture.name_of(t) is None else t.detach() for t in tensors]


def _conv(dimensions: int, transposed: bool) -> Callable[..., Tensor]:
    """The rule of a convolution with this many spatial dimensions."""

    def rule(
        capture: Capture,
        func: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        *rest: Any,
        **options: Any,
    ) -> Tensor:
        names = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
        options = {**dict(zip(names, rest, strict=False)), **options}
        weight_name, bias_name = capture.name_of(weight), capture.name_of(bias)
        batched = input.dim() == dimensions + 2 and capture.has_samples(input)
        if (weight_name is None and bias_name is None) or not batched or isinstance(padding, str):
            return func(input, weight, bias, stride, padding, **options)
        dilation = _tuple(options.get("dilation", 1), dimensions)
        geometry = ConvGeometry(
            tuple(weight.shape), _tuple(stride, dimensions), _tuple(padding, dimensions), dilation, options.get("groups", 1)
        )
        frozen, offset = _frozen(capture, weight, bias)
        constant = frozen is not None and not frozen.requires_grad
        if not transposed and offset is None and constant and _slow_backward(input, geometry):
            y = frozen_depthwise(input, frozen, geometry.stride, geometry.padding, dilation)  # type: ignore[arg-type]
        else:
            y = func(input, frozen, offset, stride, padding, **options)
        uses = []
        if weight_name is not None:
            uses.append(Use(weight_name, "conv_transpose" if transposed else "conv", capture.activation(input), geometry))
        if bias_name is not None:
            uses.append(Use(bias_name, "channel_offset"))
        return capture.watch(y, uses)

    return rule


def _slow_backward(x: Tensor, geometry: ConvGeometry) -> bool:
    """Whether the library's input gradient takes its slow path and ours is exact (see :mod:`engine.kernels.depthwise`)."""
    reach = all(p <= d * (k - 1) for p, d, k in zip(geometry.padding, geometry.dilation, geometry.kernel, strict=True))
    dilated = geometry.depthwise and len(geometry.kernel) == 2 and max(geometry.dilation) > 1
    return x.device.type == "cpu" and dilated and reach


def _linear(capture: Capture, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    weight_name, bias_name = capture.name_of(weight), capture.name_of(bias)
    if (weight_name is None and bias_name is None) or not _samples_first(capture, input):
        return func(input, weight, bias)
    y = func(input, *_frozen(capture, weight, bias))
    uses = [] if weight_name is None else [Use(weight_name, "linear", capture.activation(input))]
    if bias_name is not None:
        uses.append(Use(bias_name, "trailing_offset", geometry=1))
    return capture.watch(y, uses)


def _samples_first(capture: Capture, x: Tensor, features: int = 1) -> bool:
    """Axis 0 holds the samples beyond doubt: with another axis as long (sequence-first models) nobody could tell."""
    others = x.shape[1 : x.dim() - features]
    return x.dim() > features and capture.has_samples(x) and (capture.batch == 1 or capture.batch not in others)


def _embedding(
    capture: Capture, func: Any, input: Tensor, weight: Tensor, padding_idx: int | None = None, *rest: Any, **options: Any
) -> Tensor:
    name = capture.name_of(weight)
    settings = [*rest, *options.values()]
    if (
        name is None
        or any(bool(s) for s in settings if not isinstance(s, float))
        or options.get("max_norm") is not None
        or rest[:1] not in ((), (None,))
    ):
        return func(input, weight, padding_idx, *rest, **options)
    if not _samples_first(capture, input, 0):
        return func(input, weight, padding_idx, *rest, **options)
    y = func(input, weight.detach(), padding_idx, *rest, **options)
    padding = None if padding_idx is None else padding_idx % weight.shape[0]
    return capture.watch(y, [Use(name, "embedding", capture.activation(input), (weight.shape[0], padding))])


def _affine(
    capture: Capture,
    normalise: Callable[[], Tensor],
    plain: Callable[[], Tensor],
    x: Tensor,
    weight: Any,
    bias: Any,
    trailing: int,
) -> Tensor:
    """A norm with scale and offset: normalise first, so that the scale's gradient has its factor (``trailing`` 0: axis 1)."""
    weight_name, bias_name = capture.name_of(weight), capture.name_of(bias)
    first = capture.has_samples(x) if trailing == 0 else _samples_first(capture, x, trailing)
    if (weight_name is None and bias_name is None) or not first:
        return plain()
    scaled = normalise()
    kind = "trailing" if trailing else "channel"
    uses = []
    shape = (-1,) + (1,) * (x.dim() - 2) if trailing == 0 else weight.shape if weight is not None else bias.shape
    y = scaled
    scale, offset = _frozen(capture, weight, bias)
    if scale is not None:
        y = y * scale.view(shape)
        if weight_name is not None:
            uses.append(Use(weight_name, f"{kind}_scale", capture.activation(scaled), trailing))
    if offset is not None:
        y = y + offset.view(shape)
        if bias_name is not None:
            uses.append(Use(bias_name, f"{kind}_offset", geometry=trailing))
    return capture.watch(y, uses)


def _group_norm(
    capture: Capture, func: Any, input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    if weight is None and bias is None:
        return frozen_group_norm(input, num_groups, eps)
    return _affine(
        capture,
        lambda: frozen_group_norm(input, num_groups, eps),
        lambda: func(input, num_groups, weight, bias, eps),
        input,
        weight,
        bias,
        0,
    )


def _layer_norm(
    capture: Capture, func: Any, input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    return _affine(
        capture,
        lambda: func(input, normalized_shape, None, None, eps),
        lambda: func(input, normalized_shape, weight, bias, eps),
        input,
        weight,
        bias,
        len(tuple(normalized_shape)),
    )


def _rms_norm(capture: Capture, func: Any, input: Tensor, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Tensor:
    return _affine(
        capture,
        lambda: func(input, normalized_shape, None, eps),
        lambda: func(input, normalized_shape, weight, eps),
        input,
        weight,
        None,
        len(tuple(normalized_shape)),
    )


def _batch_norm(
    capture: Capture,
    func: Any,
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training:
        raise SamplesInteract
    normal = (input, running_mean, running_var)
    return _affine(
        capture,
        lambda: func(*normal, None, None, False, momentum, eps),
        lambda: func(*normal, weight, bias, False, momentum, eps),
        input,
        weight,
        bias,
        0,
    )


def _raw_batch_norm(
    capture: Capture, func: Any, input: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *rest: Any
) -> Tensor:
    if training:
        raise SamplesInteract
    return func(input, weight, bias, mean, var, training, *rest)


def _batch_statistics(capture: Capture, func: Any, input: Tensor, groups: int) -> Tensor:
    raise SamplesInteract


RULES: dict[Any, Callable[..., Tensor]] = {
    torch.conv1d: _conv(1, False),
    torch.conv2d: _conv(2, False),
    torch.conv3d: _conv(3, False),
    torch.conv_transpose1d: _conv(1, True),
    torch.conv_transpose2d: _conv(2, True),
    torch.conv_transpose3d: _conv(3, True),
    F.linear: _linear,
    F.embedding: _embedding,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.batch_norm: _batch_norm,
    torch.batch_norm: _raw_batch_norm,
    batch_statistics: _batch_statistics,
}
