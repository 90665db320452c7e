"""What ``bench/device.sh`` runs on a machine with a GPU: ``python -m bench.device tests|kernels|search --out FOLDER``.

Each part writes JSON into the folder and needs only torch, Triton and the library's own small dependencies; pytest is used where
it is installed. ``--device cpu --smoke`` rehearses the same code at tiny sizes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import torch

from bench.mixed_edge import PASSES, PUBLISHED, calls, floor_bytes
from bench.rows import Quantiles, measured_on, now
from bench.timing import Call

Device = Literal["cuda", "cpu"]
# Inputs are rotated through at least this much memory, so that no call finds its own in a GPU's caches.
ROTATED_BYTES = 256 * 2**20
MOST_COPIES = 16


def main(argv: Sequence[str]) -> int:
    """Run one part; its exit code says whether it did what it should."""
    parser = argparse.ArgumentParser(prog="python -m bench.device", description=__doc__)
    parser.add_argument("part", choices=("tests", "kernels", "search"))
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that everything runs")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("device: torch finds no usable GPU; rehearse with --device cpu --smoke", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    part = {"tests": run_tests, "kernels": run_kernels, "search": run_search}[arguments.part]
    return part(arguments.out, arguments.device, arguments.smoke)


def run_tests(out: Path, device: Device, smoke: bool) -> int:
    """The GPU lane; counts and failures go into tests.json."""
    if find_spec("pytest") is None:
        _write(out / "tests.json", {"ran": False, "why": "pytest is not installed", "environment": measured_on()})
        return 1
    report = out / "tests.xml"
    # The project's own options name plug-ins that need not be here.
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-m", "gpu", "tests/gpu", f"--junitxml={report}"]
    code = subprocess.run(command).returncode
    suite = ElementTree.parse(report).getroot()[0]
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = [case.get("name") for case in suite.iter("testcase") if {"failure", "error"} & {child.tag for child in case}]
    _write(out / "tests.json", {"ran": True, **counts, "failed": failed, "environment": measured_on()})
    return code


def run_kernels(out: Path, device: Device, smoke: bool) -> int:
    """The mixed edge group against modules, eager and as CUDA graphs, each row beside the floor of this run's own ceilings."""
    found = ceilings(device, smoke)
    with (out / "kernels.jsonl").open("w") as file:
        for row in kernel_rows(found, device, smoke):
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            print(f"{row['pass']:13}{row['method']:45}{row['seconds']['median'] * 1e3:9.3f} ms  {row['floor_ratio']:7.1f} floors")
    return 0


def ceilings(device: str, smoke: bool) -> dict[str, float]:
    """Bytes a second of a large copy, and operations a second of a large float32 matrix product."""
    count, side = (2**16, 64) if smoke else (2**27, 8192)
    source = torch.ones(count, device=device)
    target, matrix = torch.empty_like(source), torch.ones(side, side, device=device)
    copy = Quantiles.of(seconds([partial(target.copy_, source)], device, 10)).median
    product = Quantiles.of(seconds([partial(torch.mm, matrix, matrix)], device, 10)).median
    return {"bytes_per_second": 2 * 4 * count / copy, "operations_per_second": 2 * side**3 / product}


def kernel_rows(found: dict[str, float], device: str, smoke: bool) -> Iterator[dict[str, Any]]:
    """One row a pass, formulation and way to launch."""
    samples, channels, size, edges = (2, 4, 6, 2) if smoke else (64, 16, 32, 4)
    state = samples * channels * size * size * 4
    copies = 2 if smoke else min(MOST_COPIES, -(-ROTATED_BYTES // (state * (1 + edges))))
    for kind in PASSES:
        floor = floor_bytes(kind, state, edges) / found["bytes_per_second"]
        base: float | None = None
        for layout in ("contiguous", "channels_last"):
            rotated = [calls(kind, channels, size, edges, layout, samples, device) for _ in range(copies)]
            for method in rotated[0]:
                ways: dict[str, list[Call]] = {method: [each[method] for each in rotated]}
                if device == "cuda":
                    ways[f"{method}, graphed"] = [captured(call) for call in ways[method]]
                for name, ring in ways.items():
                    spent = Quantiles.of(seconds(ring, device, 3 if smoke else 30))
                    base = spent.median if name == PUBLISHED else base
                    yield {
                        "operator": "mixed edge group",
                        "pass": kind,
                        "shape": [samples, channels, size, size],
                        "edges": edges,
                        "dtype": "float32",
                        "layout": layout,
                        "method": name,
                        "seconds": {"median": spent.median, "p20": spent.p20, "p80": spent.p80},
                        "bytes": floor_bytes(kind, state, edges),
                        "floor_seconds": floor,
                        "floor_ratio": spent.median / floor,
                        "baseline": PUBLISHED,
                        "ratio": None if base is None else spent.median / base,
                        "ceilings": found,
                        "date": now(),
                        "environment": measured_on(),
                    }


def seconds(ring: Sequence[Call], device: str, rounds: int) -> list[float]:
    """Seconds of single calls, one after the other through the ring; by CUDA events on a GPU, which is waited for at the end."""
    for call in (*ring, *ring):
        call()
    if device == "cpu":
        return [_elapsed(call) for call in islice(cycle(ring), rounds)]
    pairs = []
    for call in islice(cycle(ring), rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]


def _elapsed(call: Call) -> float:
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def captured(call: Call) -> Callable[[], None]:
    """The call as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def run_search(out: Path, device: Device, smoke: bool) -> int:
    """One whole MetaNTK-NAS search on scikit-learn's digits, through the library; its result and seconds go into search.json."""
    from engine.methods.metantk_nas import search
    from engine.methods.options import EpisodeOptions
    from engine.methods.registry import find_method
    from engine.runs.distribution import Ranks
    from engine.runs.progress import Progress
    from engine.runs.run import FollowingRun
    from engine.runs.signals import graceful

    shape = {"cells": 2, "channels": 16, "repeats": 1} if smoke else {"cells": 5, "channels": 16, "size": 28, "memory": "16GB"}
    options = find_method("metantk-nas").options(data="digits", device=device, seed=0, **shape)
    assert isinstance(options, EpisodeOptions)
    before = time.perf_counter()
    # A run that leaves all writing to another process, so that nothing but search.json is written.
    with graceful() as stop:
        result = search(options, FollowingRun(out, Ranks(rank=1)), stop, partial(Progress, quiet=True))
    facts = {
        "seconds": time.perf_counter() - before,
        "options": shape,
        "result": result,
        "environment": measured_on(),
        "date": now(),
    }
    _write(out / "search.json", facts)
    print(f"search: {facts['seconds']:.1f} s")
    return 0


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
