"""Finds where the host reads what a device computed: on a GPU each is a wait for the device, and forbids a CUDA graph.

No GPU is needed. Tensors that would lie on the device are named; whatever is computed from them lies there too. Operators that
look at values, and methods that copy them to the host, are then noted with the lines of the library that led to them.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators whose result is on the host, or has a shape that depends on values.
OPERATORS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::is_nonzero",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
}
METHODS = {"tolist", "numpy", "cpu", "__array__"}
# These read on the CPU only, where it costs nothing: they, or their callers, ask for the device first.
CPU_ONLY = {
    ("gram.py", "add_gram"),
    ("architecture_task.py", "_loss"),
    ("weighted_sum.py", "forward"),
    ("batch_sum.py", "serves"),
}


@contextmanager
def host_reads(*device: Any) -> Iterator[list[str]]:
    """The list of reads inside the ``with`` statement, where the tensors in ``device`` (any nesting) lie on the device."""
    seen = _Seen(tensor for tensor in tree_leaves(device) if isinstance(tensor, Tensor))
    with _Operators(seen), _Methods(seen):
        yield seen.reads


class _Seen:
    """Storages of the device, held so that none is given out again, and the reads of them."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.reads: list[str] = []
        self.held: dict[int, Any] = {}
        for tensor in tensors:
            self.hold(tensor)

    def hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.held[storage._cdata] = storage

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, Tensor) and not _wraps(value) and value.untyped_storage()._cdata in self.held

    def note(self, name: str) -> None:
        own = [f for f in traceback.extract_stack() if "/engine/" in f.filename or "/kernels/" in f.filename]
        if not any((frame.filename.rpartition("/")[2], frame.name) in CPU_ONLY for frame in own):
            self.reads.append(" < ".join([name, *(f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in own[::-1][:4])]))


def _wraps(tensor: Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


class _Operators(TorchDispatchMode):
    def __init__(self, seen: _Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = tree_leaves((args, kwargs))
        touched = any(value in self.seen for value in values)
        if touched and (func._schema.name in OPERATORS or _by_mask(func._schema.name, args)):
            self.seen.note(func._schema.name)
        result = func(*args, **(kwargs or {}))
        if touched:
            for value in tree_leaves(result):
                if isinstance(value, Tensor):
                    self.seen.hold(value)
        return result


class _Methods(TorchFunctionMode):
    def __init__(self, seen: _Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        result = func(*args, **(kwargs or {}))
        if name in METHODS and args and args[0] in self.seen:
            self.seen.note(name)
            if name == "cpu":  # a copy on the host, which may be read
                result = result.clone()
                self.seen.held.pop(result.untyped_storage()._cdata)
        return result


def _by_mask(name: str, args: Any) -> bool:
    """An index by a mask looks for its true places."""
    if not name.startswith("aten::index") or len(args) < 2 or not isinstance(args[1], list | tuple):
        return False
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
