"""The export command: a trained network as one file for torch.export or ONNX.

``python -m engine.export RUN [--to torch|onnx] [--out FILE]``, or ``engine export``. The network maps normalised images
(B, C, H, W), any B, to the logits of its training classes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from engine.cli import run_command
from engine.errors import ConfigurationError

if TYPE_CHECKING:
    from engine.evaluation.trained import TrainedNetwork

NAMES = {"torch": "network.pt2", "onnx": "network.onnx"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; {self.prog} --help tells more")


def main(argv: Sequence[str] | None = None) -> int:
    """Export and return the exit code; raises :class:`~engine.errors.EngineError` on what a user can mend."""
    parser = _Parser(prog="engine export", description="Write the network of a finished run of engine train.")
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--to", choices=sorted(NAMES), default="torch", help="torch.export's program (default), or ONNX")
    parser.add_argument("--out", type=Path, help="the file; by default network.pt2 or network.onnx in the run directory")
    words = parser.parse_args(argv)
    out = words.out or words.run / NAMES[words.to]
    if words.to == "onnx":
        check_onnx()
    from engine.evaluation.trained import load_trained

    trained = load_trained(words.run)
    if not out.parent.is_dir():
        raise ConfigurationError(f"--out: there is no folder {out.parent}")
    (export_onnx if words.to == "onnx" else export_torch)(trained, out)
    print(out)
    return 0


def check_onnx() -> None:
    """Refuse what needs the extra where it is missing, before anything is loaded."""
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"--to onnx needs {' and '.join(missing)}; install the extra: pip install 'nas-engine[onnx]'")


def export_torch(trained: TrainedNetwork, out: Path) -> None:
    """Write a program that ``torch.export.load(out).module()`` runs; the batch is free, the image size is not."""
    import torch

    images = torch.zeros(2, *trained.shape)
    program = torch.export.export(trained.network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    torch.export.save(program, out)


def export_onnx(trained: TrainedNetwork, out: Path) -> None:
    """Write an ONNX model with input ``images`` and output ``logits``; the batch is free, the image size is not."""
    import torch

    torch.onnx.export(
        trained.network,
        (torch.zeros(2, *trained.shape),),
        out,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
    )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
