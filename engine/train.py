"""The train command: build a genotype's network or a reference network, train it, test it on few-shot tasks.

``python -m engine.train [RECIPE] [OPTIONS]``, or ``engine train``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from engine.cli import run_command
from engine.evaluation.registry import TRAIN
from engine.search import start


def main(argv: Sequence[str] | None = None) -> int:
    """Train and test one network and return the exit code; raises :class:`~engine.errors.EngineError` on what a user can mend."""
    return start(TRAIN, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
