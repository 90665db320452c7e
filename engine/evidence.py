"""The evidence command: how good scores are, against a table of trained architectures.

``python -m engine.evidence --space nas-bench-201 --benchmark FILE``, or ``engine evidence``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from engine.benchmarks.options import EVIDENCE
from engine.cli import run_command
from engine.search import start


def main(argv: Sequence[str] | None = None) -> int:
    """Score architectures and return the exit code; raises :class:`~engine.errors.EngineError` on what a user can mend."""
    return start(EVIDENCE, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
