"""Plain formulations of the tangent kernel, and one training step: what ``engine.scoring.kernels.ntk`` is measured against.

All take a network, the images and the network's further arguments. Kernels are of the parameters that ``params="weights"``
selects, with the Gram matrix accumulated in float64 by the same function as the engine's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from engine.kernels.gram import add_gram, one_blas_pool
from engine.scoring.kernels import selects

HAS_OPACUS = find_spec("opacus") is not None

# Opacus 1.6 unfolds a channels-last input as if it were contiguous and gets wrong gradients, without an error.
OPACUS_FORMATS = ("contiguous",)


def training_step(model: nn.Module, x: Tensor, *rest: Any) -> None:
    """One ordinary forward and backward pass, the weights' gradients included."""
    model.zero_grad()
    model(x, *rest).sum().backward()


def counted(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that count in the kernel."""
    selected = selects("weights", model)
    return {name: p for name, p in model.named_parameters() if selected(name, p)}


def stored_gram(gradients: Iterable[Tensor]) -> Tensor:
    """Gram matrix (N, N) of stored per-sample gradients, each (N, *parameter)."""
    rows = [gradient.flatten(1) for gradient in gradients]
    total = rows[0].new_zeros(1, len(rows[0]), len(rows[0]), dtype=torch.float64)
    with one_blas_pool():
        for part in rows:
            add_gram(total, part.unsqueeze(0))
    return total[0]


def vmap_gradients(model: nn.Module, x: Tensor, *rest: Any) -> Tensor:
    """``vmap(grad)`` of one sample's output, all per-sample gradients at once."""
    chosen = {name: p.detach() for name, p in counted(model).items()}
    fixed = {name: p.detach() for name, p in model.named_parameters() if name not in chosen}

    def output(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, {**fixed, **weights}, (sample.unsqueeze(0), *rest)).sum()

    return stored_gram(vmap(grad(output), in_dims=(None, 0))(chosen, x).values())


def sample_loop(model: nn.Module, x: Tensor, *rest: Any) -> Tensor:
    """One forward and backward pass a sample."""
    weights = list(counted(model).values())
    rows = [torch.autograd.grad(model(x[n : n + 1], *rest).sum(), weights) for n in range(len(x))]
    return stored_gram(torch.stack(column) for column in zip(*rows, strict=True))


def opacus_module(model: nn.Module) -> nn.Module:
    """Wrap ``model`` in opacus's hooks, which leave ``grad_sample`` on every parameter; needs opacus."""
    from opacus import GradSampleModule

    return GradSampleModule(model.train(), loss_reduction="sum")


def opacus_gradients(watched: nn.Module, x: Tensor, *rest: Any) -> Tensor:
    """Per-sample gradients of every parameter by opacus, all kept until the Gram matrix is taken."""
    watched.zero_grad()
    return stored_gram(hooked_gradients(watched, x, *rest))


def hooked_gradients(watched: nn.Module, x: Tensor, *rest: Any) -> list[Tensor]:
    """Forward and backward; then the ``grad_sample`` that hooks left on the parameters that count.

    Parameters of an operation that did not run have none.
    """
    y = watched(x, *rest).sum()
    with warnings.catch_warnings():
        # The hooks of layers that read the images fire without a gradient of their input, which torch warns about.
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        y.backward()
    found = [getattr(p, "grad_sample", None) for p in counted(watched).values()]
    return [gradient for gradient in found if gradient is not None]
