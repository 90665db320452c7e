"""Configuration: options on the command line > configuration file > preset > defaults. No torch here."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import count, pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigurationError
from engine.methods.options import INVOCATION, RunOptions, flag, suggestion
from engine.methods.registry import SEARCH, Command, Method, find_method
from engine.runs.files import read_regular
from engine.runs.options_parser import option_text, option_types, parse_options

if TYPE_CHECKING:
    from engine.runs.run import Run

MAX_BYTES = 1_000_000
CONFIG_NAME = "config.toml"
RUNS = Path("runs")

# What a resumed run may be told anew: how the command behaves, where the data lies now, what a NaN does.
_FREE_ON_RESUME = INVOCATION | {"data_root", "nonfinite"}


def choose(argv: Sequence[str], command: Command = SEARCH) -> tuple[Method, list[str]]:
    """Split a command line into its method and the options.

    The method is the first word; without one it is that of the file given by ``--config``, or of the run in ``--out``
    that is to be resumed, and otherwise the default.
    """
    if argv and not argv[0].startswith("-"):
        return find_method(argv[0], command.methods), list(argv[1:])
    path, out = _last_value(argv, "--config"), _last_value(argv, "--out")
    if path is None and out is not None and "--resume" in argv and (Path(out) / CONFIG_NAME).is_file():
        path = str(Path(out) / CONFIG_NAME)
    written = _read_toml(Path(path)).get("method", command.default) if path else command.default
    if not isinstance(written, str):
        raise ConfigurationError(f"{path}: method: expected text, got {written}")
    if ":" in written:
        raise ConfigurationError(
            f"{path}: a file may not import code; give the method {written!r} as the first word of the command"
        )
    return find_method(written, command.methods), list(argv)


def restarted(argv: Sequence[str]) -> list[str]:
    """``argv``, with ``--resume`` if torchrun has restarted the group and ``--out`` holds what the attempt before saved."""
    out = _last_value(argv, "--out")
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and out is not None and "--resume" not in argv
    return [*argv, "--resume"] if again and (Path(str(out)) / CONFIG_NAME).is_file() else list(argv)


def _last_value(argv: Sequence[str], option: str) -> str | None:
    """The value that parsing will give to an option, found before it is known whose options these are."""
    value = None
    for word, following in pairwise([*argv, ""]):
        if word == option and following and not following.startswith("-"):
            value = following
        elif word.startswith(f"{option}="):
            value = word.partition("=")[2] or None
    return value


def resolve(method: str | Method, argv: Sequence[str], command: Command = SEARCH) -> RunOptions:
    """The options of a run, checked: those of ``argv`` (without the method) over the file, the preset and the defaults.

    With ``--resume`` they are those of the run that is resumed, whose directory is then in ``out``.
    """
    method = find_method(method, command.methods) if isinstance(method, str) else method
    flags = parse_options(method.options, argv, prog=_prog(method), description=_description(method, command))
    file = from_toml(method, Path(flags["config"])) if flags.get("config") else {}
    _refuse_code(flags.get("config"), file, flags)
    given = {**file, **flags}
    return _resumed(method, given) if given.get("resume") else _layer(method, given)


def _refuse_code(path: str | Path | None, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """A file may name a space or an oracle of the user's own only if the command line does too: importing runs code (design rule
    8)."""
    for name in ("space", "oracle"):
        value = stored.get(name)
        if isinstance(value, str) and ":" in value and given.get(name) != value:
            raise ConfigurationError(
                f"{path}: a file may not import code; add {flag(name)} {value} to the command if it is yours"
            )


def _layer(method: Method, values: Mapping[str, Any]) -> RunOptions:
    preset = method.options.preset_values(values.get("preset", method.options.preset))
    options = method.options(**{**preset, **values})
    options.validate()
    return options


def _resumed(method: Method, given: Mapping[str, Any]) -> RunOptions:
    """The options written in the run; one that was given and contradicts them is a :class:`ConfigurationError`."""
    out = Path(given["out"]) if given.get("out") else _latest_directory(method, _layer(method, given))
    path = out / CONFIG_NAME
    if not path.is_file():
        raise ConfigurationError(f"{out} holds no run to resume; leave out --resume or give the --out of a run")
    stored = from_toml(method, path)
    _refuse_code(path, stored, given)
    options = _layer(method, {**stored, **{key: given[key] for key in _FREE_ON_RESUME & given.keys()}, "out": str(out)})
    for name, value in given.items():
        written = getattr(options, name)
        # none and auto leave the choice to the run
        if name not in _FREE_ON_RESUME and value not in (None, "auto", written):
            message = f"{flag(name)} {option_text(value)} contradicts {path}, which has {option_text(written)}"
            raise ConfigurationError(f"{message}; leave the option out or start a new run")
    return options


def _default_directories(method: Method, options: RunOptions) -> Iterator[Path]:
    """``runs/METHOD-DATA-SEED``, ``...-2``, ``...-3`` and so on."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{method.name}-{options.data}-{options.seed}")
    yield RUNS / name
    for number in count(2):
        yield RUNS / f"{name}-{number}"


