"""The console script ``engine``, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from engine.errors import ConfigurationError, EngineError
from engine.methods.options import suggestion

COMMANDS = {
    "search": ("engine.search", "search an architecture"),
    "train": ("engine.train", "train a genotype or a reference network and test it on few-shot tasks"),
    "evidence": ("engine.evidence", "correlate scores with the accuracies of a table of trained architectures"),
    "compare": ("engine.compare", "compare methods under one protocol"),
    "export": ("engine.export", "write a trained network for torch.export or ONNX"),
    "data": ("engine.data.__main__", "list and check data sets"),
    "runs": ("engine.runs.__main__", "list, show, compare and follow runs, write their reports"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. ``engine NAME ...`` does what ``python -m engine.NAME ...`` does."""
    return run_command(_dispatch, sys.argv[1:] if argv is None else argv)


def _dispatch(argv: Sequence[str]) -> int:
    name, *rest = argv or [""]
    if name in ("-h", "--help"):
        rows = "\n".join(f"  {command:<8} {text}" for command, (_, text) in COMMANDS.items())
        print(f"usage: engine COMMAND ...\n\n{rows}\n\nengine COMMAND --help tells more; engine --version names the version.")
        return 0
    if name == "--version":
        import engine

        print(f"engine {engine.__version__}")
        return 0
    if name not in COMMANDS:
        what = f"unknown command {name!r}" if name else "no command given"
        raise ConfigurationError(f"{what}; {suggestion(name, COMMANDS)}")
    # A user's own method or space is looked for beside the user, as python -m does.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return import_module(COMMANDS[name][0]).main(rest)


def run_command(command: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Call ``command(argv)`` and return its exit code.

    An :class:`EngineError` becomes ``error: <message>`` on stderr and its own code, Ctrl-C becomes 130; a reader that closed
    the pipe ends the command quietly with 141, as a shell would say it. What the operating system refused elsewhere (a folder
    that may not be read) is one line and 2. Other exceptions are bugs and pass through.
    """
    try:
        try:
            code = command(argv)
        except SystemExit as leaving:  # argparse and tyro leave so after --help
            code = int(leaving.code or 0)
        sys.stdout.flush()
        return code or 0
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends; let it go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
