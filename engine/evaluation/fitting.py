"""From options and images to a trained network: what the supervised recipes share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.data.image_set import ImageSet
from engine.evaluation.networks import make_network
from engine.evaluation.options import SGDOptions
from engine.evaluation.training import Trainer, Training, count_steps, train_steps
from engine.evaluation.weights import save_weights
from engine.runs.config import rewrite_config
from engine.runs.streams import stream
from engine.spaces.genotype import Genotype
from engine.spaces.network import CellNetwork

if TYPE_CHECKING:
    from engine.runs.run import Loaded, Run


class Fitted(NamedTuple):
    """A finished training: ``state`` is what checkpoints hold beside ``tensors``, ``{"step", "cpu_seconds", ...}``."""

    steps: int
    network: nn.Module
    state: dict[str, Any]
    tensors: dict[str, Tensor]


def fit(
    options: SGDOptions, data: ImageSet, genotype: Genotype | None, loaded: Loaded | None, run: Run, stop: Any, progress: Any
) -> Fitted:
    """Train the network of the options on the split ``train`` of ``data``, from its start or from ``loaded``.

    A length in epochs or seconds is turned into steps once and written into the run's config.toml; the weights lie in
    ``weights.safetensors`` once they are trained.
    """
    state, tensors = loaded or ({"step": 0, "cpu_seconds": 0.0}, {})
    network = build(options, genotype, data)
    if options.steps is None:
        options = replace(options, steps=count_steps(options, data, network))
        rewrite_config(run, options)
    trainer = Trainer(options, data, network)
    carry_out(trainer, genotype, state, tensors, run, stop, progress)
    save_weights(run.directory / "weights.safetensors", network)
    return Fitted(trainer.total, network, state, trainer.tensors())


def carry_out(
    trainer: Training,
    genotype: Genotype | None,
    state: dict[str, Any],
    tensors: dict[str, Tensor],
    run: Run,
    stop: Any,
    progress: Any,
) -> None:
    """Run a training to its end from where ``state`` and ``tensors`` (none at the start) say it was stopped."""
    if genotype is not None:
        run.write_text("genotype.json", genotype.to_json())
    if tensors:
        trainer.load(tensors)
    with progress(trainer.total, "training", done=state["step"]) as bar:
        for record in train_steps(trainer, run, stop, state):
            bar.advance(**{name: record[name] for name in ("loss", "accuracy") if record})


def build(options: SGDOptions, genotype: Genotype | None, data: ImageSet) -> nn.Module:
    """The network of the options with an output for each training class, and the weights that their seed draws."""
    network = make_network(
        options,
        genotype,
        classes=len(data.classes("train")),
        channels_in=data.images.shape[1],
        size=data.images.shape[-1],
        generator=stream(options.seed, "weights"),
        auxiliary=options.auxiliary > 0,
        noise=options.draws_noise,
    )
    if isinstance(network, CellNetwork):
        with torch.no_grad():  # images too small for the tower are refused before anything is written
            network.eval().training_logits(torch.zeros(1, *data.images.shape[1:]))
    return network.to(data.images.device)
