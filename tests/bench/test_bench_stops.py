"""Signals to running commands, timed."""

from __future__ import annotations

import json
from pathlib import Path

from bench.stops import main


def test_a_toy_run_obeys_both_signals(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    # The whole search takes 0.2 s from its first line; a signal behind its last safe point would find it finished.
    assert main(["--toy", "--method", "linear-regions", "--seconds", "0.05", "--json", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["signal"], row["exit"], row["checkpoint"]) for row in rows] == [("SIGTERM", 75, True), ("SIGINT", 130, True)]
    assert all(row["cpu_seconds"] < 5 for row in rows)
