"""The search methods by name. No torch here: a method's module is imported when it is about to run.

A method's module holds two functions. ``search(options, run, stop, progress) -> dict`` does the work: it writes to ``run``
(:class:`engine.runs.run.Run`), calls ``stop.check()`` where it can be resumed, reports to ``progress(total, title)``, and
returns what goes to result.json; a method that found an architecture returns its
:class:`~engine.spaces.genotype.Genotype` under ``"genotype"``.
``plan(options) -> list[tuple[str, str]]`` returns labelled rows for ``--dry-run``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from engine.errors import ConfigurationError
from engine.methods.darts_options import DartsOptions
from engine.methods.lamanas_options import LamanasOptions
from engine.methods.learning_options import ANILOptions, BOILOptions, MAMLOptions, MetaTicketOptions
from engine.methods.metanas_options import MetaNASOptions
from engine.methods.options import (
    CellOptions,
    EpisodeOptions,
    MetaNTKNASOptions,
    RegionOptions,
    RunOptions,
    TENASOptions,
    suggestion,
)
from engine.methods.pcdarts_options import PcdartsOptions
from engine.methods.pdarts_options import PdartsOptions
from engine.methods.prdarts_options import PrdartsOptions
from engine.methods.robust_options import RobustOptions
from engine.methods.sinusoid_options import SinusoidOptions
from engine.methods.tetlo_options import TetloOptions


@dataclass(frozen=True)
class Method:
    """A search method: its name, the class of its options, ``module:function`` of its search, and a line of help.

    ``shares_work`` says that its search deals its work to the ranks of a group (``run.ranks``), so that torchrun may start it.
    ``command`` is the command that runs it.
    """

    name: str
    options: type[RunOptions]
    target: str
    help: str
    shares_work: bool = False
    command: str = "search"

    def load_search(self) -> Callable[..., dict[str, Any]]:
        """Import the search function."""
        return _import(self.target, f"method {self.name!r}")

    def load_plan(self) -> Callable[[Any], list[tuple[str, str]]]:
        """Import the function ``plan`` beside the search function."""
        return _import(f"{self.target.partition(':')[0]}:plan", f"plan of method {self.name!r}")


DEFAULT_METHOD = "metantk-nas"
METHODS: dict[str, Method] = {}


def register_method(name: str, options: type[RunOptions], target: str, help: str, *, shares_work: bool = False) -> Method:
    """Add a method; a name that is taken is a :class:`ConfigurationError`."""
    if name in METHODS:
        raise ConfigurationError(f"method {name!r} exists already; choose another name")
    METHODS[name] = Method(name, options, target, help, shares_work)
    return METHODS[name]


@dataclass(frozen=True)
class Command:
    """A command that runs one method of a table and leaves a run directory: what ``--help`` says of it, and its default
    method."""

    summary: str
    methods: Mapping[str, Method]
    default: str


SEARCH = Command("Search an architecture and leave a run directory.", METHODS, DEFAULT_METHOD)


def find_method(name: str, methods: Mapping[str, Method] = METHODS) -> Method:
    """Look a method up by name, or import the :class:`Method` given as ``package.module:NAME``."""
    if name in methods:
        return methods[name]
    if ":" not in name:
        raise ConfigurationError(f"unknown method {name!r}; {suggestion(name, methods)}")
    method = _import(name, "method")
    if not isinstance(method, Method):
        raise ConfigurationError(f"method: {name!r} is a {type(method).__name__}, not an engine.methods.registry.Method")
    return replace(method, name=name)  # under this name a configuration file finds it again


def _import(path: str, what: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigurationError(f"{what}: cannot import {path!r} ({error})") from error


_PRUNING = "engine.methods.metantk_nas:search"
register_method(
    "metantk-nas", MetaNTKNASOptions, _PRUNING, "prune a supernet by MetaNTK condition and linear regions", shares_work=True
)
register_method("te-nas", TENASOptions, _PRUNING, "prune by NTK condition and linear regions", shares_work=True)
register_method("linear-regions", RegionOptions, _PRUNING, "prune by linear regions only", shares_work=True)
register_method("metantk-only", EpisodeOptions, _PRUNING, "prune by MetaNTK condition only", shares_work=True)
register_method("random", CellOptions, "engine.methods.random_search:search", "draw a genotype at random")
register_method("darts", DartsOptions, "engine.methods.darts:search", "descend on a softmax over operations")
register_method(
    "pcdarts", PcdartsOptions, "engine.methods.pcdarts:search", "descend with a part of the channels and weighted edges"
)
register_method(
    "robust-darts",
    RobustOptions,
    "engine.methods.robust:search",
    "darts with drop path, fading skips, perturbations, early stopping",
)
register_method("pdarts", PdartsOptions, "engine.methods.pdarts:search", "deepen in stages and drop operations on the way")
register_method("prdarts", PrdartsOptions, "engine.methods.prdarts:search", "descend on gates, with paths and groups regularised")
register_method(
    "tetlo", TetloOptions, "engine.methods.tetlo:search", "descend so that an auxiliary model learns from the main one"
)
_METANAS = "engine.methods.metanas:search"
register_method("metanas", MetaNASOptions, _METANAS, "meta-learn weights and architecture together", shares_work=True)
_LAMANAS = "engine.methods.lamanas:search"
register_method("lamanas", LamanasOptions, _LAMANAS, "metanas with a loss that is meta-learned too", shares_work=True)
_MAML = "engine.methods.maml:search"
register_method("maml", MAMLOptions, _MAML, "meta-learn an initialisation that tasks are learned from", shares_work=True)
register_method("anil", ANILOptions, _MAML, "MAML whose inner loop adapts the head only", shares_work=True)
register_method("boil", BOILOptions, _MAML, "MAML whose inner loop adapts the features only", shares_work=True)
_TICKET = "engine.methods.meta_ticket:search"
register_method("meta-ticket", MetaTicketOptions, _TICKET, "meta-learn the mask of a random network", shares_work=True)
_SINUSOID = "engine.methods.sinusoid:search"
register_method("sinusoid", SinusoidOptions, _SINUSOID, "meta-learn regressions, by MAML and by a ticket", shares_work=True)
