"""Watching a forward pass: which parameters it used, with which inputs, and what gradient came back to their outputs.

A ``TorchFunctionMode`` sees every call of a layer function, whether a module made it or the model's own code. Where it knows the
layer it runs it with detached parameters, so autograd forms no weight gradient and goes through activations only, and hangs a
hook on the output. A parameter that is used in any other way stays in the autograd graph, where :func:`graph_leaves` finds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class SamplesInteract(Exception):  # noqa: N818 - a signal to the caller, not an error
    """The forward pass mixes samples (batch statistics), so per-layer gradients are not per-sample gradients."""


@dataclass
class Use:
    """One use of one parameter: ``kind`` names the gradient rule, ``x`` is what the rule needs of the forward pass."""

    name: str
    kind: str
    x: Tensor | None = None
    geometry: Any = None
    version: int = 0

    def __post_init__(self) -> None:
        self.version = 0 if self.x is None else self.x._version

    def take(self) -> Tensor | None:
        """Hand out ``x`` and let go of it, so that activations are freed as the backward pass goes on."""
        x, self.x = self.x, None
        if x is not None and x._version != self.version:
            raise RuntimeError(f"the input of parameter {self.name!r} was changed in place after the layer read it; its gradient is lost")
        return x


Arrival = Callable[[Use, Tensor], None]


@dataclass
class Capture(TorchFunctionMode):
    """Records the uses of tracked parameters during a forward pass.

    Args:
        names: id of each tracked parameter's alias -> its name.
        batch: number of samples, which every watched layer must have along axis 0.
        arrive: called in the backward pass with each use and its cotangents, (N, K, *output).
    """

    names: Mapping[int, str]
    batch: int
    arrive: Arrival
    count: Counter[str] = field(default_factory=Counter)
    anchor: Tensor = field(default_factory=lambda: torch.zeros((), requires_grad=True))

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        from engine.scoring.layers import RULES

        kwargs = kwargs or {}
        rule = RULES.get(func)
        if rule is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        return rule(self, func, *args, **kwargs)

    def name_of(self, tensor: Tensor | None) -> str | None:
        """The tracked parameter that this very tensor is, if any."""
        return None if tensor is None else self.names.get(id(tensor))

    def watch(self, y: Tensor, uses: list[Use]) -> Tensor:
        """Report ``uses`` with the gradient that reaches ``y``; returns the tensor to go on with."""
        if not y.requires_grad:
            # Nothing upstream needs a gradient. Adding a scalar zero makes y part of the graph without making it a leaf, which
            # would forbid the in-place activations that often follow.
            y = y + self.anchor.to(y.dtype).to(y.device)
        self.count.update(use.name for use in uses)
        y.register_hook(partial(self._report, uses))
        return y

    def _report(self, uses: list[Use], gradient: Tensor) -> None:
        _Tap.apply(gradient, partial(self._deliver, uses))

    def _deliver(self, uses: list[Use], cotangents: Tensor) -> None:
        for use in uses:
            self.arrive(use, cotangents)


class _Tap(torch.autograd.Function):
    """Hands a gradient to a callback as (N, K, ...), whether the backward pass is batched over K cotangents or not."""

    @staticmethod
    def forward(gradient: Tensor, deliver: Callable[[Tensor], None]) -> Tensor:
        deliver(gradient.unsqueeze(1))
        return gradient.new_empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], gradient: Tensor, deliver: Callable[[Tensor], None]) -> tuple[Tensor, None]:
        axis = in_dims[0]
        stacked = gradient.unsqueeze(0).expand(info.batch_size, *gradient.shape) if axis is None else gradient.movedim(axis, 0)
        deliver(stacked.transpose(0, 1))
        return gradient.new_empty(0), None


def graph_leaves(output: Tensor) -> set[int]:
    """Ids of the leaf tensors that autograd would reach from ``output``."""
    found: set[int] = set()
    stack = [output.grad_fn]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if node is None:
            continue
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return found