def free_directory(method: Method, options: RunOptions) -> Path:
    """The first default run directory that is not there yet."""
    return next(path for path in _default_directories(method, options) if not path.exists())


def _latest_directory(method: Method, options: RunOptions) -> Path:
    """The last default run directory before the free one; the first if none is there."""
    existing = list(takewhile(Path.exists, _default_directories(method, options)))
    return existing[-1] if existing else next(_default_directories(method, options))


def from_toml(method: Method, path: Path) -> dict[str, Any]:
    """Read the options of a configuration file; a key or a value that does not fit is a :class:`ConfigurationError`."""
    values = _read_toml(path)
    written = values.pop("method", method.name)
    if written != method.name:
        raise ConfigurationError(f"{path}: it is for the method {written!r}, not {method.name!r}")
    kinds = option_types(method.options)
    del kinds["config"]
    for key, value in values.items():
        if key not in kinds:
            raise ConfigurationError(f"{path}: unknown key {key!r}; {suggestion(key, kinds, f'see {_prog(method)} --help')}")
        try:
            values[key] = kinds[key].from_value(value)
        except ValueError:
            raise ConfigurationError(f"{path}: {key}: expected {kinds[key].label}, got {value!r}") from None
    return values


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        content = read_regular(path, MAX_BYTES)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot read the configuration ({error.strerror})") from None
    if len(content) > MAX_BYTES:
        raise ConfigurationError(f"{path}: larger than a configuration file can be ({MAX_BYTES} bytes)")
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: not a TOML file ({error})") from None


def to_toml(method: str, options: RunOptions) -> str:
    """The method and its resolved options as TOML that ``--config`` reads back to the same options.

    Left out are the options that say how one command behaves (``INVOCATION``), and those that are ``None`` unless the preset
    says otherwise, where ``"none"`` is written.
    """
    import tomli_w

    preset = options.preset_values(options.preset)
    values: dict[str, Any] = {"method": method}
    for field in fields(options):
        value = getattr(options, field.name)
        if value is None and preset.get(field.name, field.default) is not None:
            value = "none"
        if field.name not in INVOCATION and value is not None:
            values[field.name] = value
    return tomli_w.dumps(values)


def command_line(method: Method, path: Path) -> str:
    """The command that repeats the run whose config.toml is ``path``: its preset, and what differs from that."""
    stored = from_toml(method, path)
    preset = {"preset": stored.get("preset", method.options.preset)}
    usual = method.options(**{**method.options.preset_values(preset["preset"]), **preset})
    words = ["python", "-m", f"engine.{method.command}", *([] if method.name == method.command else [method.name])]
    if preset["preset"] != method.options.preset:
        words += ["--preset", preset["preset"]]
    for name, value in stored.items():
        if value != getattr(usual, name):
            words += [flag(name), option_text(value)]
    return shlex.join(words)


def rewrite_config(run: Run, options: RunOptions) -> None:
    """Put changed options into the config.toml of a run, such as a width that had to be halved; the lead of the ranks does."""
    if not run.ranks.lead:
        return
    method = _read_toml(run.directory / CONFIG_NAME)["method"]
    run.write_text(CONFIG_NAME, to_toml(method, options))


def _prog(method: Method) -> str:
    return f"engine {method.command} {method.name}"


def _description(method: Method, command: Command) -> str:
    rows = "\n".join(f"  {name:<15} {known.help}" for name, known in command.methods.items())
    return (
        f"{command.summary} Below: the options of {method.name}.\n\n"
        f"methods, as the first word ({command.default} if none is given):\n{rows}\n"
        f"  MODULE:NAME     a method of your own\n\npresets: {', '.join(method.options.presets)}"
    )
