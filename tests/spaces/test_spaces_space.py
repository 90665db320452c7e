from __future__ import annotations

from dataclasses import replace

import pytest

from engine.errors import ConfigurationError
from engine.spaces import space as spaces
from engine.spaces.genotype import CellGenotype, Connection, Genotype
from engine.spaces.space import FEW_SHOT, SPACES, CellPlan, Space, dense_edges, get_space, register_space

PLAIN = Space("plain", ("none", "skip_connect"), 2, dense_edges(2), kinds=("normal",), reducing=())


def test_few_shot_space_is_the_published_table():
    assert FEW_SHOT.edges == ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3), (0, 4), (1, 4), (2, 4), (3, 4))
    assert sum(lives for kind in FEW_SHOT.alive() for row in kind for lives in row) == 126
    assert [FEW_SHOT.stride("reduction", e) for e in range(9)] == [2, 2, 2, 2, 1, 2, 2, 1, 1]
    assert [FEW_SHOT.stride("normal", e) for e in range(9)] == [1] * 9


@pytest.mark.parametrize(
    ("cells", "reductions"), [(1, ()), (2, (1,)), (3, (1, 2)), (4, (1, 2)), (5, (1, 3)), (6, (2, 4)), (8, (2, 5)), (20, (6, 13))]
)
def test_reductions_stand_at_thirds_of_the_depth(cells, reductions):
    assert FEW_SHOT.reductions(cells) == reductions
    assert tuple(i for i, plan in enumerate(FEW_SHOT.layout(cells, 4)) if plan.reduces) == reductions


def test_layout_of_five_cells():
    n, r = "normal", "reduction"
    assert FEW_SHOT.layout(5, 48) == (
        CellPlan(n, 48, (48, 48), False, False),
        CellPlan(r, 96, (48, 144), True, False),
        CellPlan(n, 96, (144, 288), False, True),
        CellPlan(r, 192, (288, 288), True, False),
        CellPlan(n, 192, (288, 576), False, True),
    )


def test_layout_of_the_thin_network():
    assert FEW_SHOT.layout(2, 1) == (
        CellPlan("normal", 1, (1, 1), False, False),
        CellPlan("reduction", 2, (1, 3), True, False),
    )
    assert FEW_SHOT.layout(2, 4, stem_channels=3)[0].channels_in == (3, 3)


def test_layout_follows_what_cells_concatenate():
    plans = FEW_SHOT.layout(3, 4, concatenated={"normal": 2, "reduction": 1})
    assert [plan.channels_in for plan in plans] == [(4, 4), (4, 8), (8, 8)]


def test_space_without_reductions_keeps_its_width():
    assert [(plan.kind, plan.channels, plan.reduces) for plan in PLAIN.layout(5, 4)] == [("normal", 4, False)] * 5


@pytest.mark.parametrize(("cells", "channels"), [(0, 16), (5, 0), (-1, 16)])
def test_layout_refuses_nothing(cells, channels):
    with pytest.raises(ConfigurationError, match="must be positive"):
        FEW_SHOT.layout(cells, channels)


def test_discretise():
    alive = [[[(e, o) in ((0, 1), (4, 7), (4, 2)) for o in range(8)] for e in range(9)], [[False] * 8 for _ in range(9)]]
    genotype = FEW_SHOT.genotype(alive)
    normal = (Connection(0, 2, "skip_connect"), Connection(2, 3, "conv_3x3"), Connection(2, 3, "sep_conv_3x3"))
    assert genotype["normal"] == CellGenotype(normal, (2, 3, 4))
    assert genotype["reduction"] == CellGenotype((), (2, 3, 4))
    FEW_SHOT.check(genotype)


def with_cell(connection: tuple[int, int, str], concat: tuple[int, ...] = (2, 3, 4)) -> Genotype:
    cell = CellGenotype((Connection(*connection),), concat)
    return Genotype("few-shot-cell", (("normal", cell), ("reduction", CellGenotype((), (2, 3, 4)))))


