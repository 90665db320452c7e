"""Reports: complete, safe, and made of whatever a run directory holds."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigurationError
from engine.runs.charts import Column, strip_chart
from engine.runs.records import read_run
from engine.runs.report import render, write_report
from engine.runs.run import Run
from engine.spaces.genotype import CellGenotype, Connection, Genotype

HEADINGS = (
    "Result",
    "Cells",
    "How often choices would have changed",
    "What was pruned when",
    "Scores by round",
    "Time by phase",
    "Configuration",
    "Environment",
)
CELL = CellGenotype((Connection(0, 2, "sep_conv_3x3"), Connection(1, 2, "skip_connect")), (2,))
GENOTYPE = Genotype("few-shot-cell", (("normal", CELL), ("reduction", CELL)))
VOID = {"meta", "br", "link"}


def score(**fields: Any) -> dict[str, Any]:
    record = {
        "round": 0,
        "stage": "operations",
        "cell": "normal",
        "edge": 3,
        "source": 1,
        "target": 3,
        "operation": "conv_3x3",
        "repeat": 0,
    }
    record |= {"condition": 3.79, "condition_status": "ok", "regions": 356}
    return record | {"supernet_condition": 3.9, "supernet_condition_status": "ok", "supernet_regions": 360} | fields


def round_event(**fields: Any) -> dict[str, Any]:
    pruned = {"cell": "normal", "edge": 0, "source": 0, "target": 2, "operation": "max_pool_3x3", "delta_condition": 0.125}
    pruned |= {"delta_regions": 0.0, "rank_sum": 17, "agreement": 2 / 3}
    event = {"event": "round", "round": 0, "stage": "operations", "candidates": 126, "seconds": 12.5, "pruned": [pruned]}
    return event | {"cpu_seconds": 12.0, "phases": {"kernel": 9.0, "regions": 2.0}} | fields


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    with Run.create(tmp_path / "run", 'seed = 0\nname = "<script>"\n', {"engine": "0.1.0", "processor": "A <b>CPU</b>"}) as run:
        for repeat in range(3):
            run.append("scores.jsonl", score(repeat=repeat, condition=3.5 + repeat))
        run.append("scores.jsonl", score(condition=float("inf"), condition_status="singular"))
        run.append("metrics.jsonl", round_event())
        run.append("metrics.jsonl", round_event(round=6, stage="edges"))
        run.write_text("genotype.json", GENOTYPE.to_json())
        result = {"schema": 1, "method": "metantk-nas", "data": "digits", "seed": 1234, "evaluations": 1500, "seconds": 123.4}
        result |= {
            "genotype": GENOTYPE.to_dict(),
            "choice_changes": {"decisions": 114, "changed": 60, "share": 0.53},
            "flops": 10**7,
        }
        run.write_json("result.json", result)
    return tmp_path / "run"


class Balance(HTMLParser):
    """Checks that elements are closed in order, and collects tags and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(html: str) -> Balance:
    parser = Balance()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    assert not parser.tags & {"script", "link", "iframe", "object", "img", "b2"}
    assert not [name for name, _ in parser.attributes if name in ("src", "href", "action") or name.startswith("on")]
    return parser


def test_every_section_is_there(finished: Path) -> None:
    assert write_report(finished) == finished / "report.html"
    html = (finished / "report.html").read_text("utf-8")
    check(html)
    assert tuple(re.findall("<h2>(.*?)</h2>", html)) == HEADINGS
    for text in (
        "metantk-nas on digits",
        "2 min 03 s",
        "1,500",
        "1234",
        "60 of 114 decisions (53%)",
        "max_pool_3x3",
        "+0.1250",
        "67%",
    ):
        assert text in html
    for text in ("Round 6 edges", "126 candidates", "1 not ok", "kernel 18 s", "other 3.0 s", "processor"):
        assert text in html
    assert html.count('aria-label="normal cell"') == html.count('aria-label="reduction cell"') == 1


def test_everything_is_escaped(finished: Path) -> None:
    evil = "</style><script>alert(1)</script><b2 onclick='x'>"
    with (finished / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(round_event(round=evil, stage=evil, candidates=evil, phases={evil: 1.0})) + "\n")
        item = dict.fromkeys(("cell", "edge", "source", "target", "operation", "rank_sum", "agreement", "delta_condition"), evil)
        file.write(json.dumps(round_event(pruned=[item])) + "\n")
    with (finished / "scores.jsonl").open("a") as file:
        file.write(json.dumps(score(round=evil, repeat=evil)) + "\n")
    (finished / "result.json").write_text(json.dumps({evil: evil, "method": evil, "data": evil, "more": {evil: [evil]}}))
    (finished / "env.json").write_text(json.dumps({evil: evil}))
    (finished / "config.toml").write_text(evil)
    nasty = Genotype(evil, ((evil, CellGenotype((Connection(0, 2, evil),), (2,))),))
    (finished / "genotype.json").write_text(nasty.to_json())
    html = render(read_run(finished))
    check(html)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 12


def test_a_run_that_has_not_finished(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", "seed = 0\n", {}) as run:
        run.append("metrics.jsonl", {"event": "round"})
        run.append("metrics.jsonl", {"event": "something else"})
    html = write_report(tmp_path / "run").read_text("utf-8")
    check(html)
    assert "has not finished" in html
    assert "Scores by round" not in html


def test_broken_files_are_named_and_the_rest_is_reported(finished: Path) -> None:
    (finished / "result.json").write_text("[1]")
    (finished / "genotype.json").write_text("{")
    (finished / "env.json").write_bytes(b"\xff")
    with (finished / "scores.jsonl").open("a") as file:
        file.write('{"round": 1\n[]\n')
    html = write_report(finished).read_text("utf-8")
    check(html)
    for name in (
        "result.json was left out",
        "genotype.json was left out",
        "env.json was left out",
        "scores.jsonl: 2 unreadable lines",
    ):
        assert name in html
    assert "Scores by round" in html


def test_a_huge_file_is_left_out(finished: Path) -> None:
    with (finished / "config.toml").open("a") as file:
        file.truncate(3_000_000)
    assert read_run(finished).problems == ["config.toml was left out: larger than 2000000 bytes"]


def test_no_run_no_report(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["ok", "inf", "<b2>", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kernel", "agreement", "decisions", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [*score(), *round_event(), "supernet_regions", "choice_changes", "method", "seconds", "pruned", "agreement"]
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.dictionaries(KEYS, JSON, max_size=8), max_size=4))
def test_no_content_breaks_the_report(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]) -> None:
    directory = tmp_path_factory.mktemp("run")
    (directory / "result.json").write_text(json.dumps(records[0] if records else {}))
    (directory / "scores.jsonl").write_text("".join(json.dumps(score() | record) + "\n" for record in records))
    events = [round_event() | record | {"event": "round", "pruned": [*records, 3]} for record in records]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    run = read_run(directory)
    assert run.problems == []
    check(render(run))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.floats(-1e100, 1e100), max_size=5), max_size=4))
def test_charts_stay_inside_their_frame(columns: list[list[float]]) -> None:
    svg = strip_chart("Score", [Column(str(index), values) for index, values in enumerate(columns)])
    assert bool(svg) == any(columns)
    heights = [float(y) for y in re.findall(r"M[-0-9.]+ ([-0-9.]+)h0", svg)]
    assert len(heights) == sum(map(len, columns))
    assert all(0 <= y <= 250 for y in heights)


def test_many_dots_are_thinned() -> None:
    svg = strip_chart("Score", [Column("0", [float(i) for i in range(5000)])])
    assert svg.count("h0") == 500
