"""The training recipes by name. No torch here."""

from __future__ import annotations

from engine.evaluation.meta_options import ANILOptions, MAMLOptions, MetaTicketOptions, ReptileOptions
from engine.evaluation.options import RFSOptions
from engine.evaluation.supervised_options import SupervisedOptions
from engine.methods.registry import Command, Method

_META = "engine.evaluation.meta:train"

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
    "maml": Method("maml", MAMLOptions, _META, "meta-learn an initialisation, then as rfs", command="train"),
    "anil": Method("anil", ANILOptions, _META, "MAML that adapts the head only, then as rfs", command="train"),
    "reptile": Method("reptile", ReptileOptions, _META, "move to where tasks are learned, then as rfs", command="train"),
    "meta-ticket": Method("meta-ticket", MetaTicketOptions, _META, "meta-learn a mask, then as rfs", command="train"),
}

TRAIN = Command("Train a network, test it and leave a run directory.", RECIPES, "rfs")
