"""Empirical tangent kernels of any ``nn.Module``: NTK and NNGP, exact, streamed layer by layer.

One forward pass and one backward pass through activations only; when the gradient of a layer's output arrives, the layer's
per-sample gradients are formed, multiplied into a float64 Gram matrix and dropped. No weight gradient is formed, nothing is
written to the model, and the whole Jacobian never exists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from engine.kernels.gram import one_blas_pool
from engine.scoring.capture import SamplesInteract
from engine.scoring.chunked import chunked_gram
from engine.scoring.passes import by_definition, stream
from engine.scoring.plain import untouched
from engine.scoring.sinks import GramSink

Inputs = Tensor | tuple[Any, ...]
Select = Literal["weights", "all"] | Callable[[str, nn.Parameter], bool]
Outputs = Literal["sum", "all"]

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm)


def ntk(
    model: nn.Module,
    x: Inputs,
    outputs: Outputs = "sum",
    params: Select = "weights",
    chunk: int | None = None,
    *,
    groups: int = 1,
) -> Tensor:
    """Empirical neural tangent kernel Theta = J J^T (paper 001, Definition 1).

    Args:
        model: any module. Samples must lie along axis 0 of every input and of the output, in order.
        x: a tensor (N, ...) or a tuple of inputs, each with N samples first.
        outputs: ``"sum"`` differentiates the sum of a sample's outputs, ``"all"`` each of its K outputs.
        params: ``"weights"`` (the weights of all layers that are not norms: no biases, no norm affines, as the published score),
            ``"all"``, or a predicate ``(name, parameter) -> bool``.
        chunk: process this many samples at a time; see the cost. Not for models whose samples interact.
        groups: G groups of N/G consecutive samples that are not compared with each other (a batch of architectures).

    Returns:
        float64 (N, N) for ``"sum"``, (N, K, N, K) for ``"all"``; with G > 1 a leading axis G and N/G in the place of N.

    Raises:
        ValueError: shapes that do not fit, no parameter selected, outputs that are no real numbers, or a lazy layer that has not
            seen an input yet.

    Cost:
        About one forward and one backward pass plus N^2 P float64 multiply-adds for P parameters; K backward passes for
        ``"all"``. Memory is that of a backward pass. With ``chunk`` activations of ``chunk`` samples are held; per-sample
        gradients are then kept for a slice of the layers at a time, as large as those activations, and the passes are repeated
        for each slice. Parameters used in ways that no rule covers cost ``vmap(grad)`` and N times their size. Where samples
        interact (BatchNorm in train mode) every sample takes a backward pass of its own through the whole batch and N * P
        gradients are held. That is noticed for the library's batch normalisation; a model that mixes samples by arithmetic of
        its own is not. A model that draws random numbers (dropout in train mode) is scored as one forward pass from the present
        state of torch's global streams draws them; its parameters of unknown use cost as if samples interacted.

    Precision:
        Gradients are in the model's precision. Float32 leaves the condition number within 2e-5 of float64's on 100 random cells
        (median 1e-7) and orders all of them alike; TF32 is off by 0.25 % in the median and up to 80 % where rounding flips
        rectifiers, and swaps 1 pair in 100; bf16 by 1 % and 1 in 50; split TF32 is as good as float32 but for such flips (1e-3).
        Operands rounded on a CPU: ``python -m bench.studies.precision``. So float32 is the default everywhere, and on a GPU
        convolutions should not use TF32, which torch lets them (``torch.backends.cudnn.allow_tf32``).
    """
    selected = selects(params, model)
    result = gram(model, x, lambda name, p: "all" if selected(name, p) else None, outputs=outputs, chunk=chunk, groups=groups)
    if not result:
        raise ValueError(f"params: no parameter of {type(model).__name__} is selected by {params!r}")
    return result["all"]


def nngp(model: nn.Module, x: Inputs, outputs: Outputs = "sum", head: str | None = None, chunk: int | None = None) -> Tensor:
    """Kernel of the last linear layer alone (the NNGP kernel up to width; the ANIL kernel's adaptation).

    ``head`` names the submodule whose ``weight`` counts, by default the last ``nn.Linear`` of the model. Everything else is as
    for :func:`ntk`; the backward pass stops at the head.
    """
    name = head if head is not None else last_linear(model)
    wanted = f"{name}.weight" if name else "weight"
    if wanted not in dict(model.named_parameters()):
        raise ValueError(f"head: {type(model).__name__} has no parameter {wanted!r}")
    return ntk(model, x, outputs, lambda parameter, _: parameter == wanted, chunk)


def last_linear(model: nn.Module) -> str:
    """Name of the last ``nn.Linear`` in registration order."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ValueError(f"head: {type(model).__name__} has no nn.Linear; name the layer that is its head")
    return names[-1]


def selects(params: Select, model: nn.Module) -> Callable[[str, nn.Parameter], bool]:
    """The predicate behind the ``params`` argument."""
    if callable(params):
        return params
    if params == "all":
        return lambda name, parameter: True
    if params != "weights":
        raise ValueError(f"params: expected 'weights', 'all' or a predicate, got {params!r}")
    norms = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, m in model.named_modules()
        if isinstance(m, _NORMS)
        for name, _ in m.named_parameters()
    }
    return lambda name, parameter: (
        name not in norms and ("weight" in name.rpartition(".")[2] or ".parametrizations.weight." in f".{name}")
    )


