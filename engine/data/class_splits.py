"""Class splits: the published lists (package data, their source inside each file) and a user's own ``split.json``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from engine.data.names import SPLITS
from engine.errors import ConfigurationError

MAX_BYTES = 5_000_000

Split = Mapping[str, tuple[str, ...]]


def published_split(name: str) -> Split | None:
    """Return {train, val, test: class names} of a named set, or None where no list is published with this library."""
    file = files("engine.data") / "splits" / f"{name}.json"
    return parse_split(file.read_text(encoding="utf-8"), str(file)) if file.is_file() else None


def user_split(path: Path) -> Split:
    """Return the class split of a user's JSON file of at most 5 MB: {"train": [class, ...], "val": [...], "test": [...]}."""
    if path.stat().st_size > MAX_BYTES:
        raise ConfigurationError(f"{path}: a split file of {path.stat().st_size} bytes is above the limit of {MAX_BYTES}")
    try:
        return parse_split(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text; write the split again") from error


def parse_split(text: str, name: str) -> Split:
    """Parse and check a split; a class in two places, a wrong type and broken JSON are a :class:`ConfigurationError`."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{name}: not readable JSON ({error})") from error
    if not isinstance(content, dict) or not any(split in content for split in SPLITS):
        raise ConfigurationError(f'{name}: expected {{"train": [class, ...], "val": [...], "test": [...]}}')
    split = {key: content.get(key, []) for key in SPLITS}
    for key, classes in split.items():
        if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
            raise ConfigurationError(f"{name}: {key!r} must be a list of class names (text)")
    times = Counter(c for classes in split.values() for c in classes)
    repeated = [c for c, count in times.items() if count > 1]
    if repeated:
        raise ConfigurationError(f"{name}: class {repeated[0]!r} is listed more than once")
    return {key: tuple(classes) for key, classes in split.items()}
