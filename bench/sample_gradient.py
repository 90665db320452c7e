"""Formulations of a convolution's per-sample weight gradient, layer by layer.

The table behind ``engine.kernels.sample_gradient.choose``; a row's note marks the formulation that it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bench.measure import Case, measure, single_calls
from bench.networks import MEMORY_FORMATS, images
from bench.registry import Settings
from bench.rows import Row
from bench.timing import Call
from engine.kernels import sample_gradient as kernels
from engine.kernels.sample_gradient import ConvGeometry
from engine.runs.streams import stream

BASELINE = "one library call a sample"


class Layer(NamedTuple):
    """A convolution of the few-shot supernet: its kind, channels in and out, and the side of its input."""

    kind: str
    channels_in: int
    channels: int
    size: int
    stride: int = 1
    outputs: int = 1

    @property
    def geometry(self) -> ConvGeometry:
        """Weight shape and settings of this kind of layer."""
        kernel, dilation = {
            "depthwise 3x3": ((3, 3), 1),
            "dilated depthwise 3x3": ((3, 3), 2),
            "dense 3x3": ((3, 3), 1),
            "dense 1x5": ((1, 5), 1),
            "dense 5x1": ((5, 1), 1),
            "pointwise": ((1, 1), 1),
        }[self.kind]
        groups = self.channels if "depthwise" in self.kind else 1
        padding = tuple(dilation * (k - 1) // 2 for k in kernel)
        shape = (self.channels, self.channels_in // groups, *kernel)
        return ConvGeometry(shape, (self.stride,) * 2, padding, (dilation,) * 2, groups)


def layers(scale: str) -> Iterator[Layer]:
    """The layers of a five-cell supernet of 16 and 48 channels on 32x32 images, and with five outputs the commonest of them."""
    if scale == "smoke":
        yield from (Layer("depthwise 3x3", 4, 4, 5), Layer("dense 1x5", 4, 4, 5), Layer("pointwise", 8, 4, 5, outputs=2))
        return
    for width in (16, 48):
        yield Layer("dense 3x3", 3, width, 32)
        for channels, size in ((width, 32), (2 * width, 16), (4 * width, 8)):
            for kind in ("depthwise 3x3", "dilated depthwise 3x3", "dense 1x5", "dense 5x1", "pointwise"):
                yield Layer(kind, channels, channels, size)
            yield Layer("pointwise", 3 * channels, channels, size)
            for kind in ("depthwise 3x3", "dense 1x5"):
                yield Layer(kind, channels, channels, size, stride=2)
            for kind in ("depthwise 3x3", "dense 1x5", "pointwise"):
                yield Layer(kind, channels, channels, size, outputs=5)


def rows(settings: Settings) -> Iterator[Row]:
    """One row a formulation that can express the layer."""
    for case in cases(settings):
        yield from measure(case, settings)


def cases(settings: Settings) -> Iterator[Case]:
    """One case a layer, for 30 samples."""
    samples = 3 if settings.scale == "smoke" else 30
    for layer in layers(settings.scale):
        taken = kernels.choose(_cotangent(layer, samples, "contiguous").shape, layer.geometry)
        yield Case(
            benchmark="sample-gradient",
            configuration={
                "layer": layer.kind,
                "channels_in": layer.channels_in,
                "channels": layer.channels,
                "size": layer.size,
                "stride": layer.stride,
                "outputs": layer.outputs,
                "samples": samples,
            },
            build=partial(calls, layer),
            samples=samples,
            warm_samples=2,
            methods=single_calls((BASELINE, *formulations(layer.geometry))),
            baselines=(BASELINE,),
            notes={taken: "chosen"},
            memory=False,
        )


def formulations(geometry: ConvGeometry) -> list[str]:
    """The names of the formulations that are exact for a geometry."""
    return ["grouped"] + ["correlate"] * geometry.depthwise + ["matrix"] * (geometry.groups == 1)


def calls(layer: Layer, memory_format: str, samples: int) -> dict[str, Call]:
    """Every formulation on one input and cotangent."""
    x = images(samples, channels=layer.channels_in, size=layer.size, memory_format=memory_format)
    cotangent, geometry = _cotangent(layer, samples, memory_format), layer.geometry
    every: dict[str, Call] = {
        BASELINE: partial(kernels.conv_sample_gradient_reference, x, cotangent, geometry),
        "grouped": partial(kernels._grouped, x, cotangent, geometry),
        "correlate": partial(kernels._correlate, x, cotangent, geometry),
        "matrix": partial(kernels._matrix, x, cotangent, geometry, False),
    }
    return {name: every[name] for name in (BASELINE, *formulations(geometry))}


def _cotangent(layer: Layer, samples: int, memory_format: str) -> Tensor:
    """(N, K, O, H', W'), each of the K cotangents in the memory format that a network's backward pass would give it."""
    side = -(-layer.size // layer.stride)
    parts = [torch.randn(samples, layer.channels, side, side, generator=stream(0, "cotangent", k)) for k in range(layer.outputs)]
    laid = [part.contiguous(memory_format=MEMORY_FORMATS[memory_format]).unsqueeze(1) for part in parts]
    return laid[0] if layer.outputs == 1 else torch.cat(laid, 1)
