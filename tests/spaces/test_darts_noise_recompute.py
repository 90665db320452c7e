"""RobustDARTS's S4, whose noise has addresses, and cells that are computed again for their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.errors import ConfigurationError
from engine.learning.bilevel import FlatNetwork
from engine.learning.hypergradient import Step, both_gradients, second_order
from engine.runs.streams import stream
from engine.spaces.darts import PUBLISHED, operation_counts, searched_space, without_noise
from engine.spaces.darts_supernet import DartsSupernet, Encoder, SoftmaxRelaxation
from engine.spaces.draws import DrawnMixture, Draws
from engine.spaces.genotype import CellGenotype, Connection, Genotype
from engine.spaces.mixture import Mixture
from engine.spaces.network import build_network
from engine.spaces.partial import PartialRelaxation
from engine.spaces.space import DARTS
from engine.spaces.supernet import initialise

S4 = searched_space("darts-s4")


def noisy(mixture: Mixture, step: int = 0, **rates: float) -> DrawnMixture:
    return DrawnMixture.of(mixture, Draws(lambda *place: stream(0, *place), ("weights", 0, step), **rates))


def test_noise_is_drawn_by_address_and_ignores_the_input() -> None:
    model, relaxation = DartsSupernet(S4, cells=2, channels=2, outputs=3), SoftmaxRelaxation(S4)
    assert relaxation.shape == (2, 14, 9)
    mixture = relaxation(torch.zeros(relaxation.shape))
    assert mixture.weights[0, 0].tolist() == [0, 0, 0, 0, 0.5, 0, 0, 0, 0.5]
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    one, again, other = (model(x, noisy(mixture, step)) for step in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    only = torch.zeros(2, 14, 9, dtype=torch.bool)
    only[..., 8] = True
    alone = Mixture(only.float(), only)
    assert torch.equal(model(x, noisy(alone)), model(2 * x, noisy(alone)))
    with pytest.raises(ValueError, match="noise is drawn"):
        model(x, mixture)


def test_noise_of_a_node_has_variance_of_its_weights() -> None:
    """Node 2 of the first cell is the sum of two edges of weight one: variance 2, as its norm-free output shows."""
    model = DartsSupernet(S4, cells=1, channels=8, outputs=3)
    only = torch.zeros(2, 14, 9, dtype=torch.bool)
    only[0, :2, 8] = True
    lanes = {kind: model._lane(Mixture(only.float(), only), k, 16) for k, kind in enumerate(S4.kinds)}
    x = torch.zeros(16, 3, 16, 16)
    drawn = model._drawn(x, lanes, Draws(lambda *place: stream(0, *place)))
    states = model.cells[0](torch.zeros(16, 24, 16, 16), torch.zeros(16, 24, 16, 16), drawn[0])
    assert float(states[:, :8].var()) == pytest.approx(2, abs=0.1)
    assert float(states[:, 8:].abs().max()) == 0


def test_cells_with_noise_are_found_but_not_built() -> None:
    a = torch.zeros(2, 14, 9)
    a[..., 8] = 1.0
    found = SoftmaxRelaxation(S4).genotype(a)
    assert found.space == "darts-s4"
    assert operation_counts(found)["normal"]["noise"] == 8
    assert Genotype.from_json(found.to_json()) == found
    with pytest.raises(ConfigurationError, match="belongs to the space 'darts-s4'"):
        DARTS.check(found)
    with pytest.raises(ConfigurationError):
        build_network(found, channels=4, classes=3, cells=2)
    mixed = CellGenotype((Connection(0, 2, "noise"), Connection(1, 2, "sep_conv_3x3")), (2, 3, 4, 5))
    left = without_noise(Genotype("darts-s4", (("normal", mixed), ("reduction", mixed))))
    assert [c.operation for c in left["normal"].connections] == ["sep_conv_3x3"]
    assert without_noise(PUBLISHED["pdarts"]) == PUBLISHED["pdarts"]


def mixtures() -> dict[str, Any]:
    softmax, partial = SoftmaxRelaxation(DARTS), PartialRelaxation(DARTS)
    return {
        "darts": (softmax.shape, {}, softmax),
        "drop path": (softmax.shape, {}, lambda a: noisy(softmax(a), drop_path=0.3, skip_dropout=0.5)),
        "partial": (partial.shape, {"partial": 2}, partial),
    }


@pytest.mark.parametrize("name", ["darts", "drop path", "partial"])
def test_computing_again_changes_no_bit(name: str) -> None:
    shape, structure, relaxation = mixtures()[name]
    a = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    images = torch.randn(2, 3, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(3)
    found: list[list[Tensor]] = []
    for recompute in (False, True):
        model = DartsSupernet(DARTS, cells=2, channels=4, outputs=3, recompute=recompute, **structure)
        initialise(model, stream(0, "weights"), kaiming=False)
        network = FlatNetwork(Encoder(model))
        w = network.start + 0.01  # not what the module itself holds

        def loss(x: Tensor, network: FlatNetwork = network) -> Any:
            return lambda weights, a: F.cross_entropy(network(weights, x, relaxation(a))[1], labels)

        value, of_weights, of_architecture = both_gradients(loss(images[0]), w, a)
        orders = [
            second_order(loss(images[0]), loss(images[1]), w, a, Step(0.1, 3e-4), hessian=hessian).gradient
            for hessian in ("exact", "finite-difference")
        ]
        found.append([value, of_weights, of_architecture, *orders])
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))
    assert bool(found[0][1].any())
