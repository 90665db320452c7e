"""Several runs of one command: which option they vary, and what one of them is called. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from engine.errors import ConfigurationError
from engine.methods.options import INVOCATION, RunOptions
from engine.runs.options_parser import option_types

NEVER_VARIED = INVOCATION | {"compare", "vary", "seeds", "seed", "preset", "device", "threads", "data_root"}


def variation(text: str, kind: type[RunOptions]) -> tuple[str, list[Any]]:
    """Name and values of a ``--vary`` such as ``inner_rate=0.1,0.4``; ("", []) where it is empty.

    What is no option of ``kind`` with values of its type is a :class:`ConfigurationError`.
    """
    if not text:
        return "", []
    name, equals, given = text.partition("=")
    name, kinds = name.strip().replace("-", "_"), option_types(kind)
    if not equals or name not in kinds or name in NEVER_VARIED:
        raise ConfigurationError(f"--vary: {text!r} is not an option and its values, such as inner_rate=0.1,0.4")
    try:
        return name, [kinds[name].from_text(value.strip()) for value in given.split(",")]
    except ValueError as error:
        raise ConfigurationError(f"--vary: {given!r}: {error}") from None


@dataclass(frozen=True)
class Job:
    """One run of a study: what the method is called there, the value of the varied option (None without one), the method and
    its options."""

    label: str
    value: Any
    method: str
    options: Any

    @property
    def folder(self) -> str:
        """Where the run lies below the study's."""
        value = "" if self.value is None else f"-{self.value}"
        return re.sub(r"[^A-Za-z0-9._+-]+", "_", f"{self.label}{value}-{self.options.seed}")
