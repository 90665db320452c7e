"""When an operator with a gradient of its own must step aside, and how it is differentiated twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether torch.func, forward-mode differentiation or torch.compile is at work: plain formulas serve there.

    An ``autograd.Function`` inside those is refused, differentiated as zero, or closed to the compiler, depending on the version.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0  # private, as is the line above: torch has no public question for either
    )


def plain_gradients(
    formula: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor | None], needed: Sequence[bool], cotangents: Sequence[Any]
) -> list[Tensor | None]:
    """Gradients of ``formula(*inputs)`` that can be differentiated again, for a backward that builds a graph.

    The formula runs on aliases of the inputs, so that an input which another one was computed from is not counted twice.
    """
    aliases = [x.view_as(x) if x is not None and wanted else x for x, wanted in zip(inputs, needed, strict=True)]
    outputs = formula(*aliases)
    used = [(y, g) for y, g in zip(outputs, cotangents, strict=True) if g is not None and y.requires_grad]
    places = [i for i, wanted in enumerate(needed) if wanted]
    wanted_inputs: list[Any] = [aliases[i] for i in places]
    found: list[Tensor | None] = [None] * len(aliases)
    if not used or not places:
        return found
    gradients = torch.autograd.grad(
        [y for y, _ in used], wanted_inputs, [g for _, g in used], create_graph=True, allow_unused=True
    )
    for place, gradient in zip(places, gradients, strict=True):
        found[place] = gradient
    return found
