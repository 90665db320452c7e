"""All single-pass proxies of a NAS-Bench-201 network at once, against the dearest of them alone and against one call each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from bench.measure import Case, measure, single_calls
from bench.networks import MEMORY_FORMATS, images
from bench.registry import Settings
from bench.rows import Row
from bench.timing import Call
from engine.benchmarks.options import SETS
from engine.runs.streams import stream
from engine.scoring.proxies.scores import LabelledBatch, scores
from engine.spaces.nas_bench_201 import parse, to_genotype
from engine.spaces.network import build_network
from engine.spaces.supernet import initialise

BASELINE = "grasp"
ALONE = ("naswot", "snip", "jacov", "zen")
CLASSES = 10
CELL = "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"


def rows(settings: Settings) -> Iterator[Row]:
    """One row a method."""
    for case in cases(settings):
        yield from measure(case, settings)


def cases(settings: Settings) -> Iterator[Case]:
    """The benchmark's network, 15 cells from 16 channels, and 32 images."""
    smoke = settings.scale == "smoke"
    cells, size, samples = (3, 8, 4) if smoke else (15, 32, 32)
    yield Case(
        benchmark="proxies",
        configuration={"network": "nas-bench-201", "cells": cells, "channels": 16, "size": size, "samples": samples},
        build=partial(calls, cells, size),
        samples=samples,
        warm_samples=2,
        methods=single_calls((BASELINE, "all at once", "all, one call each", *ALONE)),
        baselines=(BASELINE,),
        memory=False,
    )


def calls(cells: int, size: int, memory_format: str, samples: int) -> dict[str, Call]:
    """Everything that is measured on one network and one batch."""
    model: nn.Module = build_network(to_genotype(parse(CELL)), channels=16, classes=CLASSES, cells=cells, tail=True)
    initialise(model, stream(0, "weights"))
    model = model.to(memory_format=MEMORY_FORMATS[memory_format])  # type: ignore[call-overload]
    batch = LabelledBatch(images(samples, size=size, memory_format=memory_format), torch.arange(samples) % CLASSES)
    cheap = SETS["cheap"]
    return {
        "all at once": partial(scores, model, batch, cheap),
        "all, one call each": lambda: {name: scores(model, batch, [name])[name] for name in cheap},
        **{name: partial(scores, model, batch, [name]) for name in (BASELINE, *ALONE)},
    }
