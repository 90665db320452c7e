"""Empirical tangent kernels of any ``nn.Module``: NTK and NNGP, exact, streamed layer by layer.

One forward pass and one backward pass through activations only; when the gradient of a layer's output arrives, the layer's per-sample
gradients are formed, multiplied into a float64 Gram matrix and dropped. No weight gradient is formed, nothing is written to the
model, and the whole Jacobian never exists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from engine.kernels.gram import add_gram, one_blas_pool
from engine.scoring.capture import Capture, SamplesInteract, Use, graph_leaves
from engine.scoring.layers import add_use, sample_rows
from engine.scoring.plain import interacting_rows, sample_gradient_rows

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
        chunk: process this many samples at a time; see the cost.
        groups: G groups of N/G consecutive samples that are not compared with each other (a batch of architectures).

    Returns:
        float64 (N, N) for ``"sum"``, (N, K, N, K) for ``"all"``; with G > 1 a leading axis G and N/G in the place of N.

    Raises:
        ValueError: shapes that do not fit, or no parameter selected.

    Cost:
        About one forward and one backward pass plus N^2 P float64 multiply-adds for P parameters; K backward passes for ``"all"``. Memory
        is that of a backward pass. With ``chunk`` activations of ``chunk`` samples are held; per-sample gradients are then kept for a slice of the
        layers at a time, as large as those activations, and the passes are repeated for each slice. Parameters used in ways
        that no rule covers cost ``vmap(grad)`` and N times their size. Where samples interact (BatchNorm in train mode) every sample takes
        a backward pass of its own through the whole batch and N * P gradients are held.
    """
    selected = selects(params, model)
    result = gram(model, x, lambda name, p: "all" if selected(name, p) else None, outputs=outputs, chunk=chunk, groups=groups)
    if not result:
        raise ValueError(f"params: no parameter of {type(model).__name__} is selected by {params!r}")
    return result["all"]


