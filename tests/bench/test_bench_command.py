"""``python -m bench`` from the outside: it lists, measures, appends rows, draws, and says in one line what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import registry
from bench.__main__ import main
from engine.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_list_names_every_benchmark() -> None:
    done = bench("list")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(registry.BENCHMARKS)


def test_list_and_errors_are_light() -> None:
    code = (
        "import sys; from bench.__main__ import main; main(['list'])\n"
        "try: main(['run', 'nkt'])\n"
        "except Exception: pass\n"
        "print({'torch', 'numpy', 'matplotlib', 'opacus'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_run_appends_rows_and_plot_draws_them(tmp_path: Path) -> None:
    target = tmp_path / "rows.jsonl"
    target.write_text("")
    done = bench("run", "regions", "--smoke", "--rounds", "2", "--method", "one batch", "--json", str(target))
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["method"] for row in found] == ["one candidate at a time", "one batch"]
    assert len(done.stdout.splitlines()) == 2
    base, batch = found
    assert base["ratio"] == {"median": 1.0, "p20": 1.0, "p80": 1.0}
    assert 0 < batch["ratio"]["p20"] <= batch["ratio"]["median"] <= batch["ratio"]["p80"]
    assert batch["peak_ratio"] == batch["peak_bytes"] / base["peak_bytes"]
    assert batch["environment"]["threads"] == 1
    assert {"torch", "numpy", "processor", "cores"} <= set(batch["environment"])

    pytest.importorskip("matplotlib")
    for picture, arguments in (("rows.svg", []), ("rows.png", ["--out", str(tmp_path / "rows.png")])):
        assert main(["plot", str(target), *arguments]) == 0
        assert (tmp_path / picture).stat().st_size > 1000
    assert "one batch" in (tmp_path / "rows.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nkt"], "unknown 'nkt'"),
        (["run"], "NAME"),
        (["run", "regions", "--device", "cuda"], "'regions' measures on cpu only"),
        (["run", "regions", "--rounds", "0"], "--rounds must be at least 1"),
        (["run", "regions", "--width", "0"], "--width must be at least 1"),
        (["run", "regions", "--json", "not/there/rows.jsonl"], "not/there/rows.jsonl cannot be written"),
        (["run", "regions", "--smoke", "--full"], "not allowed with"),
        (["run", "sample-gradient", "--smoke", "--method", "magic"], "'sample-gradient' here has no 'magic'"),
        (["plot", "not-there.jsonl"], "not-there.jsonl: cannot be read"),
    ],
)
def test_what_the_user_got_wrong(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        main(arguments)


def test_errors_are_one_line() -> None:
    done = bench("run", "nkt")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: benchmark: unknown 'nkt'; known are {', '.join(registry.BENCHMARKS)}\n"
