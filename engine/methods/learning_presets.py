"""Presets of MAML, ANIL, BOIL and Meta-ticket: the published configurations and experiments. No torch here.

Configurations are those of reference note meta-ticket, section 6. Experiments compare methods; each has a ``-small`` variant of
minutes on a CPU, which shows how the command works and no published number. The paper does not say for which inner learning
rates it draws Figure 2; those here are a choice.
"""

from __future__ import annotations

from typing import Any

_LONG = {"iterations": 30_000, "validate_every": 1000, "validation_tasks": 200, "test_tasks": 1000, "batch": 4}
_OMNIGLOT = {**_LONG, "data": "omniglot", "network": "5-mlp", "size": 28, "inner_rate": 0.4, "test_steps": 3, "warmup": 1000}
_COLOUR = {**_LONG, "network": "5-mlp", "size": 32, "inner_rate": 0.5, "warmup": 100}
_MINI = {**_LONG, "data": "miniimagenet", "size": 84, "inner_rate": 0.3, "warmup": 1000, "outer_rate_adamw": 6e-4}
_CONSTANT = {
    **_OMNIGLOT,
    "factor": 4,
    "inner_steps": 3,
    "batch": 32,
    "iterations": 60_000,
    "outer": "adamw",
    "outer_rate_adamw": 0.1,
    "prune_output": True,
    "constant": 1.0,
    "warmup": 0,
}

_FIVE = "maml,anil,boil,meta-ticket,meta-ticket+boil"
_FIGURE_2 = {**_COLOUR, "data": "cifar-fs", "compare": "maml,meta-ticket", "vary": "inner_rate=0.1,0.3,0.5,1.0"}
_FIGURE_3 = {**_OMNIGLOT, "compare": "maml,meta-ticket,meta-ticket+iterand", "vary": "factor=1,2,4,8", "seeds": 3}
_FIGURE_4 = {**_CONSTANT, "compare": "meta-ticket,meta-ticket+untrained", "seeds": 3}
_TABLE_1 = {
    **_COLOUR,
    "data": "cifar-fs",
    "compare": _FIVE,
    "vary": "data=cifar-fs,vgg-flower",
    "also_test": "cifar-fs,vgg-flower,aircraft",
    "seeds": 3,
}
_TABLE_2 = {**_MINI, "compare": _FIVE, "vary": "network=resnet12,wrn28-10", "also_test": "cub,cars", "seeds": 3}
_SMALL = {"iterations": 300, "warmup": 10, "validate_every": 50, "validation_tasks": 25, "test_tasks": 200, "seeds": 1}

LEARNING_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "small": {"data": "omniglot", "size": 28, "test_steps": 3},
    "omniglot": _OMNIGLOT,
    "cifar-fs": {**_COLOUR, "data": "cifar-fs"},
    "vgg-flower": {**_COLOUR, "data": "vgg-flower"},
    "miniimagenet-resnet12": {**_MINI, "network": "resnet12"},
    "miniimagenet-wrn28-5": {**_MINI, "network": "wrn28-5"},
    "miniimagenet-wrn28-10": {**_MINI, "network": "wrn28-10"},
    "constant": _CONSTANT,
    "constant-random-mask": {**_CONSTANT, "sparsity": 0.5, "iterations": 0},
    "figure-2": _FIGURE_2,
    "figure-2-small": {**_FIGURE_2, **_SMALL},
    "figure-3": _FIGURE_3,
    "figure-3-20way": {**_FIGURE_3, "ways": 20},
    "figure-3-small": {**_FIGURE_3, **_SMALL},
    "figure-4": _FIGURE_4,
    "figure-4-small": {**_FIGURE_4, **_SMALL, "factor": 1, "batch": 8},
    "table-1": _TABLE_1,
    "table-1-small": {**_TABLE_1, **_SMALL},
    "table-2": _TABLE_2,
    "table-2-small": {**_TABLE_2, **_SMALL, "network": "conv4", "vary": "", "size": 32, "iterations": 60, "validate_every": 20},
}
