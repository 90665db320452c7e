"""The training recipes by name. No torch here."""

from __future__ import annotations

from engine.evaluation.options import RFSOptions
from engine.methods.registry import Command, Method

RECIPES = {
    "rfs": Method(
        "rfs",
        RFSOptions,
        "engine.evaluation.rfs:train",
        "supervised training on the base classes, then a classifier on frozen features",
        command="train",
    )
}

TRAIN = Command("Train a network, test it on few-shot tasks and leave a run directory.", RECIPES, "rfs")
