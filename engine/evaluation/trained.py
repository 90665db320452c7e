"""The trained network of a run directory of engine train."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import nn

from engine.errors import ConfigurationError
from engine.evaluation.networks import find_genotype, make_network
from engine.evaluation.options import NetworkOptions
from engine.evaluation.registry import RECIPES
from engine.runs.config import CONFIG_NAME, from_toml
from engine.runs.records import read_run
from engine.runs.streams import stream
from engine.spaces.network import CellNetwork, load_weights

LARGEST = 100_000  # pixels, channels and classes that a file may ask for


class TrainedNetwork(NamedTuple):
    """A network in inference mode, without auxiliary tower, and the shape (C, H, W) of one normalised image."""

    network: nn.Module
    shape: tuple[int, int, int]


def load_trained(directory: Path) -> TrainedNetwork:
    """Build the network of a finished run and take its weights; :class:`ConfigurationError` on anything else.

    Nothing that the files name is imported: a genotype of a space of your own is loaded with
    ``build_network(genotype, space=...).load(...)``.
    """
    run = read_run(directory, scores=False)
    recipe = _recipe(directory, run.config)
    options = cast(NetworkOptions, RECIPES[recipe].options(**from_toml(RECIPES[recipe], directory / CONFIG_NAME)))
    if options.space is not None:
        raise ConfigurationError(
            f"{directory}: its space is {options.space!r}, and a file may not import code; build it yourself"
        )
    classes, shape = run.result.get("train_classes"), run.result.get("input")
    if not (_is_size(classes) and isinstance(shape, list) and len(shape) == 3 and all(map(_is_size, shape))):
        raise ConfigurationError(f"{directory} holds no finished training (result.json: train_classes, input); resume it first")
    network = make_network(
        options,
        find_genotype(options.network, directory),
        classes=cast(int, classes),
        channels_in=shape[0],
        size=shape[-1],
        generator=stream(0, "replaced"),
        auxiliary=getattr(options, "auxiliary", 0.0) > 0,
    )
    load_weights(network, directory / "weights.safetensors")
    if isinstance(network, CellNetwork):
        network.auxiliary = None
    return TrainedNetwork(network.eval(), (shape[0], shape[1], shape[2]))


def _recipe(directory: Path, config: str) -> str:
    try:
        method = tomllib.loads(config).get("method")
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{directory / CONFIG_NAME}: not a TOML file ({error})") from None
    if method not in RECIPES:
        raise ConfigurationError(f"{directory} holds a run of {method!r}, not a training; name what engine train left")
    return str(method)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST
