"""Comparisons of meta-learners: which runs they are made of, that they go on where they were, and what their tables say."""

from __future__ import annotations

import json
import signal
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.cli import main
from engine.errors import ConfigurationError
from engine.methods import meta_training
from engine.methods.learning_options import MAMLOptions, MetaTicketOptions
from engine.methods.learning_presets import LEARNING_PRESETS
from engine.methods.meta_jobs import Job, jobs
from engine.methods.meta_learner import Learner
from engine.methods.meta_study_result import Finished, curves, difference_table, summary
from engine.runs.bitmaps import svg, to_bits

QUICK = ["--iterations", "6", "--validate-every", "3", "--validation-tasks", "4", "--test-tasks", "8", "--batch", "2"]
COMPARED = ["--compare", "maml,meta-ticket+iterand", "--vary", "factor=1,2"]


def search(out: Path, *words: str) -> int:
    return main(["search", "maml", "--out", str(out), "--device", "cpu", *QUICK, *words])


def test_a_comparison_is_stopped_and_goes_on_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(tmp_path / "whole", *COMPARED) == 0
    said = capsys.readouterr().out
    assert "Test: accuracy %" in said
    assert "maml − meta-ticket+iterand" in said
    plain = Learner.step

    def stopping(self: Learner, tasks: Any, step: int, *rest: Any) -> Any:
        if self.network is not None and step == 4:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, tasks, step, *rest)

    monkeypatch.setattr(Learner, "step", stopping)
    assert search(tmp_path / "cut", *COMPARED, "--quiet") == 75
    assert not capsys.readouterr().out
    monkeypatch.setattr(Learner, "step", plain)
    before = (tmp_path / "cut" / "maml-1-0" / "result.json").stat()
    assert main(["search", "maml", "--out", str(tmp_path / "cut"), "--resume", "--quiet"]) == 0
    assert (tmp_path / "cut" / "maml-1-0" / "result.json").stat() == before  # not done again
    names = ["maml-1-0", "maml-2-0", "meta-ticket+iterand-1-0", "meta-ticket+iterand-2-0"]
    assert sorted(path.name for path in (tmp_path / "cut").iterdir() if path.is_dir()) == names
    for name in names:
        whole, cut = tmp_path / "whole" / name, tmp_path / "cut" / name
        assert (whole / "metrics.jsonl").read_bytes() == (cut / "metrics.jsonl").read_bytes()
    results = [json.loads((tmp_path / out / "result.json").read_text()) for out in ("whole", "cut")]
    assert results[0]["plots"] == results[1]["plots"]
    assert results[0]["tables"][:2] == results[1]["tables"][:2]
    report = (tmp_path / "cut" / "report.html").read_text()
    assert "Test by factor" in report
    assert "Task gradients, mean over kept weights" in report
    ticket = tmp_path / "cut" / "meta-ticket+iterand-1-0"
    assert (ticket / "masks.svg").read_text() in (ticket / "report.html").read_text()


def test_methods_are_tested_across_data_sets(tmp_path: Path) -> None:
    names = []
    for number in range(2):
        images = np.random.default_rng(number).integers(0, 255, (80, 8, 8), dtype=np.uint8)
        labels = np.arange(80) % 8
        path = tmp_path / f"set{number}.npz"
        np.savez(path, images=images, labels=labels, split=np.array(["train"] * 5 + ["test"] * 3))
        names.append(f"npz:{path}")
    both = ",".join(names)
    words = ["--data", names[0], "--vary", f"data={both}", "--also-test", both, "--ways", "3", "--shots", "2", "--quiet"]
    assert search(tmp_path / "out", *words) == 0
    table = json.loads((tmp_path / "out" / "result.json").read_text())["tables"][0]
    assert table["columns"] == ["method", "data", "runs", *names]
    assert [row[1] for row in table["rows"]] == names
    assert all("±" in cell for row in table["rows"] for cell in row[3:])


def test_seconds_become_steps_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_training, "timed_steps", lambda learner, source, seconds: round(3 * seconds))
    plain = Learner.step

    def stopping(self: Learner, tasks: Any, step: int, *rest: Any) -> Any:
        if step == 4:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, tasks, step, *rest)

    monkeypatch.setattr(Learner, "step", stopping)
    assert search(tmp_path, "--compare", "maml", "--cpu-seconds", "2", "--quiet") == 75
    monkeypatch.setattr(Learner, "step", plain)
    monkeypatch.delattr(meta_training, "timed_steps")  # not timed again
    assert main(["search", "maml", "--out", str(tmp_path), "--resume", "--quiet"]) == 0
    own = tomllib.loads((tmp_path / "maml-0" / "config.toml").read_text())
    assert own["iterations"] == 6
    assert "cpu_seconds" not in own
    assert json.loads((tmp_path / "result.json").read_text())["tables"][2]["rows"][0][1] == 6


def test_steps_are_timed_on_a_learner_that_is_thrown_away(tmp_path: Path) -> None:
    assert search(tmp_path, "--cpu-seconds", "0.05", "--quiet") == 0
    steps = tomllib.loads((tmp_path / "config.toml").read_text())["iterations"]
    assert search(tmp_path / "same", "--iterations", str(steps), "--quiet") == 0
    first, second = (json.loads((out / "result.json").read_text()) for out in (tmp_path, tmp_path / "same"))
    assert first["tests"] == second["tests"]


def test_what_becomes_of_nan_is_told_to_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Learner.step

    def broken(self: Learner, tasks: Any, step: int, *rest: Any) -> Any:
        facts, asked = plain(self, tasks, step, *rest)
        if step == 3:
            facts[1, 0] = float("nan")
        return facts, asked

    monkeypatch.setattr(Learner, "step", broken)
    assert search(tmp_path / "stop", "--seeds", "2", "--quiet") == 4
    assert search(tmp_path / "skip", "--seeds", "2", "--nonfinite", "skip", "--quiet") == 0
    assert "nonfinite" in (tmp_path / "skip" / "maml-1" / "metrics.jsonl").read_text()


