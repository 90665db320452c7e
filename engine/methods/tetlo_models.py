"""The two models of a TETLO search: what they compute from flat weights, and which of these they share (note, 6.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from engine.errors import ConfigurationError
from engine.learning.bilevel import FlatNetwork
from engine.learning.hypergradient import Loss
from engine.methods.darts_base import Base, Pass
from engine.methods.darts_data import Batch, Halves
from engine.methods.tetlo_options import TetloOptions
from engine.runs.streams import stream
from engine.spaces.resnets import fixed_encoder
from engine.spaces.supernet import initialise


class Seen(NamedTuple):
    """What a model makes of images."""

    features: Tensor  # (B, F)
    logits: Tensor  # (B, K)


@dataclass(frozen=True)
class Model:
    """An encoder and a head as a function of flat weights (P,) and the architecture; ``base`` None: it is not searched."""

    network: FlatNetwork
    start: Tensor
    base: Base | None

    def __call__(self, w: Tensor, a: Tensor, images: Tensor, where: Pass) -> Seen:
        """Images (B, C, H, W) in the pass ``where`` -> what it makes of them."""
        return Seen(*self.network(w, images, None if self.base is None else self.base.mixture(a, where)))

    @property
    def width(self) -> int:
        """Features F that the classifier reads."""
        return next(shape[1] for name, shape in self.network.layout.shapes if name.endswith("classifier.weight"))

    def architecture(self, a: Tensor) -> Tensor:
        """What of the architecture parameters it has: all, or an empty tensor."""
        return a.new_empty(0) if self.base is None else a


class Models(NamedTuple):
    """Both models; the first ``shared`` weights are the same in either."""

    main: Model
    auxiliary: Model
    shared: int


def build_models(options: TetloOptions, data: Halves, base: Base) -> Models:
    """The main model, and the auxiliary one that the options ask for, with weights drawn by address.

    The main model is the encoder whatever the auxiliary one: the supernet without its last cell. A tied auxiliary model has its
    last cell and its head for itself (``es`` and ``att``: its head alone), an untied one shares nothing. Features of two widths
    that a transfer would subtract are a :class:`ConfigurationError`.
    """
    channels_in, _, size = data.data.images.shape[1:]
    encoder = base.encoder(outputs=data.classes, channels_in=channels_in)
    seeds = stream(options.seed, "weights", *base.address), stream(options.seed, "weights", "main", *base.address)
    if options.auxiliary == "tied":
        auxiliary = _searched(encoder, base, seeds[0], options)
        apart = (f"cells.{base.cells - 2}", "projection", "tail_norm", "classifier")
        own = tuple(f"supernet.{part}." for part in (apart[-1:] if options.objective in ("es", "att") else apart))
        shared = sum(p.numel() for name, p in encoder.named_parameters() if not name.startswith(own))
    else:
        network = fixed_encoder(
            options.auxiliary,
            seeds[0],
            outputs=data.classes,
            channels_in=channels_in,
            size=size,
            width=options.auxiliary_width,
            strided=options.stem == "imagenet",
        )
        flat = FlatNetwork(network.to(options.device))
        auxiliary, shared = Model(flat, flat.start, None), 0
    main = _searched(encoder, base, seeds[1], options)
    if options.transfer == "regembed" and main.width != auxiliary.width:
        raise ConfigurationError(
            f"--transfer regembed compares features of one width, and the main model has {main.width}, the auxiliary one "
            f"{auxiliary.width}; choose another transfer, or --auxiliary-width and --channels that agree"
        )
    return Models(main, auxiliary, shared)


def class_loss(model: Model, batch: Batch, where: Pass, measure: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """What ``measure`` makes of a model's logits and the labels, as a function of its own weights and the architecture."""
    return lambda w, a: measure(model(w, a, batch.images, where).logits, batch.labels)


def _searched(encoder: nn.Module, base: Base, generator: torch.Generator, options: TetloOptions) -> Model:
    initialise(encoder, generator, kaiming=False)
    flat = FlatNetwork(encoder.to(options.device))
    return Model(flat, flat.start, base)
