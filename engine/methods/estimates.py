"""What one repeat of a first-order search estimates, and its form in checkpoints and between ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.scoring.result import Score


class Estimate(NamedTuple):
    """One repeat: the supernet's scores, and each candidate's estimated change of log kappa (None: unknown) and regions."""

    supernet: dict[str, Score]
    changes: list[float | None]
    regions: list[Score]


def estimate_to_json(found: Estimate) -> dict[str, Any]:
    """Plain JSON types, floats exact; :func:`estimate_from_json` reads them back."""
    return {
        "supernet": scores_to_json(found.supernet),
        "changes": [None if change is None else repr(change) for change in found.changes],
        "regions": [[repr(s.value), s.status, s.name] for s in found.regions],
    }


def estimate_from_json(value: Mapping[str, Any]) -> Estimate:
    """Read :func:`estimate_to_json`'s form."""
    regions = [Score(float(text), status, label) for text, status, label in value["regions"]]
    return Estimate(scores_from_json(value["supernet"]), [None if x is None else float(x) for x in value["changes"]], regions)


def scores_to_json(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Scores by name as plain JSON types; :func:`scores_from_json` reads them back."""
    return {name: [repr(s.value), s.status, s.name] for name, s in scores.items()}


def scores_from_json(value: Mapping[str, Any]) -> dict[str, Score]:
    """Read :func:`scores_to_json`'s form."""
    return {name: Score(float(text), status, label) for name, (text, status, label) in value.items()}
