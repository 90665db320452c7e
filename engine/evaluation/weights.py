"""Trained weights as a safetensors file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from engine.runs.files import replace_file


def save_weights(path: Path, network: nn.Module) -> None:
    """Write the state dict of a network atomically; :meth:`engine.spaces.network.CellNetwork.load` reads it back."""
    from safetensors.torch import save

    tensors = {
        name: t.detach().cpu().contiguous(memory_format=torch.contiguous_format) for name, t in network.state_dict().items()
    }
    replace_file(path, save(tensors))
