"""Few-shot neural architecture search: scores of untrained networks, search spaces, searches.

The names below are imported when they are first used, so ``import engine`` costs milliseconds and loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import ConfigurationError, EngineError, Interrupted, MissingDataError, NumericalError, Preempted

if TYPE_CHECKING:
    from engine.scoring.condition import condition_number
    from engine.scoring.kernels import nngp, ntk
    from engine.scoring.meta import metantk
    from engine.scoring.meta_regression import maml_regression, meta_kernel
    from engine.scoring.regions import linear_regions
    from engine.scoring.score import score
    from engine.spaces.genotype import Genotype
    from engine.spaces.network import build_network

_HOMES = {
    "Genotype": "engine.spaces.genotype",
    "build_network": "engine.spaces.network",
    "condition_number": "engine.scoring.condition",
    "linear_regions": "engine.scoring.regions",
    "maml_regression": "engine.scoring.meta_regression",
    "meta_kernel": "engine.scoring.meta_regression",
    "metantk": "engine.scoring.meta",
    "nngp": "engine.scoring.kernels",
    "ntk": "engine.scoring.kernels",
    "score": "engine.scoring.score",
}

__all__ = [
    "ConfigurationError",
    "EngineError",
    "Genotype",
    "Interrupted",
    "MissingDataError",
    "NumericalError",
    "Preempted",
    "build_network",
    "condition_number",
    "linear_regions",
    "maml_regression",
    "meta_kernel",
    "metantk",
    "nngp",
    "ntk",
    "score",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    """The installed distribution's version; a checkout that was never installed has none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("nas-engine")
    except PackageNotFoundError:
        return "0+unknown"
