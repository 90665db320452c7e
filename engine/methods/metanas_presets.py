"""Presets of MetaNAS. No torch here.

``table4-*`` are Table 4 of the MetaNAS appendix, ``scripts-*`` what its released scripts set instead, which ``--faithful`` goes
with (reference note on MetaNAS, section 3); ``paper-large-*`` is Section 5.2.
"""

from __future__ import annotations

from typing import Any

_PUBLISHED = {
    "meta_schedule": "constant",
    "meta_batch": 10,
    "batch": 20,
    "rate": 1e-3,
    "test_steps": 100,
    "eval_every": 500,
    "eval_tasks": 5_000,
}
_LONG = {**_PUBLISHED, "meta_epochs": 30_000, "warm_up": 15_000, "steps": 5}
_MINI = {**_LONG, "data": "miniimagenet", "train_shots": 15, "architecture_rate": 1e-3, "t_min": 0.1, "channels": 14}
_OMNIGLOT = {**_LONG, "data": "omniglot", "ways": 20, "train_shots": 10, "architecture_rate": 5e-4, "t_min": 0.05, "channels": 14}
_SCRIPTS = {"train_shots": 15, "drop_path": 0.2, "channels": 28}
# DARTS's search (50 epochs of 25,000 images), whose defaults the appendix names.
_TABLE_3 = {
    "single_task": True,
    "sparse": "every",
    "data": "cifar10",
    "batch": 64,
    "rate": 0.025,
    "architecture_rate": 3e-4,
    "decay": 3e-4,
}
_LARGE = {
    **_PUBLISHED,
    "meta_epochs": 100_000,
    "meta_batch": 5,
    "meta_schedule": "cosine",
    "decay": 1e-4,
    "channels": 96,
    "cells": 5,
    "test_steps": 50,
}
# A few CPU minutes of Omniglot; rates were chosen on validation classes.
_SMALL = {
    "meta_epochs": 70,
    "warm_up": 6,
    "meta_batch": 3,
    "batch": 10,
    "train_shots": 5,
    "queries": 15,
    "eval_every": 10,
    "eval_tasks": 40,
    "validation_tasks": 3,
}
# Baselines whose steps are cheaper take more of them in the same CPU seconds.
_COMPARE = {**_SMALL, "data": "omniglot", "network": "compare", "repeats": 3, "random_epochs": 130, "conv4_epochs": 480}
# Half an hour of CPU: every step sees as many images as classes, single tasks take the place of a meta-batch.
_COMPARE_20_WAY = {
    **_COMPARE,
    "ways": 20,
    "shots": 5,
    "queries": 5,
    "meta_batch": 1,
    "batch": 20,
    "test_batch": 20,
    "meta_epochs": 200,
    "random_epochs": 320,
    "conv4_epochs": 1000,
    "eval_every": 25,
    "eval_tasks": 30,
    "validation_tasks": 2,
}

METANAS_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "small": _SMALL,
    "compare": _COMPARE,
    "compare-20-way": _COMPARE_20_WAY,
    "table3": {**_TABLE_3, "cells": 8, "channels": 16, "size": 32, "steps": 19_500, "eval_every": 1_950, "repeats": 3},
    "table3-small": {
        **_TABLE_3,
        "channels": 8,
        "size": 16,
        "steps": 600,
        "rate": 0.05,
        "architecture_rate": 5e-3,
        "eval_every": 200,
    },
    "table4-mini": _MINI,
    "table4-omniglot": _OMNIGLOT,
    "scripts-mini": {**_MINI, **_SCRIPTS, "test_batch": 5},
    "scripts-omniglot": {**_OMNIGLOT, **_SCRIPTS, "rate": 5e-3, "architecture_rate": 5e-3},
    "paper-large-mini": {**_LARGE, "data": "miniimagenet", "network": "in-v2", "steps": 8, "batch": 10, "train_shots": 15},
    "paper-large-omniglot": {
        **_LARGE,
        "data": "omniglot",
        "ways": 20,
        "network": "og-v2",
        "steps": 10,
        "batch": 20,
        "train_shots": 10,
        "rate": 5e-4,
    },
}
