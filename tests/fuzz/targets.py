"""What reads files from outside, each with whole files to damage: a target returns, or raises the library's own error."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import pickle
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat

from engine.data import load
from engine.data.archives import open_zip, read_tar, read_zip_member, zip_members
from engine.data.class_splits import parse_split
from engine.data.matlab import read_mat
from engine.data.pictures import decode, file_picture
from engine.data.safe_pickle import parse_pickle
from engine.methods.registry import find_method
from engine.runs.__main__ import main as runs_command
from engine.runs.checkpoints import CheckpointStore, Damaged, pack, unpack
from engine.runs.config import choose, from_toml
from engine.runs.run import Run
from engine.spaces.genotype import Genotype
from engine.spaces.space import FEW_SHOT


@dataclass(frozen=True)
class Target:
    """``read(folder, content)`` reads a file of that content, in an empty ``folder`` that it may write to."""

    seeds: Callable[[], list[bytes]]
    read: Callable[[Path, bytes], object]


def _file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@functools.cache
def genotype_json() -> bytes:
    alive = [[[name == "conv_3x3" for name in FEW_SHOT.operations] for _ in FEW_SHOT.edges] for _ in FEW_SHOT.kinds]
    return FEW_SHOT.genotype(alive).to_json().encode()


CONFIG = b'method = "metantk-nas"\ndata = "digits"\nseed = 3\nreg = 0.001\ntime = inf\nwidth = 4\nfaithful = false\n'


def read_config(folder: Path, content: bytes) -> None:
    path = _file(folder, "c.toml", content)
    method, _ = choose(["--config", str(path)])
    from_toml(method, path)
    from_toml(find_method("te-nas"), path)


def npz_files() -> list[bytes]:
    found = []
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        images = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4)
        save(buffer, images=images, labels=np.repeat([0, 1, 2], 2), split=["train", "val", "test"], class_names=["a", "b", "c"])
        found.append(buffer.getvalue())
    return found


def read_npz_set(folder: Path, content: bytes) -> None:
    load(f"npz:{_file(folder, 'set.npz', content)}")


def safetensors_files() -> list[bytes]:
    return [pack({"weight": torch.arange(6.0).reshape(2, 3), "half": torch.ones(3, dtype=torch.bfloat16)})]


def manifests() -> list[bytes]:
    digest = "0" * 64
    entries = {"state.json": {"bytes": 2, "sha256": digest}, "tensors.safetensors": {"bytes": 9, "sha256": digest}}
    return [json.dumps({"files": entries, "schema": 1}, sort_keys=True, separators=(",", ":")).encode() + b"\n"]


def read_checkpoint(folder: Path, content: bytes) -> None:
    directory = folder / "000001"
    directory.mkdir(exist_ok=True)
    for name in ("manifest.json", "state.json", "tensors.safetensors"):
        _file(directory, name, content)
    CheckpointStore(folder).newest({})


PLOT = {"title": "t", "x_label": "x", "y_label": "y", "kind": "line", "series": [{"name": "s", "x": [0, 1], "y": [1, "nan"]}]}
TABLE = {"title": "t", "columns": ["a", "b"], "rows": [[1, "x"], [2.5, "y"]]}
PRUNED = {"cell": "normal", "edge": 0, "source": 0, "target": 2, "operation": "conv_3x3", "rank_sum": 3, "agreement": 0.5}
ROUND = {"event": "round", "round": 0, "stage": "operations", "candidates": 2, "seconds": 1.5, "phases": {"data": 1}}
RESULT = {"schema": 1, "method": "metantk-nas", "seconds": 3.5, "choice_changes": {"share": 0.5}}
SCORE = {
    "round": 0,
    "repeat": 0,
    "cell": "normal",
    "edge": 1,
    "operation": "x",
    "condition": "inf",
    "condition_status": "singular",
}
RUN_FILES = {
    "env.json": json.dumps({"python": "3.12", "cpu": "x", "threads": 1}).encode(),
    "result.json": json.dumps({**RESULT, "plots": [PLOT], "tables": [TABLE]}).encode(),
    "metrics.jsonl": json.dumps({**ROUND, "pruned": [PRUNED]}).encode() + b"\n",
    "scores.jsonl": json.dumps(SCORE).encode() + b"\n",
}


def run_files() -> list[bytes]:
    return [*RUN_FILES.values(), genotype_json(), CONFIG]


def read_run_directory(folder: Path, content: bytes) -> None:
    """One file of a run, drawn by the content, has the content."""
    files = {**RUN_FILES, "genotype.json": genotype_json(), "config.toml": CONFIG}
    files[sorted(files)[zlib.crc32(content) % len(files)]] = content
    run = folder / "run"
    run.mkdir()
    for name, whole in files.items():
        _file(run, name, whole)
    for command in ("show", "report"):
        runs_command([command, str(run)])
    runs_command(["list", str(folder)])
    with Run.resume(run, notice=lambda _: None) as resumed:
        resumed.load()


def pickles() -> list[bytes]:
    content = {"data": np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3), "labels": [3], "names": ("a", b"b"), "x": np.float32(1)}
    return [pickle.dumps(content, protocol) for protocol in (0, 2, 5)]


def read_pickled_set(folder: Path, content: bytes) -> None:
    parse_pickle(content, "fuzz")
    _file(folder, "CIFAR_FS_train.pickle", content)
    load("cifar-fs", folder, splits=("train",))


def zip_files() -> list[bytes]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/x.png", b"12345678")
        archive.writestr("b/y.png", b"1" * 500, zipfile.ZIP_DEFLATED)
    return [buffer.getvalue()]


def read_zip(folder: Path, content: bytes) -> None:
    with open_zip(_file(folder, "a.zip", content)) as archive:
        for info in zip_members(archive, ".png"):
            read_zip_member(archive, info)


def tar_files() -> list[bytes]:
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("folder/data", "folder/link"):
            member = tarfile.TarInfo(name)
            member.size = 5
            archive.addfile(member, io.BytesIO(b"12345"))
    return [buffer.getvalue()]


def pictures() -> list[bytes]:
    image = Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))
    found = []
    for kind in ("PNG", "JPEG"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        found.append(buffer.getvalue())
    return found


def read_tensors(folder: Path, content: bytes) -> None:
    with contextlib.suppress(Damaged):
        unpack(content)


def matlab_files() -> list[bytes]:
    found = []
    table = np.array([(1, "one"), (2, "two")], dtype=[("n", object), ("word", object)])[:, None]
    for compressed in (False, True):
        buffer = io.BytesIO()
        savemat(buffer, {"labels": np.arange(9, dtype=np.uint8), "table": table}, do_compression=compressed)
        found.append(buffer.getvalue())
    return found


def read_matlab(folder: Path, content: bytes) -> None:
    for name in ("labels", "table"):
        read_mat(_file(folder, "a.mat", content), name)


TARGETS = {
    "genotype": Target(lambda: [genotype_json()], lambda folder, content: Genotype.load(_file(folder, "g.json", content))),
    "config": Target(lambda: [CONFIG], read_config),
    "npz": Target(npz_files, read_npz_set),
    "safetensors": Target(safetensors_files, read_tensors),
    "checkpoint": Target(manifests, read_checkpoint),
    "run-directory": Target(run_files, read_run_directory),
    "pickle": Target(pickles, read_pickled_set),
    "matlab": Target(matlab_files, read_matlab),
    "zip": Target(zip_files, read_zip),
    "tar": Target(tar_files, lambda folder, content: read_tar(_file(folder, "a.tar.gz", content), {"data", "link"})),
    "picture": Target(pictures, lambda folder, content: decode([file_picture(_file(folder, "p.png", content))], (3, 8, 8))),
    "split": Target(
        lambda: [b'{"train": ["a", "b"], "val": [], "test": ["c"]}'],
        lambda folder, content: parse_split(content.decode("utf-8", "replace"), "fuzz"),
    ),
}
