"""Reading a run directory back, whoever wrote it: limited in size, and a broken file is a line in ``problems``, not an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import ConfigurationError
from engine.runs.files import read_regular
from engine.spaces.genotype import Genotype

MAX_FILE = 2_000_000
MAX_LOG = 200_000_000
MARKERS = ("config.toml", "metrics.jsonl", "scores.jsonl", "genotype.json", "result.json")


@dataclass
class RunFiles:
    """The files of a run directory that a report is made of; what is missing is empty."""

    name: str
    config: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    genotype: Genotype | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The events of ``metrics.jsonl`` that end a round of a search."""
        return [record for record in self.metrics if record.get("event") == "round"]


def read_run(directory: Path, *, scores: bool = True) -> RunFiles:
    """Read the run in ``directory``, ``scores=False`` without its largest file; :class:`ConfigurationError` if there is none."""
    if not any((directory / name).is_file() for name in MARKERS):
        raise ConfigurationError(f"{directory} holds no run; name a directory that a command left with --out")
    run = RunFiles(directory.resolve().name)
    run.config = _read(run, directory / "config.toml", str, "")
    run.environment = _read(run, directory / "env.json", _json_object, {})
    run.result = _read(run, directory / "result.json", _json_object, {})
    run.genotype = _read(run, directory / "genotype.json", Genotype.from_json, None)
    run.metrics = _read(run, directory / "metrics.jsonl", lambda text: _json_lines(run, "metrics.jsonl", text), [], MAX_LOG)
    if scores:
        run.scores = _read(run, directory / "scores.jsonl", lambda text: _json_lines(run, "scores.jsonl", text), [], MAX_LOG)
    return run


def _read(run: RunFiles, path: Path, parse: Callable[[str], Any], missing: Any, limit: int = MAX_FILE) -> Any:
    try:
        data = read_regular(path, limit)
        if len(data) > limit:
            raise ValueError(f"larger than {limit} bytes")
        return parse(data.decode())
    except FileNotFoundError:
        return missing
    except (OSError, ValueError, RecursionError) as error:
        run.problems.append(f"{path.name} was left out: {error}")
        return missing


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _json_lines(run: RunFiles, name: str, text: str) -> list[dict[str, Any]]:
    records, broken = [], 0
    for line in text.rstrip("\n").split("\n") if text else ():
        try:
            records.append(_json_object(line))
        except (ValueError, RecursionError):
            broken += 1
    if broken:
        run.problems.append(f"{name}: {broken} unreadable lines were left out")
    return records


def number(value: Any) -> float | None:
    """Return a number of a log, spelled-out NaN and infinities included; ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def objects(value: Any) -> list[dict[str, Any]]:
    """Return the JSON objects of a list; none for anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
