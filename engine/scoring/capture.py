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

from engine.scoring.sample_axis import mark_result, sample_axis


class SamplesInteract(Exception):
    """The forward pass mixes samples (batch statistics), so per-layer gradients are not per-sample gradients."""


class Activation:
    """The input of one or more layers, kept until the last of them has had its gradient formed."""

    def __init__(self, x: Tensor) -> None:
        self.readers = 0
        self._x: Tensor | None = x.detach()
        self._version = x._version

    def read(self, *, planar: bool = False) -> Tensor:
        """The values; ``planar`` asks for a dense copy with channels outermost, made once for all readers."""
        x = self._x
        if x is None:
            raise RuntimeError("the input of a layer was asked for after its last reader; one backward pass a capture is meant")
        if x._version != self._version:
            raise RuntimeError("the input of a layer was changed in place after the layer had read it; its gradient is lost")
        if planar and not x.is_contiguous():
            self._x = x = x.contiguous()
            self._version = x._version
        return x

    def release(self) -> None:
        """One reader is done."""
        self.readers -= 1
        if self.readers == 0:
            self._x = None


@dataclass
class Use:
    """One use of one parameter: ``kind`` names the gradient rule, ``geometry`` holds what the rule needs besides the input."""

    name: str
    kind: str
    activation: Activation | None = None
    geometry: Any = None


Arrival = Callable[[Use, Tensor], None]


class DifferentiatesInside(Exception):
    """The model takes gradients in its forward pass, which a pass on detached parameters would get wrong."""


@dataclass
class Capture(TorchFunctionMode):
    """Records the uses of tracked parameters during a forward pass.

    Args:
        names: id of each tracked parameter's alias -> its name.
        batch: number of samples, which every watched layer must have along axis 0.
        arrive: called in the backward pass with each use and the gradient of its output.

    After the forward pass ``count`` holds the uses of each parameter, ``watched`` the outputs in the autograd graph, as
    node -> [(output number, uses)], and ``hooked`` whether the model hung hooks of its own on tensors.
    """

    names: Mapping[int, str]
    batch: int
    arrive: Arrival
    count: Counter[str] = field(default_factory=Counter)
    watched: dict[Any, list[tuple[int, list[Use]]]] = field(default_factory=dict)
    hooked: bool = False
    anchor: Tensor = field(default_factory=lambda: torch.zeros((), requires_grad=True))
    ignore: set[str] = field(default_factory=set)
    watching: bool = True
    _read: dict[int, tuple[Tensor, Activation]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        from engine.scoring.layers import RULES

        kwargs = kwargs or {}
        if func is torch.autograd.grad or func is Tensor.backward:
            raise DifferentiatesInside
        rule = RULES.get(func) if torch.is_grad_enabled() and not transformed() else None
        result = func(*args, **kwargs) if rule is None else rule(self, func, *args, **kwargs)
        mark_result(func, args, kwargs, result, self.batch)
        self.hooked |= func is Tensor.register_hook
        return result

    def name_of(self, tensor: Tensor | None) -> str | None:
        """The tracked parameter that this very tensor is, if any."""
        return None if tensor is None else self.names.get(id(tensor))

    def has_samples(self, x: Tensor) -> bool:
        """Whether axis 0 of a layer's input holds the samples, one row each, in their order."""
        return x.dim() > 0 and x.shape[0] == self.batch and sample_axis(x) == 0

    def activation(self, x: Tensor) -> Activation:
        """The record of an input tensor, shared by all layers that read this very tensor in its present state."""
        # The tensor itself is kept beside its id, because an id may be given out again once its tensor is gone.
        known = self._read.get(id(x))
        if known is None or known[1]._version != x._version:
            self._read[id(x)] = known = (x, Activation(x))
        known[1].readers += 1
        return known[1]

    def watch(self, y: Tensor, uses: list[Use]) -> Tensor:
        """Report ``uses`` with the gradient that reaches ``y``; returns the tensor to go on with."""
        if not y.requires_grad:
            # Nothing upstream needs a gradient. Adding a scalar zero makes y part of the graph without making it a leaf, which
            # would forbid the in-place activations that often follow.
            y = y + self.anchor.to(y.dtype).to(y.device)
        elif y._is_view():
            # An in-place operation on a view rewrites the graph behind it, past this hook; on this alias it comes after it.
            y = torch.ops.aten._unsafe_view(y, y.shape)
        self.count.update(use.name for use in uses)
        # On the node, not on the tensor: hooks that the model hangs on the tensor change the gradient before it gets here.
        assert y.grad_fn is not None
        y.grad_fn.register_prehook(partial(self._report, y.output_nr, uses))
        self.watched.setdefault(y.grad_fn, []).append((y.output_nr, uses))
        return y

    def _report(self, number: int, uses: list[Use], gradients: tuple[Tensor | None, ...]) -> None:
        if self.watching:
            raise DifferentiatesInside
        gradient = gradients[number]
        for use in uses:
            if gradient is not None and use.name not in self.ignore:
                self.arrive(use, gradient)

    def bytes_held(self) -> int:
        """Bytes of the layers' inputs that the forward pass kept, each counted once."""
        return sum(x.numel() * x.element_size() for x, _ in self._read.values())

    def forget(self) -> None:
        """Let go of the graph. Its nodes hold hooks that hold this object, a circle through C++ that no garbage collector
        sees.
        """
        self.watched.clear()
        self._read.clear()

    def end_forward(self) -> None:
        """Let go of everything that only the forward pass needs; what the backward pass needs hangs on its hooks."""
        self._read.clear()
        self.watching = False


def transformed() -> bool:
    """Whether a function transform (``torch.func.vmap``, ``grad``) is at work, whose tensors are not what they seem."""
    return torch._C._functorch.peek_interpreter_stack() is not None


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
