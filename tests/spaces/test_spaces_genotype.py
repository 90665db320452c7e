from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigurationError
from engine.spaces.genotype import MAX_BYTES, CellGenotype, Connection, Genotype

ROOT = Path(__file__).parents[2]
EDGE = st.integers(0, 5).flatmap(lambda source: st.tuples(st.just(source), st.integers(source + 1, 7), st.text(max_size=5)))
CELL = st.builds(
    CellGenotype,
    st.lists(EDGE.map(lambda edge: Connection(*edge)), unique=True, max_size=8).map(tuple),
    st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True).map(tuple),
)
GENOTYPE = st.builds(
    Genotype, st.text(max_size=8), st.dictionaries(st.text(max_size=8), CELL, max_size=3).map(lambda d: tuple(d.items()))
)


def genotype() -> Genotype:
    cell = CellGenotype((Connection(1, 2, "b"), Connection(0, 2, "a")), (2,))
    return Genotype("toy", (("normal", cell),))


def edited(*path: str | int, value: object) -> dict:
    """The plain form of a genotype with one field replaced."""
    whole = genotype().to_dict()
    place = whole
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return whole


@given(GENOTYPE)
def test_json_round_trip(value):
    assert Genotype.from_json(value.to_json()) == value
    assert Genotype.from_json(value.to_json()).to_json() == value.to_json()


@given(GENOTYPE, st.randoms())
def test_order_of_connections_does_not_matter(value, random):
    for kind, cell in value.cells:
        shuffled = list(cell.connections)
        random.shuffle(shuffled)
        assert CellGenotype(tuple(shuffled), cell.concat) == value[kind]


def read_or_refused(text: str) -> Genotype | str:
    try:
        return Genotype.from_json(text)
    except ConfigurationError as error:
        return str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
PLACES = [
    ("schema",),
    ("space",),
    ("cells",),
    ("cells", "normal"),
    ("cells", "normal", "concat"),
    ("cells", "normal", "connections"),
    ("cells", "normal", "connections", 0),
    ("cells", "normal", "connections", 0, "source"),
    ("cells", "normal", "connections", 0, "target"),
    ("cells", "normal", "connections", 0, "operation"),
]


@settings(max_examples=300)
@given(st.sampled_from(PLACES), JSON)
def test_anything_in_any_field_is_read_or_refused(place, value):
    found = read_or_refused(json.dumps(edited(*place, value=value)))
    if isinstance(found, str):
        assert "\n" not in found
        assert len(found) < 500
    else:
        assert Genotype.from_json(found.to_json()) == found


@given(st.text(max_size=40) | JSON.map(json.dumps))
def test_any_text_is_refused(text):
    with pytest.raises(ConfigurationError, match=r"^genotype: "):
        Genotype.from_json(text)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], 'expected a JSON object with "schema": 1'),
        (edited("schema", value=2), 'expected a JSON object with "schema": 1'),
        (edited("space", value=3), "space is a name, not 3"),
        (edited("cells", value=[]), "malformed or missing field"),
        (edited("cells", "normal", value={}), "malformed or missing field ('connections')"),
        (edited("cells", "normal", "connections", 0, "source", value=2), "(2, 2, 'a') does not go from an earlier state"),
        (edited("cells", "normal", "connections", 0, "source", value=True), "a connection is {source: int"),
        (edited("cells", "normal", "connections", 0, "source", value=-1), "a connection is {source: int"),
        (edited("cells", "normal", "connections", 1, value=genotype().to_dict()["cells"]["normal"]["connections"][0]), "twice"),
        (edited("cells", "normal", "concat", value=[]), "one or more different states, not []"),
        (edited("cells", "normal", "concat", value=[2, 2]), "one or more different states, not [2, 2]"),
        (edited("cells", "normal", "concat", value=2), "concat is a list of state numbers"),
    ],
)
def test_what_is_wrong_is_said(value, message):
    with pytest.raises(ConfigurationError) as caught:
        Genotype.from_dict(value)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"schema": 1' + "9" * 5000 + "}", "", "\ud800"])
def test_hostile_text(text):
    with pytest.raises(ConfigurationError, match=r"^genotype: not JSON"):
        Genotype.from_json(text)


def test_file(tmp_path):
    path = tmp_path / "genotype.json"
    path.write_text(genotype().to_json())
    assert Genotype.load(path) == genotype()
    for content, message in ((b"\xff\xfe", "cannot read"), (b" " * (MAX_BYTES + 1), "larger than"), (b"{}", "schema")):
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=message) as caught:
            Genotype.load(path)
        assert str(caught.value).startswith(f"{path}: ")
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigurationError, match="cannot read the genotype"):
            Genotype.load(missing)


def test_is_a_value():
    assert genotype() == genotype()
    assert len({genotype(), genotype()}) == 1
    assert genotype()["normal"].connections[0] == (0, 2, "a")
    with pytest.raises(KeyError):
        genotype()["reduction"]
    with pytest.raises(FrozenInstanceError):
        genotype().space = "other"


@pytest.mark.parametrize("module", ["engine.spaces.genotype", "engine.spaces.space"])
def test_imports_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