def gram(
    model: nn.Module,
    x: Inputs,
    assign: Callable[[str, nn.Parameter], str | None],
    *,
    outputs: Outputs = "sum",
    chunk: int | None = None,
    groups: int = 1,
    fused: bool | None = None,
) -> dict[str, Tensor]:
    """Gram matrices of disjoint sets of parameters, all from the same passes.

    ``assign(name, parameter)`` gives the set a parameter counts in, or None. Returns one kernel a set, shaped as by :func:`ntk`.
    A tied parameter counts once, under its first name. ``fused`` is :class:`~engine.scoring.sinks.GramSink`'s; with chunks, which
    keep gradients, it has no effect.
    """
    inputs = x if isinstance(x, tuple) else (x,)
    samples = _check(inputs, outputs, chunk, groups)
    sets = {name: key for name, p in model.named_parameters() if (key := assign(name, p)) is not None}
    if not sets:
        return {}
    with untouched(inputs) as copies, one_blas_pool():
        if chunk is not None and chunk < samples and groups > 1:
            return _group_by_group(model, copies, sets, outputs, chunk, groups)
        return _kernels(model, copies, sets, outputs, chunk, groups, fused)


def _check(inputs: tuple[Any, ...], outputs: str, chunk: int | None, groups: int) -> int:
    if not inputs or not isinstance(inputs[0], Tensor) or inputs[0].dim() == 0:
        raise ValueError("x: expected a tensor (N, ...) or a tuple whose first item is one")
    samples = inputs[0].shape[0]
    for item in inputs:
        if isinstance(item, Tensor) and (item.dim() == 0 or item.shape[0] != samples):
            shapes = [tuple(i.shape) for i in inputs if isinstance(i, Tensor)]
            raise ValueError(f"x: inputs must share their number of samples, got shapes {shapes}")
    if outputs not in ("sum", "all"):
        raise ValueError(f"outputs: expected 'sum' or 'all', got {outputs!r}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk: expected a positive number of samples, got {chunk}")
    if groups < 1 or samples % groups:
        raise ValueError(f"groups: {samples} samples cannot be divided into {groups} groups")
    return samples


def _kernels(
    model: nn.Module,
    inputs: tuple[Any, ...],
    sets: dict[str, str],
    outputs: Outputs,
    chunk: int | None,
    groups: int,
    fused: bool | None = None,
) -> dict[str, Tensor]:
    samples, device = len(inputs[0]), next(model.parameters()).device
    if chunk is not None and chunk < samples:
        return chunked_gram(model, inputs, sets, outputs, chunk, device)
    sink = GramSink(sets, samples, groups, device, fused)
    try:
        count = stream(model, inputs, set(sets), outputs, sink, groups=groups)
    except SamplesInteract:
        if groups > 1:
            raise ValueError(
                "groups: this model's samples interact (batch statistics), so groups in one batch would too; score one at a time"
            ) from None
        count = by_definition(model, inputs, set(sets), outputs, sink)
    return sink.finish(outputs, count)


def _group_by_group(
    model: nn.Module, inputs: tuple[Any, ...], sets: dict[str, str], outputs: Outputs, chunk: int, groups: int
) -> dict[str, Tensor]:
    if not all(isinstance(item, Tensor) for item in inputs):
        raise ValueError(
            "chunk: with groups every input must be a tensor, since only tensors can be divided; leave one of the two out"
        )
    parts = zip(*(item.chunk(groups) for item in inputs), strict=True)
    found = [_kernels(model, part, sets, outputs, chunk, 1) for part in parts]
    return {key: torch.stack([kernels[key] for kernels in found]) for key in found[0]}