def test_methods_keep_their_own_settings_and_take_what_was_set() -> None:
    found = {job.label: job.options for job in jobs(MAMLOptions(compare="maml,anil,meta-ticket+boil", inner_rate=0.3, ways=3))}
    assert [options.outer for options in found.values()] == ["adamw", "adamw", "sgd"]
    assert all((options.inner_rate, options.ways) == (0.3, 3) for options in found.values())
    assert found["meta-ticket+boil"].boil  # type: ignore[attr-defined]
    assert not any(options.is_study for options in found.values())
    other = jobs(MAMLOptions(compare="maml,meta-ticket", outer="sgd", outer_rate_sgd=0.1))
    assert {(job.options.outer, job.options.outer_rate_sgd) for job in other} == {("sgd", 0.1)}


def test_a_preset_gives_each_method_its_own_values() -> None:
    options = MAMLOptions(preset="figure-4", **MAMLOptions.preset_values("figure-4"))
    trained, control = jobs(options)[0].options, jobs(options)[3].options
    assert isinstance(trained, MetaTicketOptions)
    assert isinstance(control, MetaTicketOptions)
    assert (trained.outer, trained.constant, trained.prune_output, trained.iterations) == ("adamw", 1.0, True, 60_000)
    assert (control.sparsity, control.iterations) == (0.5, 0)


@pytest.mark.parametrize("name", [name for name, values in LEARNING_PRESETS.items() if "compare" in values])
def test_experiments_name_runs_that_can_be_started(name: str) -> None:
    options = MetaTicketOptions(preset=name, **MetaTicketOptions.preset_values(name))
    options.validate()
    found = jobs(options)
    compared, values = len(options.compare.split(",")), len(options.varied[1]) or 1
    assert len(found) == compared * values * options.seeds
    if name == "table-1":
        assert [job.options.others for job in found[:4:3]] == [("vgg-flower", "aircraft"), ("cifar-fs", "aircraft")]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"compare": "mamal"}, "unknown method 'mamal'; did you mean 'maml'"),
        ({"compare": "maml+boil"}, "only meta-ticket has variants"),
        ({"compare": "meta-ticket+boli"}, "only meta-ticket has variants, boil"),
        ({"compare": "maml,maml"}, "name each method and value once"),
        ({"compare": "meta-ticket+iterand", "cpu_seconds": 3.0}, "needs --rerand-every"),
        ({"vary": "inner_rate"}, "is not an option and its values"),
        ({"vary": "seed=1,2"}, "is not an option and its values"),
        ({"vary": "factor=1,two"}, "--vary: '1,two'"),
        ({"vary": "factor=0"}, "--factor must be at least 1"),
        ({"compare": "meta-ticket,maml", "vary": "sparsity=0.1"}, "maml has no option sparsity"),
    ],
)
def test_bad_comparisons(given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        jobs(MetaTicketOptions(**given))  # type: ignore[arg-type]


def test_the_plan_lists_the_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "maml", "--dry-run", "--preset", "figure-3-small", "--device", "cpu"]) == 0
    assert "12: maml-1-0, maml-2-0" in capsys.readouterr().out


def finished(label: str, seed: int, each: list[float]) -> Finished:
    job = Job(label, None, label, MAMLOptions(seed=seed))
    result = {"accuracy": 0.5, "outer_steps": 1, "learned_parameters": 2, "cpu_seconds": 3.0, "protocol": "p"}
    lines = [{"step": 1, "task_gradient": 2.0 + seed, "train_accuracy": 0.5}]
    return Finished(job, Path(label), {**result, "tests": {"digits": {"accuracy": 0.5, "each": each}}}, lines)


def test_differences_are_paired_over_tasks_and_over_runs() -> None:
    one = [finished("maml", 0, [0.5, 0.7, 0.9]), finished("maml", 1, [0.6, 0.8, 1.0])]
    two = [finished("anil", 0, [0.4, 0.6, 0.8]), finished("anil", 1, [0.4, 0.6, 0.8])]
    groups = {("maml", None): one, ("anil", None): two}
    row = difference_table(groups, ["digits"], "")["rows"][0]
    # every task of seed 0 differs by 10 points, of seed 1 by 20: no spread over tasks, t(1) * sd / sqrt(2) over runs
    assert row == ["maml − anil", "digits", "+15.00", "± 0.00", "± 63.53", "not supported"]
    alone = difference_table({key: runs[:1] for key, runs in groups.items()}, ["digits"], "")["rows"][0]
    assert alone[-2:] == ["one run each", "supported between these two networks"]
    table = summary(MAMLOptions(), [*one, *two])["tables"][0]
    assert table["rows"][0] == ["maml", 2, "75.00 ± 16.00, sd 7.07"]
    assert curves(groups)[0]["series"][0]["y"] == [2.5]


def test_pictures_are_drawn_from_what_is_well_formed_only() -> None:
    group = {"title": "<masks>", "width": 3, "height": 2, "bits": [to_bits([True, False, True, False, True, True])]}
    assert group["bits"] == ["ac"]
    drawn = svg(group) or ""
    assert "M0 0h1v1h-1zM2 0h1v1h-1zM1 1h2v1h-2z" in drawn
    assert "&lt;masks&gt;" in drawn
    for wrong in ({"width": 0}, {"height": 4}, {"bits": []}, {"bits": ["zz"]}, {"bits": [3]}, {"width": True}, {"bits": "ac"}):
        assert svg({**group, **wrong}) is None
