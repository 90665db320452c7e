"""Tables of NAS-Bench-101 and functions of one's own as oracles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.benchmarks.nas_bench_101 import load_oracle
from engine.errors import ConfigurationError, MissingDataError
from engine.spaces.nas_bench_101 import parse

CELL = parse("0110 0001 0001 0000", "input,conv3x3-bn-relu,maxpool3x3,output")
TURNED = parse("0110 0001 0001 0000", "input,maxpool3x3,conv3x3-bn-relu,output")
OTHER = parse("0100 0010 0001 0000", "input,maxpool3x3,conv3x3-bn-relu,output")
HEAD = "matrix,operations,accuracy\n"
ROW = '0110 0001 0001 0000,"input,conv3x3-bn-relu,maxpool3x3,output",'


def share_of_threes(matrix: list[list[int]], operations: list[str]) -> float:
    """An oracle of one's own."""
    return 100 * operations.count("conv3x3-bn-relu") / len(matrix)


def test_a_csv_knows_isomorphic_cells(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(f"{HEAD}{ROW}93\n{ROW}94\n")
    oracle = load_oracle(str(path))
    assert (oracle(CELL), oracle(TURNED), oracle(OTHER)) == (93.5, 93.5, None)


def test_an_npz(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    np.savez(path, matrix=np.array([CELL.matrix], np.int8), operations=np.array([[0, 1, 3, 4]]), accuracy=np.array([90.0]))
    assert load_oracle(str(path))(TURNED) == 90.0


def test_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    assert load_oracle("test_oneshot_oracle:share_of_threes")(CELL) == 25.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD, "no cells"),
        ("matrix,accuracy\n", "needs the columns"),
        (f"{HEAD}{ROW}x\n", "not a readable csv"),
        (f"{HEAD}{ROW}nan\n", "from 0 to 100"),
        (f"{HEAD}{ROW}900\n", "from 0 to 100"),
        (f"{HEAD}01 10,input,1\n", "square"),
        (f"{HEAD}{ROW}", "not a readable csv"),
    ],
)
def test_broken_tables(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=said) as raised:
        load_oracle(str(path))
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"operations": np.array([[0, 1, 3]])}, "must be"),
        ({"operations": np.array([[0, 1, 9, 4]])}, "whole numbers"),
        ({"matrix": np.zeros((1, 4, 4))}, "must be numbers"),
        ({"accuracy": np.array(3.0)}, "must be"),
    ],
)
def test_broken_npz(changed: dict[str, np.ndarray], said: str, tmp_path: Path) -> None:
    arrays = {"matrix": np.array([CELL.matrix], np.int8), "operations": np.array([[0, 1, 3, 4]]), "accuracy": np.array([90.0])}
    np.savez(tmp_path / "table.npz", **{**arrays, **changed})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=said):
        load_oracle(str(tmp_path / "table.npz"))


@pytest.mark.parametrize("name", ["nothing", "no_such_module:x", "math:pi", "math:no"])
def test_what_is_no_oracle(name: str) -> None:
    with pytest.raises(ConfigurationError, match="--oracle"):
        load_oracle(name)


def test_a_missing_table(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="is not a file"):
        load_oracle(str(tmp_path / "no.csv"))
