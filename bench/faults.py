"""``python -m bench.faults``: kill searches at random moments, resume them, and compare what they leave with an undisturbed run.

Every method takes its turn on a toy setting until ``--count`` kills were survived. A run is started (or resumed) and killed by
SIGKILL after a random part of the time that the undisturbed run took, again and again, until it ends by itself; then its
final files are compared: bytes for bytes, except for the seconds that metrics.jsonl and result.json record. ``--ranks 2``
starts the methods that share work, the undisturbed run too, with torchrun and kills one rank instead, which torchrun restarts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.rows import measured_on, now
from engine.cli import run_command
from engine.errors import ConfigurationError
from engine.methods.registry import METHODS
from engine.spaces.space import Space, dense_edges

TOY = Space(name="toy", operations=("none", "skip_connect", "conv_3x3", "max_pool_3x3BN"), nodes=2, edges=dense_edges(2))
_CELLS = "--space bench.faults:TOY --cells 2"
_PRUNING = f"{_CELLS} --repeats 1 --width 2"
_DARTS = "--cells 2 --channels 2 --epochs 2 --batch 8"
_META = "--channels 2 --cells 2 --ways 3 --train-shots 3 --meta-epochs 4 --meta-batch 2 --steps 2 --batch 4 --test-steps 4"
_MAML = "--iterations 20 --validate-every 5 --validation-tasks 4 --test-tasks 6 --batch 2"
WORDS = {
    "metantk-nas": f"{_PRUNING} --region-images 30",
    "te-nas": f"{_PRUNING} --region-images 30",
    "linear-regions": f"{_PRUNING} --region-images 200",
    "metantk-only": _PRUNING,
    "random": _CELLS,
    "darts": f"{_DARTS} --images 24",
    "pcdarts": f"{_DARTS} --images 24 --partial 1 --warm-up 1",
    "pdarts": f"{_DARTS} --images 24 --added-cells 0,1,1 --warm-up 0",
    "prdarts": f"{_DARTS} --images 24",
    "robust-darts": f"{_DARTS} --images 24 --order first --drop-path 0.2 --perturb random --eigenvalue 3",
    "tetlo": f"{_DARTS} --images 12 --pairs 6 --interval 2",
    "metanas": f"{_META} --warm-up 2 --eval-tasks 2 --eval-every 2 --validation-tasks 1",
    "lamanas": f"{_META} --eval-tasks 2 --validation-tasks 0",
    "maml": _MAML,
    "anil": _MAML,
    "boil": _MAML,
    "meta-ticket": "--iterations 12 --validate-every 3 --validation-tasks 0 --test-tasks 4 --batch 2",
}
# Training loops save twice a minute; here five times a second, so that a killed toy run has checkpoints to go on from.
HURRIED = """
import sys
from engine.cli import run_command
from engine.runs import loop
from engine.search import main
loop.steps.__kwdefaults__["seconds"] = 0.2
sys.exit(run_command(main, sys.argv[1:]))
"""
# Seconds are facts of one execution; everything else in a run directory is a function of its configuration.
TIMES = ("seconds", "phases", "started", "finished")
UNCOMPARED = ("env.json", "report.html", "lock")


@dataclass
class Count:
    """What happened to one method: kills survived, runs ended, runs whose files differ, and where."""

    method: str
    kills: int = 0
    ends: int = 0
    differing: int = 0
    notes: str = ""


def main(argv: Sequence[str]) -> int:
    """Run the campaign; exit code 1 if any run ended otherwise than the undisturbed one."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.faults", description="Kill searches at random moments and resume them."
    )
    parser.add_argument("--count", type=int, default=30, help="kills in all (default: %(default)s)")
    parser.add_argument("--method", action="append", choices=list(WORDS), help="only this one; may be repeated")
    parser.add_argument(
        "--ranks", type=int, default=1, help="processes that torchrun starts, one of which is killed (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the counts to this file, one JSON object a line")
    chosen = parser.parse_args(argv)
    methods = [name for name in chosen.method or WORDS if chosen.ranks == 1 or METHODS[name].shares_work]
    if chosen.count < 1 or chosen.ranks < 1 or not methods:
        raise ConfigurationError("--count and --ranks must be at least 1, and with ranks a method that shares its work")
    counts = [
        campaign(name, chosen.count // len(methods) + (turn < chosen.count % len(methods)), chosen.ranks, chosen.seed)
        for turn, name in enumerate(methods)
    ]
    for count in counts:
        print(f"{count.method:<16} {count.kills} kills, {count.ends} runs, {count.differing} differ {count.notes}")
        if chosen.json is not None:
            facts = {"fault": "kill -9", "ranks": chosen.ranks, "date": now(), "environment": measured_on()}
            with chosen.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**asdict(count), **facts}) + "\n")
    return int(any(count.differing for count in counts))


def campaign(method: str, kills: int, ranks: int, seed: int) -> Count:
    """Kill runs of one method until ``kills`` were survived."""
    count, chance = Count(method), random.Random(f"{seed} {method}")
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        started = time.monotonic()
        _wait(_start(method, whole, ranks))
        seconds = time.monotonic() - started
        while count.kills < kills:
            out = Path(folder) / f"run-{count.ends}"
            while not (out / "result.json").exists():
                process = _start(method, out, ranks)
                if count.kills < kills and _killed(process, chance.uniform(0, seconds), out, ranks):
                    count.kills += 1
                if ranks > 1 or count.kills == kills:
                    _wait(process)
            count.ends += 1
            names = {path.name for place in (whole, out) for path in place.iterdir() if path.is_file()}
            differing = [name for name in sorted(names.difference(UNCOMPARED)) if _content(out / name) != _content(whole / name)]
            count.differing += bool(differing)
            count.notes += f"[run {count.ends}: {', '.join(differing)}]" if differing else ""
    return count


def _start(method: str, out: Path, ranks: int) -> subprocess.Popen[bytes]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "--max-restarts", "3"]
    program = ["-c", HURRIED] if ranks == 1 else [*launcher, "-m", "engine.search"]
    words = [*program, method, *WORDS[method].split(), "--device", "cpu", "--quiet", "--out", str(out)]
    resume = ["--resume"] if (out / "config.toml").exists() else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    return subprocess.Popen([sys.executable, *words, *resume], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _wait(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise ConfigurationError(f"a run ended with {process.returncode}: {errors.decode(errors='replace')[-500:].strip()}")


def _killed(process: subprocess.Popen[bytes], after: float, out: Path, ranks: int) -> bool:
    """Kill the process, or one of its ranks, after so many seconds; False if it ended before."""
    try:
        _, errors = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        victims = [process.pid] if ranks == 1 else _children(process.pid)
        if victims:
            os.kill(victims[-1], signal.SIGKILL)
        if ranks == 1:
            process.communicate()
        return bool(victims)
    if process.returncode:
        raise ConfigurationError(f"a run ended with {process.returncode}: {errors.decode(errors='replace')[-500:].strip()}")
    return False


def _children(pid: int) -> list[int]:
    """The ranks that a torchrun process has started."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def _content(path: Path) -> Any:
    """The bytes of a file, or its JSON without times."""
    if not path.exists():
        return None
    if path.name not in ("metrics.jsonl", "result.json"):
        return path.read_bytes()
    text = path.read_text("utf-8")
    return _timeless([json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text))


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if not key.endswith(TIMES)}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