def nngp(model: nn.Module, x: Inputs, outputs: Outputs = "sum", head: str | None = None, chunk: int | None = None) -> Tensor:
    """Kernel of the last linear layer alone (the NNGP kernel up to width; the ANIL kernel's adaptation).

    ``head`` names the submodule whose ``weight`` counts, by default the last ``nn.Linear`` of the model. Everything else is as for
    :func:`ntk`; the backward pass stops at the head.
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
    return lambda name, parameter: name not in norms and "weight" in name.rpartition(".")[2]


def gram(
    model: nn.Module,
    x: Inputs,
    assign: Callable[[str, nn.Parameter], str | None],
    *,
    outputs: Outputs = "sum",
    chunk: int | None = None,
    groups: int = 1,
) -> dict[str, Tensor]:
    """Gram matrices of disjoint sets of parameters, all from the same passes.

    ``assign(name, parameter)`` gives the set a parameter counts in, or None. Returns one kernel a set, shaped as by :func:`ntk`. A
    tied parameter counts once, under its first name.
    """
    inputs = x if isinstance(x, tuple) else (x,)
    samples = _check(inputs, outputs, chunk, groups)
    sets = {name: key for name, p in model.named_parameters() if (key := assign(name, p)) is not None}
    if not sets:
        return {}
    if chunk is not None and chunk < samples:
        from engine.scoring.chunked import chunked_gram

        return chunked_gram(model, inputs, sets, outputs, chunk, groups)
    return _streamed(model, inputs, sets, outputs, groups)


def _check(inputs: tuple[Any, ...], outputs: str, chunk: int | None, groups: int) -> int:
    if not inputs or not isinstance(inputs[0], Tensor) or inputs[0].dim() == 0:
        raise ValueError("x: expected a tensor (N, ...) or a tuple whose first item is one")
    samples = inputs[0].shape[0]
    for item in inputs:
        if isinstance(item, Tensor) and (item.dim() == 0 or item.shape[0] != samples):
            raise ValueError(
                f"x: inputs must share their number of samples, got shapes {[tuple(i.shape) for i in inputs if isinstance(i, Tensor)]}"
            )
    if outputs not in ("sum", "all"):
        raise ValueError(f"outputs: expected 'sum' or 'all', got {outputs!r}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk: expected a positive number of samples, got {chunk}")
    if groups < 1 or samples % groups:
        raise ValueError(f"groups: {samples} samples cannot be divided into {groups} groups")
    return samples


@contextmanager
def frozen_call(model: nn.Module, tracked: set[str]) -> Iterator[tuple[Callable[..., Tensor], dict[str, Tensor]]]:
    """A function that runs the model on stand-ins for its parameters and buffers, and the stand-ins of ``tracked``.

    The model itself is never touched: its parameters keep their flags and gradients, its buffers are copied. Compiled modules run eagerly,
    because only eager calls can be watched.
    """
    aliases = {name: p.detach().requires_grad_(name in tracked) for name, p in model.named_parameters()}
    state = {**aliases, **{name: b.clone() for name, b in model.named_buffers()}}

    def call(*inputs: Any) -> Tensor:
        return functional_call(model, state, inputs, tie_weights=True)

    with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        yield call, {name: alias for name, alias in aliases.items() if name in tracked}


class GramSink:
    """Adds up each set's Gram matrix as the gradients of parameters arrive.

    A parameter that is used once is streamed; the gradients of one that is used several times are added before the Gram matrix is taken.
    """

    def __init__(self, sets: Mapping[str, str], samples: int, groups: int, device: torch.device) -> None:
        self.sets, self.samples, self.groups, self.device = sets, samples, groups, device
        self.totals: dict[str, Tensor] = {}
        self.pending: dict[str, Tensor] = {}
        self.uses: Counter[str] = Counter()

    def arrive(self, use: Use, gradient: Tensor) -> None:
        """Take one use and the gradient of its output, (N, *output), in the backward pass."""
        self.take(use, gradient.unsqueeze(1))

    def take(self, use: Use, cotangents: Tensor) -> None:
        """Take one use and its K cotangents, (N, K, *output)."""
        name = use.name
        if self.uses[name] == 1 and name not in self.pending:
            add_use(self.total(name, cotangents.shape[1]), use, cotangents)
        else:
            rows = sample_rows(use, cotangents, dense=True)
            self.pending[name] = rows + self.pending[name] if name in self.pending else rows
            self.uses[name] -= 1
            if self.uses[name] == 0:
                self.add_rows(name, self.pending.pop(name))
        if use.activation is not None:
            use.activation.release()

    def add_rows(self, name: str, rows: Tensor) -> None:
        """Add the complete per-sample gradients (N, K, P) of one parameter."""
        total = self.total(name, rows.shape[1])
        add_gram(total, rows.reshape(*total.shape[:2], -1))

    def total(self, name: str, count: int) -> Tensor:
        """The running sum (G, n*K, n*K) of the set that a parameter counts in."""
        side = self.samples // self.groups * count
        fresh = torch.zeros(self.groups, side, side, dtype=torch.float64, device=self.device)
        return self.totals.setdefault(self.sets[name], fresh)

    def finish(self, outputs: Outputs, count: int) -> dict[str, Tensor]:
        """The kernels. Uses whose output the result does not depend on never arrive; what did arrive of their parameter counts."""
        for name in list(self.pending):
            self.add_rows(name, self.pending.pop(name))
        kernels = {}
        for name, key in self.sets.items():
            total = self.total(name, count)
            per_group = self.samples // self.groups
            if outputs == "all":
                total = total.view(self.groups, per_group, count, per_group, count)
            kernels[key] = total if self.groups > 1 else total[0]
        return kernels


def _streamed(
    model: nn.Module, inputs: tuple[Any, ...], sets: dict[str, str], outputs: Outputs, groups: int
) -> dict[str, Tensor]:
    samples, device = inputs[0].shape[0], next(model.parameters()).device
    sink = GramSink(sets, samples, groups, device)
    with frozen_call(model, set(sets)) as (call, aliases), one_blas_pool():
        capture = Capture({id(alias): name for name, alias in aliases.items()}, samples, sink.arrive)
        try:
            with capture:
                y = flat_outputs(call(*inputs), samples)
        except SamplesInteract:
            return _by_definition(call, aliases, inputs, sink, outputs)
        capture.end_forward()
        count = y.shape[1] if outputs == "all" else 1
        unknown = _unknown(y, aliases)
        if unknown and groups > 1:
            raise ValueError(
                f"groups: {sorted(unknown)[0]!r} is used in a way that only single samples can be asked about; score one group at a time"
            )
        capture.ignore = unknown
        sink.uses = capture.count
        backward(y, capture.anchor, outputs)
        del y
        for name, rows in sample_gradient_rows(model, sorted(unknown), inputs, outputs):
            sink.add_rows(name, rows)
        return sink.finish(outputs, count)


def _by_definition(
    call: Callable[..., Tensor], aliases: dict[str, Tensor], inputs: tuple[Any, ...], sink: GramSink, outputs: Outputs
) -> dict[str, Tensor]:
    if sink.groups > 1:
        raise ValueError(
            "groups: this model's samples interact (batch statistics), so groups in one batch would too; score one at a time"
        )
    y = flat_outputs(call(*inputs), sink.samples)
    count = y.shape[1] if outputs == "all" else 1
    for name, rows in interacting_rows(y if outputs == "all" else y.sum(1, keepdim=True), aliases):
        sink.add_rows(name, rows)
    return sink.finish(outputs, count)


def flat_outputs(y: Tensor, samples: int) -> Tensor:
    """The model's output as (N, K)."""
    if not isinstance(y, Tensor) or y.dim() == 0 or y.shape[0] != samples:
        shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"model: expected an output with {samples} samples along axis 0, got {shape}")
    return y.reshape(samples, -1)


def _unknown(y: Tensor, aliases: dict[str, Tensor]) -> set[str]:
    """Parameters that autograd still sees: some use of theirs was not watched."""
    leaves = graph_leaves(y)
    return {name for name, alias in aliases.items() if id(alias) in leaves}


def backward(y: Tensor, anchor: Tensor, outputs: Outputs) -> None:
    """Send the cotangents of ``y`` (N, K) down to the anchor; the hooks on the way report what passes."""
    if y.requires_grad:
        torch.autograd.grad(y, anchor, torch.ones_like(y), allow_unused=True)
