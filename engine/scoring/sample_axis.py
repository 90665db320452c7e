"""Along which axis the tensors of a watched forward pass hold the samples, followed from call to call.

Shapes alone cannot tell: a table of positions, the frames of one sample and a sequence turned to the front may all be as long as
the batch. So every tensor carries the axis that its samples lie along, in their order, as far as that is certain.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import EllipsisType, NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The axis of a tensor that was computed from the samples, but holds them in another order, or nobody knows where.
LOST = -1

# Calls whose other tensor arguments give a shape, dtype or device but no values.
_VALUES_OF_FIRST = {"to", "type_as", "view_as", "expand_as", "reshape_as"}
_VALUES_OF_NONE = {"new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "zeros_like", "ones_like", "full_like"}

_TURNED = {getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH")}
_VIEWS = {"__getitem__", "select", "unbind", "narrow", "split", "chunk", "tensor_split", "squeeze", "unsqueeze", "expand"}
_VIEWS |= {"transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "permute", "t", "adjoint", "diagonal", "expand_as"}
_RESHAPES = {"reshape", "view", "flatten", "unflatten", "ravel", "view_as", "reshape_as"}
_BROADCASTS = {"add", "sub", "mul", "div", "pow", "where", "maximum", "minimum", "lerp", "addcmul", "addcdiv"}
_BROADCASTS |= {"__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__"}
# What changes the order along a dimension: the place of that argument, and its default (None: every dimension).
_ALONG = {
    "cat": (1, 0),
    "concat": (1, 0),
    "concatenate": (1, 0),
    "flip": (1, None),
    "roll": (2, None),
    "index_select": (1, None),
    "gather": (1, None),
    "take_along_dim": (2, None),
    "sort": (1, -1),
    "argsort": (1, -1),
    "topk": (2, -1),
}
_UNSEEN: Any = object()
# Indices that give a view.
_PLAIN = (int, slice, NoneType, EllipsisType)
_MIXES = {"repeat", "tile", "take", "masked_select", "rot90", "fliplr", "flipud", "as_strided", "tensordot", "masked_scatter"}
_MIXES |= {
    "index_add",
    "index_copy",
    "index_put",
    "index_fill",
    "index_reduce",
    "put",
    "scatter",
    "scatter_add",
    "scatter_reduce",
}


def sample_axis(x: Tensor) -> int | None:
    """The axis of the samples, :data:`LOST`, or None for what was not computed from them.

    A tensor that appeared unseen (a custom autograd function's) counts with axis 0 where it has a history.
    """
    axis: Any = getattr(x, "_sample_axis", _UNSEEN)
    return axis if axis is not _UNSEEN else None if x.grad_fn is None else 0


def mark(x: Tensor, axis: int | None) -> None:
    """Declare along which axis a tensor holds the samples."""
    x._sample_axis = axis  # type: ignore[attr-defined]


def mark_result(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, batch: int) -> None:
    """Mark the tensors that ``func(*args, **kwargs)`` has returned, for a batch of that many samples."""
    results = _tensors((result,))
    if not results:
        return
    name = "t" if func in _TURNED else getattr(func, "__name__", "")
    name = name if name.endswith("__") else name.removesuffix("_")
    given = _tensors(args[:1] if name in _VALUES_OF_FIRST else (*args, *kwargs.values()) if kwargs else args)
    sources = [x for x in given if sample_axis(x) is not None] if name not in _VALUES_OF_NONE else []
    axis = sample_axis(sources[0]) if sources else None
    if len(sources) > 1 and any(sample_axis(x) != axis for x in sources):
        axis = LOST
    if axis is None or axis == LOST:
        places: list[int | None] = [axis] * len(results)
    elif name in _VIEWS:
        places = _viewed(func, args, kwargs, axis) if args and sources[0] is args[0] else [LOST] * len(results)
    else:
        call = _Call(name, args, kwargs, axis, sources, given, batch)
        places = [call.place(y) for y in results]
    for y, place in zip(results, places, strict=True):
        mark(y, place)


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += [item for item in value if isinstance(item, Tensor)]
    return found


def _viewed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], axis: int) -> list[int | None]:
    """The call is made on a tensor without values: the axis goes where its stride goes. Copies (by an index) have lost it."""
    if func is Tensor.__getitem__ and not all(isinstance(item, _PLAIN) for item in _flat(args[1])):
        return [LOST]
    probe = torch.empty(args[0].shape, device="meta")
    outputs = func(probe, *args[1:], **kwargs)
    found: list[int | None] = []
    for y in outputs if isinstance(outputs, tuple | list) else (outputs,):
        kept = [d for d in range(y.dim()) if (y.shape[d], y.stride(d)) == (probe.shape[axis], probe.stride(axis))]
        found.append(kept[0] if kept and y._is_view() else LOST)
    return found


class _Call(NamedTuple):
    """A call that is no view: of the tensors ``given`` to it, the ``sources`` hold the samples along ``axis``."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    axis: int
    sources: list[Tensor]
    given: list[Tensor]
    batch: int

    def place(self, y: Tensor) -> int:
        """The axis of one of the results.

        Axis 0 may hold several consecutive rows of every sample; another one is followed only where it stays what it is.
        """
        x, axis = self.sources[0], self.axis
        if self.batch == 0:
            return 0
        if self.name in _MIXES or (self.name in _ALONG and axis in self.reordered()):
            return LOST
        if self.name == "einsum" and any(tuple(t.shape).count(self.batch) != 1 for t in (*self.sources, y)):
            return LOST
        if self.name == "stack":
            dim = self.kwargs.get("dim", self.args[1] if len(self.args) > 1 else 0) % y.dim()
            return axis + (dim <= axis)
        if x.dim() < y.dim() and self.name in _BROADCASTS and any(t.dim() == y.dim() for t in self.given):
            axis += y.dim() - x.dim()
        if axis == 0:
            return 0 if y.dim() and y.shape[0] % self.batch == 0 else LOST
        if self.name in _RESHAPES:
            return axis if x.shape[: axis + 1] == y.shape[: axis + 1] else LOST
        return axis if x.dim() <= y.dim() and y.shape[axis] == self.batch else LOST

    def reordered(self) -> set[int]:
        """The dimensions along which a call of :data:`_ALONG` changes the order."""
        dims = self.sources[0].dim()
        position, default = _ALONG[self.name]
        given = self.args[position:] if self.name == "flip" else self.args[position : position + 1]
        chosen = self.kwargs.get("dim", self.kwargs.get("dims", given or default))
        flat = [dim for item in _flat(chosen) for dim in _flat(item)]
        return set(range(dims)) if None in flat else {dim % dims for dim in flat}


def _flat(item: Any) -> tuple[Any, ...]:
    return tuple(item) if isinstance(item, tuple | list) else (item,)
