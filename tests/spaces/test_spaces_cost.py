from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.errors import ConfigurationError
from engine.spaces.cost import Cost, count, count_module
from engine.spaces.genotype import CellGenotype, Connection, Genotype
from engine.spaces.network import build_network
from engine.spaces.space import FEW_SHOT
from engine.spaces.supernet import Supernet

SUPERNET = FEW_SHOT.genotype(FEW_SHOT.alive())


def path(shift: int) -> Genotype:
    """One operation an edge."""
    alive = [[[o == (3 * e + 5 * k + shift) % 7 + 1 for o in range(8)] for e in range(9)] for k in range(2)]
    return FEW_SHOT.genotype(alive)


def counted(model: nn.Module, x: torch.Tensor) -> int:
    """Multiply-adds of a forward pass, added up layer by layer from the shapes that pass."""
    macs = 0

    def add(module: nn.Module, inputs: object, y: torch.Tensor) -> None:
        nonlocal macs
        macs += y[0, 0].numel() * module.weight.numel() if isinstance(module, nn.Conv2d) else module.weight.numel()

    handles = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    model.eval()(x)
    for handle in handles:
        handle.remove()
    return macs


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("options", [{"norm": "batchnorm"}, {"norm": "groupnorm16", "tail": True}], ids=["trained", "scored"])
def test_agrees_with_a_network_that_runs(shift, options):
    shape = {"channels": 16, "cells": 3, "classes": 6, **options}
    network = build_network(path(shift), **shape)
    found = count(path(shift), size=9, **shape)
    assert found.parameters == sum(p.numel() for p in network.parameters())
    assert found.macs == counted(network, torch.zeros(1, 3, 9, 9))
    assert found.flops == 2 * found.macs


def test_maps_may_shrink_to_one_pixel():
    """Where batch statistics of a single image would not exist."""
    shape = {"channels": 4, "cells": 3, "classes": 6}
    assert count(path(0), size=1, **shape).macs == counted(build_network(path(0), **shape), torch.zeros(1, 3, 1, 1))


def test_by_hand():
    cell = CellGenotype((Connection(0, 2, "sep_conv_3x3"),), (2,))
    genotype = Genotype(FEW_SHOT.name, (("normal", cell), ("reduction", cell)))
    found = count(genotype, channels=4, cells=1, size=5, classes=10)
    stem, preprocess, separable, head = 4 * 3 * 9, 2 * 16, 2 * (4 * 9 + 16), 40
    norms = 2 * 4 * (1 + 2 + 2)
    assert found == Cost(stem + preprocess + separable + head + 10 + norms, 25 * (stem + preprocess + separable) + head)


@pytest.mark.parametrize(("cells", "millions", "gigamacs"), [(5, 12.72, 1.63), (8, 19.22, 2.6)])
def test_published_supernets(cells, millions, gigamacs):
    """Reference note, sections 1 and 10: 48.9 and 77.9 GMAC for 30 images."""
    found = count(SUPERNET, channels=48, cells=cells, size=32, classes=5, norm="groupnorm16", tail=True)
    assert int((found.parameters - 577 * 5) / 1e4) / 100 == millions
    assert round(found.macs / 1e9, 2) == gigamacs
    with torch.device("meta"):
        supernet = Supernet(FEW_SHOT, cells=cells, channels=48, outputs=5)
    assert found.parameters == sum(p.numel() for p in supernet.parameters())


def test_holds_no_data_and_draws_nothing(monkeypatch):
    state = torch.get_rng_state()
    monkeypatch.setattr(nn.Conv2d, "forward", checked(nn.Conv2d.forward))
    count(path(0), channels=16, cells=2, size=8, classes=3)
    assert torch.equal(torch.get_rng_state(), state)


def checked(forward):
    def on_meta(self, x):
        assert x.is_meta
        assert self.weight.is_meta
        return forward(self, x)

    return on_meta


def test_count_module_takes_any_model_and_the_whole_batch():
    model = nn.Sequential(nn.Conv2d(2, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 4, bias=False))
    found = count_module(model, torch.zeros(5, 2, 5, 5))
    assert found == Cost(6 * 9 + 6 + 54 * 4, 5 * (9 * 6 * 9 + 54 * 4))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("bad", "message"), [({"size": 0}, "size must be"), ({"cells": 0}, "cells"), ({"norm": "x"}, "norm")])
def test_errors(bad, message):
    with pytest.raises(ConfigurationError, match=message):
        count(path(0), **{"channels": 16, "cells": 2, "size": 8, "classes": 3, **bad})