@pytest.mark.parametrize(
    ("genotype", "message"),
    [
        (replace(with_cell((0, 2, "conv_3x3")), space="darts"), "belongs to the space 'darts', expected 'few-shot-cell'"),
        (Genotype("few-shot-cell", ()), r"cells \[\], expected \['normal', 'reduction'\]"),
        (with_cell((0, 1, "conv_3x3")), "normal cell has no edge 0->1"),
        (with_cell((0, 5, "conv_3x3")), "normal cell has no edge 0->5"),
        (with_cell((0, 2, "none")), "operation 'none' is not in the space"),
        (with_cell((0, 2, "conv_9x9")), "operation 'conv_9x9' is not in the space"),
        (with_cell((0, 2, "conv_3x3"), (1, 2)), r"concat \[1, 2\] names states"),
        (with_cell((0, 2, "conv_3x3"), (5,)), r"concat \[5\] names states"),
    ],
)
def test_check_says_what_does_not_belong(genotype, message):
    with pytest.raises(ConfigurationError, match=f"^genotype: .*{message}"):
        FEW_SHOT.check(genotype)


def test_check_knows_restricted_edges():
    space = replace(FEW_SHOT, edge_operations={("normal", 0): ("skip_connect",)})
    space.check(with_cell((0, 2, "skip_connect")))
    with pytest.raises(ConfigurationError, match="edge 0->2 of the normal cell cannot carry 'conv_3x3'"):
        space.check(with_cell((0, 2, "conv_3x3")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"operations": ()}, "operations must be given"),
        ({"operations": ("none",)}, "an operation besides none"),
        ({"kinds": ("normal", "reduction", "third")}, "none of {'third'}"),
        ({"operations": ("none", "conv_3x3", "conv_3x3")}, "operations must be given, each once"),
        ({"edges": ((0, 2), (0, 2))}, "edges must be given, each once"),
        ({"edges": ((0, 1),)}, "edge 0->1 does not lead"),
        ({"edges": ((3, 2),)}, "edge 3->2 does not lead"),
        ({"edges": ((0, 5),)}, "edge 0->5 does not lead"),
        ({"kinds": ("normal",)}, "reducing"),
        ({"kinds": ("reduction",)}, "reducing"),
        ({"inputs": 3}, "1 or 2 inputs, not 3"),
        ({"inputs": 1, "edges": ((0, 1),)}, "reducing must be empty"),
        ({"nodes": 0}, "at least 1 node"),
        ({"reduction_factor": 0}, "reduction_factor"),
        ({"edge_operations": {("normal", 9): ("none",)}}, "edge_operations"),
        ({"edge_operations": {("norml", 0): ("none",)}}, "edge_operations"),
        ({"edge_operations": {("normal", 0): ("conv_9x9",)}}, "edge_operations"),
    ],
)
def test_tables_that_contradict_themselves(change, message):
    with pytest.raises(ConfigurationError, match=f"^space 'few-shot-cell': .*{message}"):
        replace(FEW_SHOT, **change)


def test_register_and_look_up(monkeypatch):
    monkeypatch.setattr(spaces, "SPACES", dict(SPACES))
    register_space(PLAIN)
    assert get_space("plain") is PLAIN
    with pytest.raises(ConfigurationError, match="space 'plain' exists already"):
        register_space(PLAIN)


def test_look_up_elsewhere():
    assert get_space("engine.spaces.space:FEW_SHOT") is FEW_SHOT


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("few-shot", "unknown 'few-shot'; known are few-shot-cell, nas-bench-201, .*or give package.module:NAME"),
        ("engine.no_such_module:A", "cannot import 'engine.no_such_module:A'"),
        ("engine.spaces.space:NONE", "cannot import"),
        (":FEW_SHOT", "cannot import"),
        ("engine.spaces.space:dense_edges", "is a function, not a Space"),
    ],
)
def test_unknown_spaces(name, message):
    with pytest.raises(ConfigurationError, match=f"^space: .*{message}"):
        get_space(name)
