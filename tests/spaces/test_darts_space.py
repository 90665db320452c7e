"""The DARTS space: its supernet against the golden numbers, discretisation, published cells."""

from __future__ import annotations

import darts_recipe as recipe
import pytest
import torch
from torch.nn import functional as F

from engine.errors import ConfigurationError
from engine.learning.bilevel import FlatNetwork
from engine.learning.hypergradient import architecture_gradient, both_gradients
from engine.runs.streams import stream
from engine.spaces.darts import PUBLISHED, SEARCHED, discretise, operation_counts, searched_space
from engine.spaces.darts_supernet import SoftmaxRelaxation, darts_supernet
from engine.spaces.draws import DrawnMixture, Draws
from engine.spaces.genotype import Genotype
from engine.spaces.network import build_network
from engine.spaces.space import DARTS

# Reference note tetlo-darts, section 7: 20 cells, C = 36, 10 classes, without the auxiliary head.
PARAMETERS = {
    "darts-v1": 3_169_414,
    "darts-v2": 3_349_342,
    "pdarts": 3_433_798,
    "prdarts": 3_444_814,
    "pcdarts-cifar": 3_634_678,
    "pcdarts-imagenet": 3_721_510,
}


def rows(value: float = 0.0) -> list[list[list[float]]]:
    return [[[value] * len(DARTS.operations) for _ in DARTS.edges] for _ in DARTS.kinds]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_cells_have_the_published_parameters(name: str) -> None:
    with torch.device("meta"):
        network = build_network(PUBLISHED[name], channels=36, classes=10, cells=20)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(("cells", "channels", "expected"), [(8, 16, 1_930_618), (5, 16, 1_275_834), (5, 4, 136_182)])
def test_supernet_parameters(cells: int, channels: int, expected: int) -> None:
    with torch.device("meta"):
        model = darts_supernet(DARTS, cells=cells, channels=channels, outputs=10)
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_golden_forward_and_first_order(memory_format: torch.memory_format) -> None:
    case = recipe.golden()["cases"]["darts_tiny_C4_L5_B4_S16"]
    model = darts_supernet(DARTS, cells=5, channels=4, outputs=10).double()
    recipe.fill(model)
    network, relaxation = FlatNetwork(model), SoftmaxRelaxation(DARTS)
    x, y = recipe.batch(4, 16, 2)
    assert y.tolist() == case["y_val"]
    x = x.contiguous(memory_format=memory_format)
    value, weights, architecture = both_gradients(
        lambda w, a: F.cross_entropy(network(w, x, relaxation(a)), y), network.start, recipe.alphas()
    )
    logits = network(network.start, x, relaxation(recipe.alphas()))
    torch.testing.assert_close(logits, torch.tensor(case["logits_val"], dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert float(value) == pytest.approx(case["loss_val"], rel=1e-12)
    assert float(weights.norm()) == pytest.approx(case["weight_grad_val_l2"], rel=1e-7)
    for k, kind in enumerate(("normal", "reduce")):
        wanted = torch.tensor(case["first_order"][kind], dtype=torch.float64)
        torch.testing.assert_close(architecture[k], wanted, rtol=0, atol=1e-8)


def test_golden_base_case_of_the_note() -> None:
    """C = 16, 8 cells, 32x32 (note, section 9), float64; its numbers are given as norms."""
    model = darts_supernet(DARTS, cells=8, channels=16, outputs=10).double()
    recipe.fill(model)
    network, relaxation = FlatNetwork(model), SoftmaxRelaxation(DARTS)
    x, y = recipe.batch(4, 32, 2)
    x = x.contiguous(memory_format=torch.channels_last)
    value, gradient = architecture_gradient(
        lambda w, a: F.cross_entropy(network(w, x, relaxation(a)), y), network.start, recipe.alphas()
    )
    assert float(value) == pytest.approx(2.4447713350717297, rel=1e-11)
    norms = gradient.flatten(1).norm(dim=1).tolist()
    assert norms == pytest.approx([0.22069812643033243, 0.08596617859271183], rel=1e-7)


def test_discretise_keeps_the_two_strongest_edges_and_never_none() -> None:
    strengths = rows(0.1)
    strengths[0][2][0] = 0.9  # none: not a choice
    strengths[0][4][7] = 0.5  # 2 -> 3 by dil_conv_5x5
    strengths[0][3][4] = 0.3  # 1 -> 3 by sep_conv_3x3
    found = discretise(DARTS, strengths)
    into_three = [c for c in found["normal"].connections if c.target == 3]
    assert into_three == [(1, 3, "sep_conv_3x3"), (2, 3, "dil_conv_5x5")]
    # All equal: the earlier edges and the earliest operation that is not none.
    assert [c for c in found["normal"].connections if c.target == 5] == [(0, 5, "max_pool_3x3"), (1, 5, "max_pool_3x3")]
    assert operation_counts(found)["normal"]["dil_conv_5x5"] == 1


@pytest.mark.parametrize("name", SEARCHED)
def test_sub_spaces_search_and_give_darts_cells(name: str) -> None:
    space = searched_space(name)
    relaxation = SoftmaxRelaxation(space)
    a = torch.randn(relaxation.shape, generator=torch.Generator().manual_seed(3))
    weights = relaxation(a).weights
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 14))
    assert bool((weights[~relaxation.alive] == 0).all())
    genotype = relaxation.genotype(a)
    space.check(genotype)
    allowed = {o for names in space.edge_operations.values() for o in names} or set(DARTS.operations)
    assert {c.operation for _, cell in genotype.cells for c in cell.connections} <= allowed - {"none"}
    model = darts_supernet(space, cells=3, channels=2, outputs=3)
    mixture = DrawnMixture.of(relaxation(a), Draws(lambda *place: stream(0, *place)))
    assert model(torch.randn(2, 3, 8, 8), mixture).shape == (2, 3)
    assert Genotype.from_json(genotype.to_json()) == genotype


def test_s3_counts_none_and_s2_does_not() -> None:
    shares = {
        name: SoftmaxRelaxation(searched_space(name))(torch.zeros(2, 14, 8)).weights[0, 0] for name in ("darts-s2", "darts-s3")
    }
    assert shares["darts-s2"].tolist() == [0, 0, 0, 0.5, 0.5, 0, 0, 0]
    assert shares["darts-s3"][0] == pytest.approx(1 / 3)


def test_bad_tables() -> None:
    with pytest.raises(ConfigurationError, match="channels"):
        darts_supernet(DARTS, cells=3, channels=5, outputs=3)
    with pytest.raises(ConfigurationError, match="known are darts"):
        searched_space("darts-s9")
    with pytest.raises(ConfigurationError, match="belongs to the space"):
        DARTS.check(Genotype("few-shot-cell", PUBLISHED["pdarts"].cells))
