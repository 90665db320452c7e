"""Coverage-guided fuzzing of the same targets by atheris, if it is installed: ``python tests/fuzz/guided.py TARGET [OPTIONS]``.

Options are libFuzzer's, such as ``-max_total_time=600`` or a folder that keeps what was found. Without arguments the targets are
listed. An input that makes a reader raise anything but the library's own errors is a finding, kept as ``crash-...``.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.errors import ConfigurationError, EngineError

sys.path.insert(0, str(Path(__file__).parent))


def main(arguments: Sequence[str]) -> int:
    """Fuzz one target until libFuzzer ends."""
    from targets import TARGETS

    if not arguments:
        print(*TARGETS, sep="\n")
        return 0
    name, *options = arguments
    if name not in TARGETS:
        raise ConfigurationError(f"target: unknown {name!r}; known are {', '.join(TARGETS)}")
    try:
        import atheris
    except ImportError:
        raise ConfigurationError("guided fuzzing needs atheris; pip install atheris") from None
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(TARGETS[name].seeds()):
            (corpus / f"seed-{number}").write_bytes(seed)
        atheris.instrument_all()
        atheris.Setup([sys.argv[0], str(corpus), *options], one_input(TARGETS[name].read, Path(folder) / "in"))
        atheris.Fuzz()
    return 0


def one_input(read: Callable[[Path, bytes], object], folder: Path) -> Callable[[bytes], None]:
    """What is called with every input."""

    def meet(content: bytes) -> None:
        folder.mkdir()
        try:
            with contextlib.suppress(EngineError), contextlib.redirect_stdout(io.StringIO()):
                read(folder, content)
        finally:
            shutil.rmtree(folder)

    return meet


if __name__ == "__main__":
    from engine.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
