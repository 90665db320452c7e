from __future__ import annotations

import builtins
import os
import pickle
import pickletools
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data import safe_pickle
from engine.data.safe_pickle import load_pickle, parse_pickle
from engine.errors import ConfigurationError

CONTENT: dict[str, Any] = {
    "big": np.arange(6, dtype=">i4").reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "empty": np.zeros((0, 3), dtype=np.uint8),
    "bool": np.array([True, False]),
    "text": np.array(["ab", "c"]),
    "scalars": [np.int64(3), np.float32(0.5)],
    "nested": {"a": [1, (2, "x")], "b": b"bytes"},
    "set": {1, 2},
    "frozen": frozenset({3}),
    "ordered": OrderedDict(a=1),
    "buffer": bytearray(b"q"),
    "long": 2**80,
    "none": None,
}


def equal(a: Any, b: Any) -> bool:
    if isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(b, dict):
        return set(a) == set(b) and all(equal(a[k], b[k]) for k in b)
    if isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("protocol", range(6))
def test_containers_and_arrays_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(CONTENT, protocol=protocol))
    assert equal(load_pickle(path), CONTENT)


def test_a_python_2_pickle_with_raw_bytes_as_text() -> None:
    # What Python 2 wrote for {"data": numpy.array([[1, 200]], dtype=uint8), "labels": [7]}.
    content = (
        b"(dp0\nS'data'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\nRp7\n"
        b"(I1\n(I1\nI2\ntp8\ncnumpy\ndtype\np9\n(S'u1'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'|'\np13\nNNNI-1\nI-1\nI0\ntp14\n"
        b"bI00\nS'\\x01\\xc8'\np15\ntp16\nbsS'labels'\np17\n(lp18\nI7\nas."
    )
    loaded = parse_pickle(content, "old")
    assert loaded["labels"] == [7]
    assert np.array_equal(loaded["data"], np.array([[1, 200]], dtype=np.uint8))


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize(
    "function", [os.system, builtins.eval, builtins.getattr, np.load, np.frombuffer, pickle.loads, object, Path], ids=repr
)
def test_no_other_function_is_reached(function: Any) -> None:
    with pytest.raises(ConfigurationError, match="refused, the pickle holds"):
        parse_pickle(pickle.dumps(Calls(function, "echo")), "evil")


def test_nothing_runs_when_a_pickle_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "made"
    for protocol in range(6):
        with pytest.raises(ConfigurationError, match="refused"):
            parse_pickle(pickle.dumps(Calls(os.mkdir, str(target)), protocol=protocol), "evil")
    assert not target.exists()


def test_object_arrays_and_records_are_refused() -> None:
    for array in (np.array([{}, []], dtype=object), np.zeros(2, dtype=[("a", "i4")]), np.array(["2020"], dtype="M8[s]")):
        with pytest.raises(ConfigurationError, match="the array type"):
            parse_pickle(pickle.dumps(array), "objects")


def array_state(shape: Any, raw: Any) -> bytes:
    """Return a pickle of a uint8 array with a forged state."""
    good = pickle.dumps(np.zeros(2, dtype=np.uint8), protocol=2)
    state = pickle.dumps((1, shape, np.dtype("u1"), False, raw), protocol=2)[2:-1]
    start = good.index(b"K\x01")  # the version, first item of the state
    head = good[:start].rstrip(b"(")
    return head + state + b"b."


def test_forged_array_states() -> None:
    assert np.array_equal(parse_pickle(array_state((2,), b"ab"), "good"), np.frombuffer(b"ab", dtype=np.uint8))
    for shape, raw in [((3,), b"ab"), ((10**12,), b"ab"), ((-1, -2), b"ab"), ("x", b"ab"), ((2,), [1, 2]), ((2.0,), b"ab")]:
        with pytest.raises(ConfigurationError, match="refused"):
            parse_pickle(array_state(shape, raw), "forged")


def test_a_pickle_cannot_change_this_library() -> None:
    # BUILD with a pair as state calls setattr(target, key, value) with what the file says.
    before = {name: dict(vars(value)) for name, value in vars(safe_pickle).items() if isinstance(value, type)}
    for module, name in safe_pickle._ALLOWED:
        attack = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"N}X\x08\x00\x00\x00__init__K\x01s\x86b."
        assert [opcode.name for opcode, _, _ in pickletools.genops(attack)][-2:] == ["BUILD", "STOP"]
        with pytest.raises(ConfigurationError, match="not a readable pickle"):
            parse_pickle(attack, "evil")
    assert before == {name: dict(vars(value)) for name, value in vars(safe_pickle).items() if isinstance(value, type)}


def test_shared_and_endless_containers_stay_cheap() -> None:
    shared: list[Any] = []
    for _ in range(60):
        shared = [shared, shared]
    assert len(parse_pickle(pickle.dumps(shared), "shared")) == 2
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ConfigurationError, match="not a readable pickle"):
        parse_pickle(pickle.dumps(endless), "endless")


def test_the_size_limit_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps([0] * 100))
    monkeypatch.setattr(safe_pickle, "MAX_BYTES", 20)
    with pytest.raises(ConfigurationError, match="above the limit of 20"):
        load_pickle(path)


def test_a_refused_name_is_quoted(problem: Callable[..., str]) -> None:
    said = problem(parse_pickle, b"c\x0bos\nsystem\n.", "bad")
    assert r"'\x0bos.system'" in said
    assert len(said.splitlines()) == 1


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_pickles_are_one_line_errors_or_values(problem: Callable[..., str], data: st.DataObject) -> None:
    good = pickle.dumps(
        {"data": np.arange(4, dtype=np.uint8), "labels": [1, 2, 3, 4]}, protocol=data.draw(st.sampled_from([0, 2, 4]))
    )
    cut = data.draw(st.integers(0, len(good)))
    damaged = good[:cut] + data.draw(st.binary(max_size=6)) + good[cut + data.draw(st.integers(0, 6)) :]
    assert len(problem(parse_pickle, damaged, "damaged").splitlines()) <= 1


def test_a_declared_size_is_not_filled_before_it_is_read() -> None:
    content = pickle.dumps(bytearray(b"123"), 5)
    assert parse_pickle(content, "good") == bytearray(b"123")
    started = time.process_time()
    for size in (2**33, 2**60):
        with pytest.raises(ConfigurationError, match=r"EOFError|UnpicklingError|refused"):
            parse_pickle(b"\x80\x05\x96" + size.to_bytes(8, "little") + b"123.", "bad")
    assert time.process_time() - started < 1  # filling 8 GiB takes longer, a collection of garbage in between does not
