"""A rank of a torchrun group in test_metanas_ranks.py: rank 1 of the first attempt sends itself a signal in a step."""

from __future__ import annotations

import os
import signal
import sys

import torch

from engine.methods.metanas import MetaTraining
from engine.search import main


def interrupt_once(number: int, at: int) -> None:
    """Let rank 1 of the first attempt send itself a signal in step ``at``."""
    plain = MetaTraining.advance

    def mortal(self, step):
        if step == at:
            os.kill(os.getpid(), number)
        return plain(self, step)

    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
        MetaTraining.advance = mortal


if __name__ == "__main__":
    name, at, *words = sys.argv[1:]
    torch.set_num_threads(1)
    interrupt_once(getattr(signal, name), int(at))
    sys.exit(main(words))
