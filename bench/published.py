"""Scoring a candidate the published way: the baseline of the paired round.

For every candidate two whole networks are built, the supernet and the ablated one, the weights of the first are copied into
the second, and per-sample gradients of all parameters are formed and kept until the kernel is taken (reference note, sections 2
to 4).
The networks are the engine's, so that shared pools and rectified states serve both sides of the comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.networks import supernet
from bench.peers import hooked_gradients
from engine.methods.pruning import Candidate
from engine.spaces.mixture import full, uniform, without
from engine.spaces.norms import GroupNorm
from engine.spaces.space import FEW_SHOT

REG = 1e-3
Watch = Callable[[nn.Module], nn.Module]


def score_pair(
    candidate: Candidate, x: Tensor, watch: Watch, *, cells: int, channels: int, tasks: int, memory_format: str
) -> tuple[float, float]:
    """Condition numbers of the supernet's and the ablated network's MetaNTK (MAML, time = inf).

    ``watch`` hangs the hooks on a network that form its per-sample gradients: opacus's own, or :func:`hooked_module`.
    """
    alive = full(FEW_SHOT)
    mixtures = (uniform(alive), uniform(without(alive, [candidate])[0]))
    networks = [affine_supernet(cells, channels, memory_format) for _ in mixtures]
    for target, source in zip(networks[1].parameters(), networks[0].parameters(), strict=True):
        target.data.copy_(source)
    grams = [gram(watch(network), x, mixture) for network, mixture in zip(networks, mixtures, strict=True)]
    return condition(grams[0], tasks), condition(grams[1], tasks)


def gram(watched: nn.Module, x: Tensor, mixture: object) -> Tensor:
    """Kernel (N, N) of the weights, accumulated in float32 as published, from stored gradients of all parameters."""
    rows = [gradient.flatten(1) for gradient in hooked_gradients(watched, x, mixture)]
    return torch.stack([part @ part.T for part in rows]).sum(0)


def condition(theta: Tensor, tasks: int) -> float:
    """Assemble the MetaNTK task by task and take the ratio of its extreme eigenvalues.

    ``theta`` (N, N) has all queries first, then all supports, each of N / (2 * tasks) a task.
    """
    kernel = theta.double().numpy()
    half = len(kernel) // 2
    gain = np.zeros((half, half))
    for rows in np.split(np.arange(half), tasks):
        support, query = half + rows, rows
        # At infinite time exp(-t K) vanishes, so only the regularised inverse is left.
        inverse = np.linalg.pinv(kernel[np.ix_(support, support)] + REG * np.eye(len(rows)), hermitian=True)
        gain[np.ix_(query, rows)] = kernel[np.ix_(query, support)] @ inverse
    selector = np.concatenate([np.eye(half), -gain], 1)
    eigenvalues = np.linalg.eigvalsh(selector @ kernel @ selector.T)
    return float(eigenvalues[-1] / eigenvalues[0])


class AffineGroupNorm(nn.Module):
    """GroupNorm with scale and shift, called with its input alone, as hooks expect."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor, groups: int = 1) -> Tensor:
        return self.norm(x)


def affine_supernet(cells: int, channels: int, memory_format: str) -> nn.Module:
    """The supernet as published: its norms have parameters, whose per-sample gradients are formed but not counted."""
    model = supernet(FEW_SHOT, cells=cells, channels=channels, memory_format=memory_format)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, GroupNorm):
                setattr(module, name, AffineGroupNorm(child.num_groups, child.num_channels))
    return model


def hooked_module(model: nn.Module) -> nn.Module:
    """Hang hooks on ``model`` that leave ``grad_sample`` on every parameter, as opacus 0.14 does."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.GroupNorm) and next(module.parameters(), None) is not None:
            module.register_forward_hook(_keep_input)
            module.register_full_backward_hook(_keep_gradients)
    return model


def _keep_input(module: Any, inputs: Sequence[Tensor], output: Tensor) -> None:
    module.activation = inputs[0].detach()


def _keep_gradients(module: Any, to_inputs: object, to_outputs: Sequence[Tensor]) -> None:
    x, out = module.activation, to_outputs[0]
    del module.activation
    if isinstance(module, nn.Conv2d):
        weight, bias = _convolution(module, x, out), out.sum((2, 3))
    elif isinstance(module, nn.Linear):
        weight, bias = torch.einsum("no,ni->noi", out, x), out
    else:
        normal = F.group_norm(x, module.num_groups, eps=module.eps)
        weight, bias = torch.einsum("nchw,nchw->nc", normal, out), out.sum((2, 3))
    module.weight.grad_sample = weight
    if module.bias is not None:
        module.bias.grad_sample = bias


def _convolution(layer: Any, x: Tensor, out: Tensor) -> Tensor:
    """The dense product of unfolded input and cotangent, of which a grouped convolution uses the diagonal blocks only."""
    samples, groups, taps = len(x), layer.groups, math.prod(layer.kernel_size)
    unfolded = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    dense = torch.einsum("noq,npq->nop", out.flatten(2), unfolded)
    blocks = dense.view(samples, groups, -1, groups, layer.in_channels // groups, taps)
    return torch.einsum("ngrg...->ngr...", blocks).reshape(samples, *layer.weight.shape)
