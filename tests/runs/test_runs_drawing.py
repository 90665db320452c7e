"""Drawings of cells: well formed, complete, and nothing on top of anything else."""

from __future__ import annotations

from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigurationError
from engine.runs.drawing import draw_cell
from engine.runs.layout import OUTPUT, Layout, lay_out
from engine.runs.markup import escape
from engine.spaces.genotype import CellGenotype, Connection, Genotype

SVG = "{http://www.w3.org/2000/svg}"
OPERATIONS = ("skip_connect", "sep_conv_3x3", "dil_conv_3x3", "avg_pool_3x3", "max_pool_3x3", "conv_1x5_5x1", "conv_3x3")
FEW_SHOT = CellGenotype(
    (
        Connection(0, 2, "sep_conv_3x3"),
        Connection(1, 2, "dil_conv_3x3"),
        Connection(1, 3, "conv_1x5_5x1"),
        Connection(2, 3, "max_pool_3x3"),
        Connection(0, 4, "skip_connect"),
        Connection(3, 4, "conv_3x3"),
    ),
    (2, 3, 4),
)


def genotype(cell: CellGenotype, kind: str = "normal") -> Genotype:
    return Genotype("few-shot-cell", ((kind, cell),))


@st.composite
def cells(draw: st.DrawFn, names: st.SearchStrategy[str]) -> CellGenotype:
    last = draw(st.integers(2, 7))
    connections = []
    for _ in range(draw(st.integers(0, 16))):
        target = draw(st.integers(1, last))
        connections.append(Connection(draw(st.integers(0, target - 1)), target, draw(names)))
    return CellGenotype(tuple(set(connections)), tuple(draw(st.lists(st.integers(0, last), min_size=1, max_size=5, unique=True))))


def lay_out_plainly(cell: CellGenotype) -> Layout:
    return lay_out(cell, lambda key: (90.0, 52.0) if key[0] == "edge" else (36.0, 36.0))


@settings(max_examples=60, deadline=None)
@given(cells(st.text(max_size=50)), st.text(max_size=10))
def test_any_genotype_gives_well_formed_svg(cell: CellGenotype, kind: str) -> None:
    root = ElementTree.fromstring(draw_cell(genotype(cell, kind), kind).encode())
    assert root.tag == f"{SVG}svg"
    drawn = sorted(title.text or "" for title in root.iter(f"{SVG}title"))
    assert len(drawn) == len(cell.connections)


@settings(max_examples=60, deadline=None)
@given(cells(st.sampled_from(OPERATIONS)))
def test_all_operations_and_states_are_named(cell: CellGenotype) -> None:
    root = ElementTree.fromstring(draw_cell(genotype(cell), "normal"))
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    for operation in OPERATIONS:
        # Each label is there twice: visible, and as the tooltip.
        assert texts.count(operation * 2) == sum(c.operation == operation for c in cell.connections)
    states = {0, 1, *cell.concat, *(s for c in cell.connections for s in (c.source, c.target))}
    assert {"ck−2", "ck−1", "ck", *(str(state - 2) for state in states - {0, 1})} <= set(texts)


@settings(max_examples=60, deadline=None)
@given(cells(st.sampled_from(OPERATIONS)))
def test_nothing_overlaps_and_all_lines_run_between_neighbouring_columns(cell: CellGenotype) -> None:
    layout = lay_out_plainly(cell)
    for a, b in combinations(layout.boxes.values(), 2):
        apart = abs(a.x - b.x) >= (a.width + b.width) / 2 - 1e-6 or abs(a.y - b.y) >= (a.height + b.height) / 2 + 13.9
        assert apart
    assert all(left[1] + 30 < right[0] for left, right in pairwise(layout.bounds))
    column = {key: index for index, keys in enumerate(layout.columns) for key in keys}
    assert all(column[right] == column[left] + 1 for left, right in layout.links)
    for box in layout.boxes.values():
        assert box.width / 2 - 1e-6 <= box.x <= layout.width - box.width / 2 + 1e-6
        assert box.height / 2 - 1e-6 <= box.y <= layout.height - box.height / 2 + 1e-6


@settings(max_examples=40, deadline=None)
@given(cells(st.sampled_from(OPERATIONS)))
def test_following_the_lines_gives_the_cell_back(cell: CellGenotype) -> None:
    layout = lay_out_plainly(cell)
    origin = {key: int(key[1]) for key in layout.boxes if key[0] in ("state", "lane")}
    edges = {(origin[left], int(right[2])) for left, right in layout.links if right[0] == "edge"}
    assert edges == {(c.source, c.target) for c in cell.connections}
    assert all(origin[left] == origin[right] for left, right in layout.links if right[0] == "lane")
    assert {origin[left] for left, right in layout.links if right == OUTPUT} == set(cell.concat)


def test_both_colour_schemes_and_a_fallback() -> None:
    svg = draw_cell(genotype(FEW_SHOT), "normal")
    assert "prefers-color-scheme: dark" in svg
    assert 'class="cell-page"' in svg
    for element in ElementTree.fromstring(svg).iter():
        if element.get("class"):
            assert element.get("fill") or element.get("stroke")


def test_the_drawing_is_the_same_every_time() -> None:
    assert draw_cell(genotype(FEW_SHOT), "normal") == draw_cell(genotype(FEW_SHOT), "normal")


def test_edges_with_every_operation() -> None:
    connections = tuple(Connection(s, t, o) for t in (2, 3, 4) for s in range(t) for o in OPERATIONS)
    svg = draw_cell(genotype(CellGenotype(connections, (2, 3, 4))), "normal")
    assert svg.count("<title>") == 63


def test_a_long_label_is_shortened_and_kept_as_tooltip() -> None:
    name = "an_operation_with_a_name_that_nobody_can_read_at_once"
    svg = draw_cell(genotype(CellGenotype((Connection(0, 2, name),), (2,))), "normal")
    assert f"<title>{name}</title>" in svg
    assert "…</text>" in svg


def test_markup_is_escaped() -> None:
    svg = draw_cell(genotype(CellGenotype((Connection(0, 2, "<script>\0"),), (2,)), 'a"><b'), 'a"><b')
    assert "<script>" not in svg
    assert "<b" not in svg.replace("<b ", "")
    ElementTree.fromstring(svg)


def test_unknown_kind_and_unreasonable_size() -> None:
    with pytest.raises(ConfigurationError, match="no 'reduction' cell"):
        draw_cell(genotype(FEW_SHOT), "reduction")
    many = tuple(Connection(0, 2, f"operation_{i}") for i in range(501))
    with pytest.raises(ConfigurationError, match="too large to draw"):
        draw_cell(genotype(CellGenotype(many, (2,))), "normal")


@given(st.text())
def test_escaped_text_is_xml(text: str) -> None:
    element = ElementTree.fromstring(f'<a b="{escape(text)}">{escape(text)}</a>'.encode())
    assert (element.text or "").count("\ufffd") >= text.count("\0")
