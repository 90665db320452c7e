"""Checkpoints: what is saved comes back, and damage is noticed."""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from pathlib import Path

import pytest
import torch

from engine.errors import ConfigurationError
from engine.runs.run import Run

FILES = ("state.json", "tensors.safetensors", "manifest.json")
TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "half": torch.ones(3, dtype=torch.bfloat16)}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A run with three saves, of which the last two are there."""
    with Run.create(tmp_path / "run", "", {}) as run:
        for step in range(3):
            run.append("scores.jsonl", {"step": step})
            run.save({"step": step}, TENSORS)
    return tmp_path / "run"


def load(directory: Path) -> tuple[dict[str, object] | None, list[str]]:
    notices: list[str] = []
    with Run.resume(directory, notice=notices.append) as run:
        loaded = run.load()
    return loaded and loaded[0], notices


def test_state_and_tensors_come_back(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    tensors = {
        **TENSORS,
        "transposed": TENSORS["weight"].T,
        "a": shared,
        "b": shared[1:],
        "leaf": torch.ones(2, requires_grad=True),
    }
    state = {"alive": [[True, False]], "best": math.inf, "group": None, "name": "ü"}
    with Run.create(tmp_path, "", {}) as run:
        run.save(state, tensors)
    with Run.resume(tmp_path) as run:
        loaded = run.load()
    assert loaded is not None
    assert loaded[0] == state
    assert loaded[1].keys() == tensors.keys()
    assert all(torch.equal(loaded[1][name], value) and loaded[1][name].dtype == value.dtype for name, value in tensors.items())


def test_the_last_two_are_kept(saved: Path) -> None:
    assert sorted(p.name for p in (saved / "checkpoints").iterdir()) == ["000002", "000003", "LATEST"]
    assert (saved / "checkpoints/LATEST").read_text() == "000003\n"
    assert sorted(p.name for p in (saved / "checkpoints/000003").iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_is_noticed(saved: Path, name: str) -> None:
    path = saved / "checkpoints/000003" / name
    original = path.read_bytes()
    positions = {0, len(original) - 1, *random.Random(0).sample(range(len(original)), min(40, len(original)))}
    for position in sorted(positions):
        damaged = bytearray(original)
        damaged[position] ^= 1 << random.Random(position).randrange(8)
        path.write_bytes(damaged)
        state, notices = load(saved)
        assert state == {"step": 1}
        assert len(notices) == 1
        assert "going on from checkpoint 000002" in notices[0]
        (saved / "scores.jsonl").write_text('{"step":0}\n{"step":1}\n{"step":2}\n')


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncate", "empty", "remove", "extend"])
def test_every_damaged_file_is_named(saved: Path, name: str, damage: str) -> None:
    path = saved / "checkpoints/000003" / name
    data = path.read_bytes()
    path.write_bytes({"truncate": data[:-1], "empty": b"", "extend": data + b"\n", "remove": b""}[damage])
    if damage == "remove":
        path.unlink()
    state, notices = load(saved)
    assert state == {"step": 1}
    assert name in notices[0]
    assert (saved / "scores.jsonl").read_text() == '{"step":0}\n{"step":1}\n'


def test_all_damaged_is_an_error_and_changes_nothing(saved: Path) -> None:
    for number in ("000002", "000003"):
        (saved / "checkpoints" / number / "state.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"000003: state\.json .*000002: state\.json .*choose|another --out") as caught:
        load(saved)
    assert "\n" not in str(caught.value)
    assert len((saved / "scores.jsonl").read_text().splitlines()) == 3


def test_a_shortened_log_makes_the_checkpoint_unusable(saved: Path) -> None:
    (saved / "scores.jsonl").write_text('{"step":0}\n{"step":1}\n')
    state, notices = load(saved)
    assert state == {"step": 1}
    assert "scores.jsonl has 22 bytes" in notices[0]


def test_after_a_fallback_the_whole_checkpoints_stay(saved: Path) -> None:
    (saved / "checkpoints/000003/state.json").write_text("{}")
    with Run.resume(saved, notice=lambda _: None) as run:
        run.load()
        run.save({"step": "new"})
    assert sorted(p.name for p in (saved / "checkpoints").glob("0*")) == ["000002", "000004"]
    shutil.rmtree(saved / "checkpoints/000004")
    assert load(saved) == ({"step": 1}, [])


def test_the_pointer_and_leftovers_do_not_matter(saved: Path) -> None:
    (saved / "checkpoints/LATEST").write_text("nonsense")
    (saved / "checkpoints/.new").mkdir()
    (saved / "checkpoints/.new/state.json").write_text("half")
    (saved / "checkpoints/notes").mkdir()
    assert load(saved) == ({"step": 2}, [])
    with Run.resume(saved) as run:
        run.load()
        run.save({"step": 3})
    assert not (saved / "checkpoints/.new").exists()
    assert load(saved) == ({"step": 3}, [])


def test_a_well_formed_manifest_of_something_else_is_damage(saved: Path) -> None:
    manifest = saved / "checkpoints/000003/manifest.json"
    value = json.loads(manifest.read_text())
    value["files"]["../../config.toml"] = value["files"].pop("tensors.safetensors")
    manifest.write_text(json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n")
    state, notices = load(saved)
    assert state == {"step": 1}
    assert "manifest.json is damaged" in notices[0]


def test_a_small_save_is_fast(tmp_path: Path) -> None:
    with Run.create(tmp_path, "", {}) as run:
        times = []
        for step in range(10):
            start = time.process_time()
            run.save({"step": step})
            times.append(time.process_time() - start)
    assert min(times) < 0.01
