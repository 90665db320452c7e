"""Steps of a DARTS search against the same steps as modules are usually written, and TETLO's against DARTS's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import plain_darts
from bench.measure import Case, measure
from bench.registry import Settings
from bench.rows import Row
from bench.timing import Call
from engine.learning.bilevel import FlatNetwork
from engine.learning.hypergradient import Loss, Step, first_order, second_order, weight_gradient
from engine.learning.similarity import draw_quadruples, quadruple_similarity
from engine.learning.trilevel import Trilevel, hypergradient
from engine.runs.streams import stream
from engine.spaces.darts_supernet import SoftmaxRelaxation, darts_encoder, darts_supernet
from engine.spaces.space import DARTS
from engine.spaces.supernet import initialise

PLAIN = "plain modules"
RATE = 0.025
OUTPUTS = 10

# What is compared with the plain modules' own step, by the name of the step.
STEPS = {
    "weights": ("weights",),
    "first order": ("first order",),
    "second order": ("second order, exact", "second order, finite difference"),
}


def rows(settings: Settings) -> Iterator[Row]:
    """For each kind of step a row of what it is compared with and one of each form of the engine."""
    for case in cases(settings):
        yield from measure(case, settings)


def cases(settings: Settings) -> Iterator[Case]:
    """Sixteen images of 32x32 at 16 channels and 8 cells; a small network for the smoke test."""
    smoke = settings.scale == "smoke"
    shape = (3, 2, 8) if smoke else (8, 16, 32)
    samples = 2 if smoke else 16
    configuration = {"cells": shape[0], "channels": shape[1], "size": shape[2], "samples": samples}
    for name, forms in STEPS.items():
        yield Case(
            benchmark="darts",
            configuration={"step": name, **configuration},
            build=partial(calls, *shape),
            samples=samples,
            warm_samples=2,
            methods={PLAIN: {f"plain {name}": 1.0}, **{form: {form: 1.0} for form in forms}},
            baselines=(PLAIN,),
            memory=name == "second order" and not smoke,
        )
    for hessian in ("exact", "finite difference"):
        step = f"second order, {hessian}"
        yield Case(
            benchmark="darts",
            configuration={"step": "three levels", **configuration},
            build=partial(calls, *shape),
            samples=samples,
            warm_samples=2,
            methods={step: {step: 1.0}, f"tetlo, {hessian}": {f"tetlo, {hessian}": 1.0}},
            baselines=(step,),
            memory=not smoke,
        )


def calls(cells: int, channels: int, size: int, memory_format: str, samples: int) -> dict[str, Call]:
    """The plain modules with channels outermost, as they are usually run; the engine with channels innermost."""
    a = 1e-3 * torch.randn(2, len(DARTS.edges), len(DARTS.operations), generator=stream(0, "alphas"))
    batches = [torch.randn(samples, 3, size, size, generator=stream(0, "images", i)) for i in range(4)]
    labels = torch.arange(samples) % OUTPUTS
    if memory_format == "contiguous":
        model = plain_darts.PlainDarts(cells=cells, channels=channels, outputs=OUTPUTS)
        initialise(model, stream(0, "weights"))
        alphas = a.requires_grad_()
        train, validation = ((x, labels) for x in batches[:2])
        return {
            "plain weights": partial(plain_darts.weight_step, model, alphas, train),
            "plain first order": partial(plain_darts.first_order, model, alphas, validation),
            "plain second order": partial(plain_darts.second_order, model, alphas, train, validation, RATE),
        }
    batches = [x.contiguous(memory_format=torch.channels_last) for x in batches]
    return {
        **_darts(cells, channels, batches, labels, a),
        **_tetlo(cells, channels, batches, labels, a),
    }


def _darts(cells: int, channels: int, batches: list[Tensor], labels: Tensor, a: Tensor) -> dict[str, Call]:
    network = darts_supernet(DARTS, cells=cells, channels=channels, outputs=OUTPUTS)
    initialise(network, stream(0, "weights"))
    flat, relaxation = FlatNetwork(network), SoftmaxRelaxation(DARTS)

    def loss(x: Tensor) -> Loss:
        return lambda w, a: F.cross_entropy(flat(w, x, relaxation(a)), labels)

    training, validating = map(loss, batches[:2])
    w, step = flat.start, Step(RATE, 3e-4)
    return {
        "weights": partial(weight_gradient, training, w, a),
        "first order": partial(first_order, validating, w, a),
        "second order, exact": partial(second_order, training, validating, w, a, step),
        "second order, finite difference": partial(second_order, training, validating, w, a, step, hessian="finite-difference"),
    }


def _tetlo(cells: int, channels: int, batches: list[Tensor], labels: Tensor, a: Tensor) -> dict[str, Call]:
    """An architecture step of TETLO: encoders of all cells but one, as many pairs as the batch allows up to 300."""
    encoder = darts_encoder(DARTS, cells=cells - 1, of=cells, channels=channels, outputs=OUTPUTS)
    initialise(encoder, stream(0, "weights"))
    flat, relaxation = FlatNetwork(encoder), SoftmaxRelaxation(DARTS)
    pairs = min(300, len(labels) * (len(labels) - 1) // 2)
    quadruples = draw_quadruples(len(labels), pairs, stream(0, "pairs"))

    def loss(x: Tensor) -> Loss:
        return lambda w, a: F.cross_entropy(flat(w, x, relaxation(a))[1], labels)

    def features(w: Tensor, a: Tensor) -> Tensor:
        return flat(w, batches[1], relaxation(a))[0]

    def transfer(w: Tensor, a: Tensor, f: Tensor) -> Tensor:
        own, logits = flat(w, batches[1], relaxation(a))
        return F.cross_entropy(logits, labels) + 0.1 * quadruple_similarity(f, own, quadruples)

    levels = Trilevel(loss(batches[0]), features, transfer, loss(batches[2]), loss(batches[3]))
    model = (flat.start, a, Step(RATE, 3e-4))
    return {
        "tetlo, exact": partial(hypergradient, levels, model, model),
        "tetlo, finite difference": partial(hypergradient, levels, model, model, hessian="finite-difference"),
    }
