"""From the name on the command line to a network: genotypes, by file, run or name, and reference networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from engine.errors import ConfigurationError
from engine.evaluation.options import NetworkOptions
from engine.evaluation.published import GENOTYPES, KNOWN
from engine.evaluation.reference import res3, res5
from engine.methods.options import suggestion
from engine.spaces.darts import has_noise, with_units
from engine.spaces.genotype import Genotype
from engine.spaces.network import CellNetwork, build_network
from engine.spaces.networks import WRN28, Conv4, ResNet12
from engine.spaces.space import SPACES, get_space
from engine.spaces.supernet import initialise

RFS_WIDTHS = (64, 160, 320, 640)

REFERENCES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "conv4": lambda classes, channels_in, size: Conv4(classes, channels_in=channels_in, size=size, running=True),
    "res5": lambda classes, channels_in, size: res5(channels_in=channels_in, classes=classes),
    "res3": lambda classes, channels_in, size: res3(channels_in=channels_in, classes=classes),
    "resnet12": lambda classes, channels_in, size: ResNet12(classes, channels_in=channels_in, running=True),
    "resnet12-rfs": lambda classes, channels_in, size: ResNet12(
        classes, channels_in=channels_in, widths=RFS_WIDTHS, running=True
    ),
    "wrn28-10": lambda classes, channels_in, size: WRN28(classes, k=10, channels_in=channels_in, running=True),
}


def find_genotype(name: str, directory: Path) -> Genotype | None:
    """The genotype that ``name`` stands for; None where it is a reference network.

    Published names come first, then the genotype.json of the run in ``directory``, so that it goes on after the file it was
    started from has gone, then a genotype file, then a run directory; anything else is a :class:`ConfigurationError`.
    """
    if name in REFERENCES:
        return None
    if name in GENOTYPES:
        return GENOTYPES[name]
    for path in (directory / "genotype.json", Path(name), Path(name) / "genotype.json"):
        if path.is_file():
            return Genotype.load(path)
    if Path(name).is_dir():
        raise ConfigurationError(f"--network: {name} holds no genotype.json; name a run that found a genotype")
    raise ConfigurationError(f"--network: {name!r} is no file, run directory or known network; {suggestion(name, KNOWN)}")


def make_network(
    options: NetworkOptions,
    genotype: Genotype | None,
    *,
    classes: int,
    channels_in: int,
    size: int,
    generator: torch.Generator,
    auxiliary: bool = False,
    noise: bool = False,
) -> nn.Module:
    """Build the network with ``classes`` outputs and draw its weights from ``generator`` (see
    :func:`~engine.spaces.supernet.initialise`), in channels-last layout.

    ``auxiliary`` adds a genotype's auxiliary tower. ``noise`` says that every pass draws the noise of a cell of S4
    (:func:`engine.evaluation.noise.noise_lanes`); without it such a cell is a :class:`ConfigurationError`.
    """
    network: nn.Module
    if genotype is None:
        _check_size(options.network, classes, channels_in, size)
        network = REFERENCES[options.network](classes, channels_in, size)
    else:
        space = get_space(options.space) if options.space else None
        if has_noise(genotype):
            if not noise:
                raise ConfigurationError(
                    "--network: its cell draws noise in every pass, which engine train supervised alone does"
                )
            genotype, space = with_units(genotype)
        elif space is None and genotype.space not in SPACES:
            raise ConfigurationError(f"--network: its genotype is of the space {genotype.space!r}; add --space MODULE:NAME of it")
        network = build_network(
            genotype,
            channels=options.channels,
            cells=options.cells,
            pool=options.pool,
            stem=options.stem,
            auxiliary=auxiliary,
            classes=classes,
            channels_in=channels_in,
            space=space,
        )
    initialise(network, generator)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _check_size(name: str, classes: int, channels_in: int, size: int) -> None:
    """Refuse images that a reference network pools away, by a pass without numbers."""
    with torch.device("meta"), torch.no_grad():
        probe = REFERENCES[name](classes, channels_in, size).eval()
        try:
            probe(torch.empty(1, channels_in, size, size))
        except RuntimeError as error:
            raise ConfigurationError(f"--network: images of {size} pixels are too small for {name} ({error})") from None


def embed(network: nn.Module, images: Tensor) -> Tensor:
    """(B, C, H, W) -> the features (B, F) that the network's classifier reads."""
    if isinstance(network, CellNetwork):
        return network.features(images)
    return cast(Callable[[Tensor], Tensor], network.embed)(images)
