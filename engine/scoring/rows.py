"""What one sample's gradient of a layer's parameters is, given the layer's input and the gradient of its output."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.kernels.gram import add_contracted_gram, add_gram, contracts
from engine.kernels.jacobian_gram import add_jacobian_gram, depthwise_windows
from engine.kernels.sample_gradient import ConvGeometry, choose, conv_sample_gradient, linear_sample_gradient, unfold
from engine.scoring.capture import Use


def add_use(total: Tensor, use: Use, gradients: list[Tensor], *, fused: bool) -> None:
    """Add the Gram matrix of one use's per-sample gradients to ``total`` (G, R, R), R = samples of a group times K.

    ``gradients`` are K gradients of the use's output, each (N, *output). ``fused`` takes
    :func:`engine.kernels.jacobian_gram.add_jacobian_gram` for linear layers and 2-D convolutions, dense and depthwise, which on a
    GPU writes no gradients; otherwise they are formed as suits a CPU, or contracted where that is cheaper.
    """
    factors = _operator_factors(use, gradients) if fused else None
    if factors is not None:
        add_jacobian_gram(total, *(factor.unflatten(0, (len(total), -1)).flatten(1, 2) for factor in factors))
    elif _contracts(use, gradients[0].shape, len(gradients), total.shape[0]):
        left, right = (f.reshape(*total.shape[:2], *f.shape[-2:]) for f in _factors(use, gradients))
        add_contracted_gram(total, left, right)
    else:
        add_gram(total, sample_rows(use, gradients, dense=False).reshape(*total.shape[:2], -1))


def _operator_factors(use: Use, gradients: list[Tensor]) -> tuple[Tensor, Tensor] | None:
    """What the operator multiplies, (N, K, *positions, ...) and (N, 1, *positions, ...); None where it does not cover the use."""
    if use.kind == "linear":
        left, right = _linear_factors(use, gradients)
        return left, right.unsqueeze(1)
    if use.kind != "conv" or len(use.geometry.kernel) != 2:
        return None
    assert use.activation is not None
    cotangents = torch.stack(gradients, 1)
    if use.geometry.groups == 1:
        return cotangents.flatten(3).mT, unfold(use.activation.read(), use.geometry).unsqueeze(1)
    if use.geometry.depthwise:
        return cotangents.movedim(2, -1), depthwise_windows(use.activation.read(), use.geometry).unsqueeze(1)
    return None


def _contracts(use: Use, shape: torch.Size, count: int, groups: int) -> bool:
    """Whether contracting the factors of the gradients is cheaper than forming the gradients."""
    if use.kind == "linear":
        assert use.activation is not None
        outputs, inputs, positions = shape[-1], use.activation.read().shape[-1], math.prod(shape[1:-1])
    elif use.kind == "conv" and use.geometry.groups == 1 and len(use.geometry.kernel) == 2:
        outputs, inputs, positions = shape[1], math.prod(use.geometry.weight_shape[1:]), math.prod(shape[2:])
    else:
        return False
    return contracts(shape[0] // groups * count, positions, outputs, inputs)


def _factors(use: Use, gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Factors (N, K, Q, O) and (N, K, Q, I) whose outer products, summed over Q positions, are the gradients."""
    if use.kind == "linear":
        left, right = _linear_factors(use, gradients)
    else:
        assert use.activation is not None
        left, right = torch.stack(gradients, 1).flatten(3).mT, unfold(use.activation.read(), use.geometry)
    return left, right.unsqueeze(1).expand(-1, len(gradients), -1, -1)


