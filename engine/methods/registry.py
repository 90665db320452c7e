"""The search methods by name. No torch here: a method's module is imported when it is about to run.

A method's module holds two functions. ``search(options, run, stop, progress) -> dict`` does the work: it writes to ``run``
(:class:`engine.runs.run.Run`), calls ``stop.check()`` where it can be resumed, reports to ``progress(total, title)``, and
returns what goes to result.json; a method that found an architecture returns its
:class:`~engine.spaces.genotype.Genotype` under ``"genotype"``.
``plan(options) -> list[tuple[str, str]]`` returns labelled rows for ``--dry-run``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from engine.errors import ConfigurationError
from engine.methods.options import (
    CellOptions,
    EpisodeOptions,
    MetaNTKNASOptions,
    RegionOptions,
    SearchOptions,
    TENASOptions,
    suggestion,
)


@dataclass(frozen=True)
class Method:
    """A search method: its name, the class of its options, ``module:function`` of its search, and a line of help."""

    name: str
    options: type[SearchOptions]
    target: str
    help: str

    def load_search(self) -> Callable[..., dict[str, Any]]:
        """Import the search function."""
        return _import(self.target, f"method {self.name!r}")

    def load_plan(self) -> Callable[[Any], list[tuple[str, str]]]:
        """Import the function ``plan`` beside the search function."""
        return _import(f"{self.target.partition(':')[0]}:plan", f"plan of method {self.name!r}")


DEFAULT_METHOD = "metantk-nas"
METHODS: dict[str, Method] = {}


def register_method(name: str, options: type[SearchOptions], target: str, help: str) -> Method:
    """Add a method; a name that is taken is a :class:`ConfigurationError`."""
    if name in METHODS:
        raise ConfigurationError(f"method {name!r} exists already; choose another name")
    METHODS[name] = Method(name, options, target, help)
    return METHODS[name]


def find_method(name: str) -> Method:
    """Look a method up by name, or import the :class:`Method` given as ``package.module:NAME``."""
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise ConfigurationError(f"unknown method {name!r}; {suggestion(name, METHODS)}")
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
register_method("metantk-nas", MetaNTKNASOptions, _PRUNING, "prune a supernet by MetaNTK condition and linear regions")
register_method("te-nas", TENASOptions, _PRUNING, "prune by NTK condition and linear regions")
register_method("linear-regions", RegionOptions, _PRUNING, "prune by linear regions only")
register_method("metantk-only", EpisodeOptions, _PRUNING, "prune by MetaNTK condition only")
register_method("random", CellOptions, "engine.methods.random_search:search", "draw a genotype at random")
