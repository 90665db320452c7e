"""Many tensors in one flat buffer, so that an outer update is a handful of passes whatever the number of layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Names, shapes and order of the tensors of a buffer."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Layout:
        """The layout of ``tensors`` in their own order."""
        return cls(tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items()))

    @property
    def size(self) -> int:
        """Elements of the buffer, P."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A new buffer (P,), or (T, P) where every tensor has a leading task axis T."""
        first, shape = self.shapes[0]
        lead = tensors[first].shape[: tensors[first].ndim - len(shape)]
        return torch.cat([tensors[name].reshape(*lead, -1) for name, _ in self.shapes], dim=-1)

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """The tensors of a buffer (P,) or (T, P), by name, sharing its memory."""
        parts = buffer.split([math.prod(shape) for _, shape in self.shapes], dim=-1)
        lead = buffer.shape[:-1]
        return {name: part.view((*lead, *shape)) for (name, shape), part in zip(self.shapes, parts, strict=True)}
