"""Which runs a comparison of meta-learners consists of, and with which options. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, cast

from engine.errors import ConfigurationError
from engine.methods.learning_options import (
    ANILOptions,
    BOILOptions,
    LearningOptions,
    MAMLOptions,
    MetaTicketOptions,
    OuterOptions,
)
from engine.methods.options import INVOCATION, suggestion
from engine.methods.sinusoid_options import LearnerName, SinusoidOptions
from engine.methods.study_options import Job

METHODS: Mapping[str, type[OuterOptions]] = {
    "maml": MAMLOptions,
    "anil": ANILOptions,
    "boil": BOILOptions,
    "meta-ticket": MetaTicketOptions,
}


def rerand_every(options: MetaTicketOptions) -> int:
    """Outer steps between new draws of pruned weights: a thirtieth of all, as published, unless the options say it."""
    if options.rerand_every is None and options.cpu_seconds is not None:
        raise ConfigurationError("--compare: +iterand with --cpu-seconds needs --rerand-every, since the steps are not known yet")
    return options.rerand_every or max(1, options.iterations // 30)


VARIANTS: Mapping[str, Callable[[MetaTicketOptions], dict[str, Any]]] = {
    "boil": lambda options: {"boil": True},
    "iterand": lambda options: {"rerand_every": rerand_every(options)},
    "pruneout": lambda options: {"prune_output": True},
    "untrained": lambda options: {"sparsity": 0.5, "iterations": 0, "cpu_seconds": None},
}
_OF_THE_STUDY = INVOCATION | {"compare", "vary", "seeds", "seed", "preset"}


def jobs(options: OuterOptions) -> list[Job]:
    """The runs of a comparison, method by method; without names in ``compare``, of the options' own method.

    A method takes its own values of the preset, and over them what was set for the comparison otherwise. Options that a method
    does not have are not told to it.
    """
    name, values = options.varied
    labels = [label.strip() for label in (options.compare or options.label).split(",")]
    found = []
    for label in labels:
        for value in values or [None]:
            for seed in range(options.seed, options.seed + options.seeds):
                chosen = method_options(options, label)
                if name and name not in {field.name for field in fields(chosen)}:
                    raise ConfigurationError(f"--vary: {label} has no option {name}; compare methods that have it")
                chosen = replace(chosen, seed=seed, **({name: value} if name else {}))
                chosen = with_other_data(chosen)
                chosen.validate()
                found.append(Job(label, value, chosen.method, chosen))
    if len({job.folder for job in found}) < len(found):
        raise ConfigurationError(f"--compare {options.compare!r}, --vary {options.vary!r}: name each method and value once")
    return found


def method_options(options: OuterOptions, label: str) -> OuterOptions:
    """The options of one method of a comparison."""
    if isinstance(options, SinusoidOptions):
        if label not in METHODS:
            raise ConfigurationError(f"--compare: unknown method {label!r}; {suggestion(label, METHODS)}")
        return replace(options, learner=cast(LearnerName, label), compare="", vary="", seeds=1)
    base, *variants = label.split("+")
    if base not in METHODS:
        raise ConfigurationError(f"--compare: unknown method {base!r}; {suggestion(base, METHODS)}")
    kind = METHODS[base]
    expected = type(options)(**type(options).preset_values(options.preset))
    changed = {f.name: getattr(options, f.name) for f in fields(options) if getattr(options, f.name) != getattr(expected, f.name)}
    names = {field.name for field in fields(kind)} - _OF_THE_STUDY
    given = {name: value for name, value in {**kind.preset_values(options.preset), **changed}.items() if name in names}
    found = kind(**given, preset=options.preset)
    for variant in variants:
        if variant not in VARIANTS or not isinstance(found, MetaTicketOptions):
            raise ConfigurationError(f"--compare: {label!r}: only meta-ticket has variants, {', '.join(VARIANTS)}")
        found = replace(found, **VARIANTS[variant](found))
    return found


def with_other_data(options: OuterOptions) -> OuterOptions:
    """The options without their own data set among those that are tested too."""
    if not isinstance(options, LearningOptions):
        return options
    return replace(options, also_test=",".join(name for name in options.others if name != options.data))
