"""Tangent kernels of the GroupNorm few-shot supernet and of a single-path cell net (32x32, 30 samples, five cells).

The baseline is one training step on the same batch. Peers that keep all per-sample gradients are measured at 16 channels, and at
48 with ``--full``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

from bench.measure import Case, measure, single_calls
from bench.networks import everything, images, space_of, supernet
from bench.peers import HAS_OPACUS, OPACUS_FORMATS, opacus_gradients, opacus_module, sample_loop, training_step, vmap_gradients
from bench.registry import Settings
from bench.rows import Row
from bench.timing import Call
from engine.scoring.kernels import ntk

BASELINE = "training step"
OWN = ("ntk sum", "ntk sum, chunks of a third", "ntk all")
PEERS = ("vmap(grad)", "loop over samples", *(("opacus",) if HAS_OPACUS else ()))


def rows(settings: Settings) -> Iterator[Row]:
    """One row a method for both networks at each width."""
    for case in cases(settings):
        yield from measure(case, settings)


def cases(settings: Settings) -> Iterator[Case]:
    """Both networks at 16 and 48 channels."""
    smoke = settings.scale == "smoke"
    cells, size, samples = (2, 8, 4) if smoke else (5, 32, 30)
    for channels in (16,) if smoke else (16, 48):
        for network in ("supernet", "path"):
            peers = PEERS if channels == 16 or settings.scale == "full" else ()
            yield Case(
                benchmark="ntk",
                configuration={"network": network, "cells": cells, "channels": channels, "size": size, "samples": samples},
                build=partial(calls, network, cells, channels, size),
                samples=samples,
                warm_samples=2,
                methods=single_calls((BASELINE, *OWN, *peers)),
                baselines=(BASELINE,),
            )


def calls(network: str, cells: int, channels: int, size: int, memory_format: str, samples: int) -> dict[str, Call]:
    """Everything that is measured on one network and one batch."""
    space = space_of(network)
    model = supernet(space, cells=cells, channels=channels, memory_format=memory_format)
    x, mixture = images(samples, size=size, memory_format=memory_format), everything(space)
    found: dict[str, Call] = {
        "training step": partial(training_step, model, x, mixture),
        "ntk sum": partial(ntk, model, (x, mixture)),
        "ntk sum, chunks of a third": partial(ntk, model, (x, mixture), chunk=-(-samples // 3)),
        "ntk all": partial(ntk, model, (x, mixture), "all"),
        "vmap(grad)": partial(vmap_gradients, model, x, mixture),
        "loop over samples": partial(sample_loop, model, x, mixture),
    }
    if HAS_OPACUS and memory_format in OPACUS_FORMATS:
        found["opacus"] = partial(opacus_gradients, opacus_module(copy.deepcopy(model)), x, mixture)
    return found
