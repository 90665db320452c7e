"""Options on the command line and their types. No torch here, and tyro only where a command line is parsed.

Every value passes through :class:`OptionType`, so an option means the same on the command line and in a file.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from engine.errors import ConfigurationError
from engine.methods.options import RunOptions, flag, suggestion

_LABELS = {str: "text", int: "an integer", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class OptionType:
    """The values an option can take: of one basic type or of a few words, and possibly ``none``."""

    base: type
    choices: tuple[str, ...] = ()
    optional: bool = False

    @classmethod
    def of(cls, hint: Any) -> OptionType:
        """Read a type annotation; :class:`TypeError` if no option can have it."""
        optional = get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)
        if optional:
            hint = next(part for part in get_args(hint) if part is not type(None))
        if get_origin(hint) is Literal:
            return cls(str, get_args(hint), optional)
        if hint not in _LABELS:
            raise TypeError(f"an option cannot be of type {hint}; use str, int, float, bool or Literal words, possibly | None")
        return cls(hint, (), optional)

    @property
    def label(self) -> str:
        """What is expected, in words."""
        label = " or ".join(self.choices) if self.choices else _LABELS[self.base]
        return f"{label} or none" if self.optional else label

    @property
    def metavar(self) -> str:
        """What is expected, as short as help shows it."""
        word = "|".join(self.choices) if self.choices else self.base.__name__.upper()
        if self.base is bool:
            return "[true|false]"
        return f"{word}|none" if self.optional else word

    def from_text(self, text: str) -> Any:
        """Read a value as it is written on the command line; :class:`ValueError` if it cannot be one."""
        if self.base is str or (self.optional and text == "none"):
            return self.from_value(text)
        if self.base is bool:
            return text == "true" if text in ("true", "false") else self._refuse()
        return self.from_value(self.base(text))

    def from_value(self, value: Any) -> Any:
        """Check a value of a TOML file; :class:`ValueError` if it is of another type."""
        if self.optional and value == "none":
            return None
        if type(value) is int and not -(2**63) <= value < 2**63:
            self._refuse()  # TOML's integers have 64 bits
        if self.base is float and type(value) is int:
            return float(value)
        if type(value) is not self.base or (self.choices and value not in self.choices):
            self._refuse()
        if isinstance(value, str):
            value.encode()  # bytes of the command line that are not UTF-8 could not be written to config.toml
            if "\0" in value:
                self._refuse()  # no path can hold it
        return value

    def _refuse(self) -> NoReturn:
        raise ValueError(f"expected {self.label}")


def option_types(options: type[RunOptions]) -> dict[str, OptionType]:
    """The type of every option of a method, from the annotations of its options class."""
    return {name: OptionType.of(hint) for name, hint in _hints(options).items()}


def _hints(options: type[RunOptions]) -> dict[str, Any]:
    hints = get_type_hints(options)
    return {field.name: hints[field.name] for field in fields(options)}


def option_text(value: Any) -> str:
    """A value as the command line spells it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


class _Words(list[str]):
    """The words that followed an option on the command line."""


def parse_options(options: type[RunOptions], argv: Sequence[str], *, prog: str, description: str) -> dict[str, Any]:
    """The options that ``argv`` gives, and only those, as values of their types.

    ``--help`` prints and raises SystemExit. tyro hands every option over as the list of its words, so that mistakes are
    reported here, in one line each.
    """
    import tyro

    if "--" in argv:
        raise ConfigurationError("'--' has no meaning here; every option takes one value, leave it out")
    kinds = option_types(options)
    metavars = {hint: kinds[name].metavar for name, hint in _hints(options).items()}
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def words(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        if info.type not in metavars:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs="*",
            metavar=metavars[info.type],
            instance_from_str=_Words,
            is_instance=lambda value: True,
            str_from_instance=lambda value: [option_text(value)],
        )

    parsed, unknown = tyro.cli(
        options,
        prog=prog,
        description=description,
        args=list(argv),
        return_unknown_args=True,
        registry=registry,
        config=(tyro.conf.FlagConversionOff,),
    )
    if unknown:
        raise ConfigurationError(_unknown(unknown[0], kinds, prog))
    given = {name: value for name, value in vars(parsed).items() if isinstance(value, _Words)}
    return {name: _value(name, kinds[name], value) for name, value in given.items()}


def _value(name: str, kind: OptionType, words: Sequence[str]) -> Any:
    if kind.base is bool and not words:
        return True
    if len(words) != 1:
        got = f"got {' '.join(words)}" if words else "got none"
        raise ConfigurationError(f"{flag(name)}: expected one value ({kind.label}), {got}")
    try:
        return kind.from_text(words[0])
    except ValueError:
        raise ConfigurationError(f"{flag(name)}: expected {kind.label}, got {words[0]!r}") from None


def _unknown(word: str, kinds: Iterable[str], prog: str) -> str:
    if not word.startswith("-"):
        return f"unexpected {word!r}; the method comes first, and every option takes one value"
    name = word.partition("=")[0]
    return f"unknown option {name}; {suggestion(name, map(flag, kinds), f'see {prog} --help')}"