def _linear_factors(use: Use, gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(N, K, Q, O) and (N, Q, I); a layer without positions has one."""
    assert use.activation is not None
    x, cotangents = use.activation.read(), torch.stack(gradients, 1)
    left = cotangents.flatten(2, -2) if cotangents.dim() > 3 else cotangents.unsqueeze(2)
    return left, x.reshape(len(x), -1, x.shape[-1])


def sample_rows(use: Use, gradients: list[Tensor], *, dense: bool) -> Tensor:
    """Per-sample gradients of one use, (N, K, P), from K gradients of its output, each (N, *output).

    ``dense`` asks for the parameter's own layout, so that several uses can be added; otherwise an embedding returns only the rows
    that were looked up, and convolutions may order their weights as suits them.
    """
    if use.kind == "conv":
        return _convolution_rows(use, gradients, dense)
    cotangents = gradients[0].unsqueeze(1) if len(gradients) == 1 else torch.stack(gradients, 1)
    samples, count = cotangents.shape[:2]
    if use.kind == "channel_offset":
        return cotangents.flatten(3).sum(3) if cotangents.dim() > 3 else cotangents
    if use.kind == "trailing_offset":
        return _trailing(cotangents, use.geometry)
    assert use.activation is not None
    x = use.activation.read()
    if use.kind == "conv_transpose":
        return _transposed_rows(x, cotangents, use.geometry)
    if use.kind == "linear":
        positions = math.prod(x.shape[1:-1])
        return linear_sample_gradient(
            x.reshape(samples, positions, x.shape[-1]), cotangents.reshape(samples, count, positions, cotangents.shape[-1])
        )
    if use.kind == "embedding":
        return _embedding_rows(x, cotangents, use.geometry, dense)
    product = cotangents * x.unsqueeze(1)
    if use.kind == "channel_scale":
        return product.flatten(3).sum(3) if product.dim() > 3 else product
    return _trailing(product, use.geometry)


def _trailing(values: Tensor, trailing: int) -> Tensor:
    """(N, K, ..., *last) -> (N, K, P), summed over what lies before the ``trailing`` last axes."""
    size = math.prod(values.shape[-trailing:])
    return values.reshape(*values.shape[:2], math.prod(values.shape[2:-trailing]), size).sum(2)


def _convolution_rows(use: Use, gradients: list[Tensor], dense: bool) -> Tensor:
    assert use.activation is not None
    samples, *shape = gradients[0].shape
    formulation = choose(torch.Size((samples, len(gradients), *shape)), use.geometry, gradients[0].dtype)
    x = use.activation.read(planar=formulation in ("correlate", "grouped"))
    if len(gradients) > 1 and formulation == "matrix" and not use.geometry.pointwise:
        # Unfolding the input once is worth a copy of the gradients; otherwise the copy costs as much as a product.
        stacked = torch.stack([g.movedim(1, -1) for g in gradients], -2).movedim((-2, -1), (1, 2))
        return conv_sample_gradient(x, stacked, use.geometry, ordered=dense)
    rows = [conv_sample_gradient(x, g.unsqueeze(1), use.geometry, ordered=dense) for g in gradients]
    return rows[0] if len(rows) == 1 else torch.cat(rows, 1)


def _transposed_rows(x: Tensor, cotangents: Tensor, geometry: ConvGeometry) -> Tensor:
    # The weight gradient of a transposed convolution is that of the ordinary one with input and cotangent exchanged.
    rows = [conv_sample_gradient(cotangents[:, k], x.unsqueeze(1), geometry) for k in range(cotangents.shape[1])]
    return torch.cat(rows, 1)


def _embedding_rows(ids: Tensor, cotangents: Tensor, geometry: tuple[int, int | None], dense: bool) -> Tensor:
    size, padding = geometry
    samples, count = cotangents.shape[:2]
    values = cotangents.reshape(samples, count, -1, cotangents.shape[-1])
    flat = ids.reshape(samples, -1)
    if padding is not None:
        values = values * (flat != padding)[:, None, :, None]
    if dense:
        index = flat
    else:
        found, index = flat.unique(return_inverse=True)
        size = len(found)
    rows = values.new_zeros(samples, count, size, values.shape[-1])
    rows.scatter_add_(2, index[:, None, :, None].expand_as(values), values)
    return rows.flatten(2)
