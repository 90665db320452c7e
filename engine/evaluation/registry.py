"""The training recipes by name. No torch here."""

from __future__ import annotations

from engine.evaluation.options import RFSOptions
from engine.evaluation.supervised_options import SupervisedOptions
from engine.methods.registry import Command, Method

RECIPES = {
    "rfs": Method(
        "rfs",
        RFSOptions,
        "engine.evaluation.rfs:train",
        "supervised training on the base classes, then a classifier on frozen features",
        command="train",
    ),
    "supervised": Method(
        "supervised",
        SupervisedOptions,
        "engine.evaluation.supervised:train",
        "ordinary classification of held-out images: the DARTS family's evaluation",
        command="train",
    ),
}

TRAIN = Command("Train a network, test it and leave a run directory.", RECIPES, "rfs")
