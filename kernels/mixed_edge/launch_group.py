"""Launches of the group's kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.kernels.mixed_edge.planes import channels_last
from engine.kernels.mixed_edge.triton_blocks import Blocks
from engine.kernels.mixed_edge.triton_group import read_kernel, sums_kernel
from engine.kernels.mixed_edge.triton_group_backward import cotangents_kernel, filters_kernel, gradient_kernel, products_kernel

# Elements and warps of a program that reads windows, with channels innermost (four elements a thread: 16-byte loads in float32)
# or not. What compiles without a spill by Triton 3.6 and 3.7: larger programs do not. Not tuned on a GPU.
WINDOW_ELEMENTS = 256
WINDOW_WARPS = {True: 2, False: 4}
# The gradient's program spills with four elements a thread by one version or the other, and reads two: eight bytes at a time.
GRADIENT_WARPS = 4
# More than any filter has places, or any group filters: see the kernels.
MOST = 2**20


class Filters:
    """Depthwise filters sorted into kinds and laid side by side for the kernels: (places, C), places the weights a channel."""

    def __init__(self, weights: Sequence[Tensor], dilations: Sequence[int], like: Tensor) -> None:
        self.shapes = [weight.shape for weight in weights]
        kinds = [(*weight.shape[2:], dilation) for weight, dilation in zip(weights, dilations, strict=True)]
        self.order = sorted(range(len(kinds)), key=lambda j: kinds[j])
        counted = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
        self.kinds = tuple(number for kind, count in counted.items() for number in (*kind, count))
        flat = [weights[j].flatten(1).T for j in self.order]
        self.values = torch.cat(flat).contiguous() if flat else like.new_empty(0)
        self.places = sum(len(part) for part in flat)

    def in_order(self, sorted_parts: Sequence[Tensor]) -> list[Tensor]:
        """What belongs to the sorted filters, in the order in which they were given."""
        back = sorted(range(len(self.order)), key=lambda j: self.order[j])
        return [sorted_parts[j] for j in back]

    def unpacked(self, packed: Tensor) -> list[Tensor]:
        """(places, C) -> one tensor like each filter."""
        sizes = [self.shapes[j][2:].numel() for j in self.order]
        return [part.T.reshape(shape) for part, shape in zip(self.in_order(packed.split(sizes)), self.shapes, strict=True)]


class Group:
    """Launches for one state x (B, parts C, H, W), which is contiguous or channels_last; operations see C channels."""

    def __init__(self, x: Tensor, stride: int, parts: int) -> None:
        self.x, self.stride, self.parts = x, stride, parts
        self.height, self.width = x.shape[2:]
        self.size = (x.shape[0], x.shape[1] // parts, -(-self.height // stride), -(-self.width // stride))
        self.elements, self.warps = WINDOW_ELEMENTS, WINDOW_WARPS[channels_last(x)]
        self.blocks = Blocks(x, self.size[2] * self.size[3], self.elements, parts)
        self.whole = self.blocks.sizes, (self.height, self.size[3])
        fixed = {"PARTS": parts, "STRIDE": stride, "WIDTH": self.width}
        self.constants = {**fixed, **self.blocks.constants, "num_warps": self.warps}

    def stack(self, tensors: Sequence[Tensor | None], parts: int = 1) -> Tensor:
        """Tensors of the outputs' size and ``parts`` C channels side by side in the layout of x; absent ones are zero."""
        stacked = self._empty(len(tensors), self.x.dtype, parts)
        for part, tensor in zip(stacked, tensors, strict=True):
            if tensor is None:
                part.zero_()
            else:
                part.copy_(tensor)
        return stacked

    def read(self, filters: Filters) -> tuple[list[Tensor], Tensor, Tensor]:
        """The taps, and means and variances (2, B, C) of the maximum and average pools."""
        taps = self._empty(len(filters.shapes), self.x.dtype)
        mean, spread = self.blocks.partials(self.x, 2), self.blocks.partials(self.x, 2)
        sizes, rest = self.whole
        read_kernel[self.blocks.grid](
            self.x, filters.values, taps, mean, spread, *sizes, *rest, MOST, KINDS=filters.kinds, **self.constants
        )
        return filters.in_order(list(taps)), *self.blocks.merged(mean, spread)

    def sums(self, alive: Tensor, scale: Tensor, shift: Tensor, passing: Tensor) -> Tensor:
        """(E, B, parts C, H', W') from alive (E, 3, B) int8, scale (E, 3, B, C), shift (E, B, C) and passing (E, B)."""
        out, (sizes, rest) = self._empty(len(shift), self.x.dtype, self.parts), self.whole
        sums_kernel[self.blocks.grid](self.x, alive, scale, shift, passing, out, *sizes, *rest, len(shift), **self.constants)
        return out

    def products(self, g: Tensor, alive: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sums over planes of g (E, B, C) and g (y - mean) (E, 3, B, C), of g times what passed (E, B), the maximum's places."""
        edges, (sizes, rest) = len(g), self.whole
        totals, products = self.blocks.partials(self.x, edges), self.blocks.partials(self.x, edges, 3)
        passed = self.blocks.partials(self.x, edges) if self.parts > 1 else totals.new_zeros(1, 1, 1, 1)
        winner = self._empty(1, torch.int8)
        products_kernel[self.blocks.grid](
            self.x, g, alive, mean, totals, products, passed, winner, *sizes, *rest, edges, **self.constants
        )
        return totals.sum(-2), products.sum(-2), passed.sum((-2, -1)), winner

    def gradient(
        self,
        g: Tensor,
        taps: Tensor,
        filters: Filters,
        winner: Tensor,
        mean: Tensor,
        factors: tuple[Tensor, Tensor, Tensor],
        passing: Tensor,
    ) -> Tensor:
        """dx, from the factors of :func:`engine.kernels.mixed_edge.norm.cotangent_factors`."""
        pooled, dx = self._empty(2, torch.float32), torch.empty_like(self.x)
        direct, slope, constant = factors
        sizes, rest = self.whole
        cotangents_kernel[self.blocks.grid](
            self.x, g, mean, direct, slope, constant, pooled, *sizes, *rest, len(g), **self.constants
        )
        blocks = Blocks(self.x, self.height * self.width, self.elements, self.parts)
        gradient_kernel[blocks.grid](
            self.x,
            g,
            taps,
            filters.values,
            winner,
            pooled,
            direct,
            passing,
            dx,
            *blocks.sizes,
            *self.size[2:],
            len(g),
            MOST,
            KINDS=filters.kinds,
            PARTS=self.parts,
            STRIDE=self.stride,
            WIDTH=self.width,
            **blocks.constants,
            num_warps=GRADIENT_WARPS,
        )
        return dx

    def filter_gradients(self, taps: Tensor, filters: Filters) -> list[Tensor]:
        """One gradient like each filter, in float32, from the taps' cotangents (sorted, as ``stack`` lays them)."""
        blocks, (sizes, rest) = self.blocks, self.whole
        out = torch.empty(blocks.samples, blocks.splits, filters.places, blocks.channels, device=self.x.device)
        filters_kernel[blocks.grid](
            self.x, taps, out, *sizes, *rest, MOST, PLACES=filters.places, KINDS=filters.kinds, **self.constants
        )
        return filters.unpacked(out.sum((0, 1)))

    def _empty(self, count: int, dtype: torch.dtype, parts: int = 1) -> Tensor:
        samples, channels, height, width = self.size
        if not self.blocks.last:
            return torch.empty(count, samples, parts * channels, height, width, dtype=dtype, device=self.x.device)
        return torch.empty(count, samples, height, width, parts * channels, dtype=dtype, device=self.x.device).permute(
            0, 1, 4, 2, 3
        )
