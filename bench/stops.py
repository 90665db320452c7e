"""``python -m bench.stops``: how long a run takes to save and leave once it is asked to.

Every method in its default preset (or ``--preset``) is started, asked to stop at a random moment by SIGTERM and SIGINT in turn,
and timed until it has left; its exit code must be that of the signal, and what it leaves must be whole. Wall seconds say what a
user waits for on this machine; CPU seconds say what the run did in between, whatever else the machine was doing.
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
from pathlib import Path
from typing import Any

from bench.faults import WORDS
from bench.rows import measured_on, now
from engine.cli import run_command
from engine.errors import ConfigurationError
from engine.runs.run import Run

CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
GOAL_SECONDS = 5.0
BEGIN_SECONDS = 120.0


def main(argv: Sequence[str]) -> int:
    """Stop every method; exit code 1 where one took more CPU seconds than the goal, or left with another code."""
    parser = argparse.ArgumentParser(prog="python -m bench.stops", description="Time how soon runs obey a signal.")
    parser.add_argument("--method", action="append", choices=list(WORDS), help="only this one; may be repeated")
    parser.add_argument("--count", type=int, default=2, help="signals to each method (default: %(default)s)")
    parser.add_argument("--preset", default="default", help="preset of the runs (default: %(default)s)")
    parser.add_argument("--toy", action="store_true", help="the toy settings of bench.faults instead of a preset")
    parser.add_argument("--seconds", type=float, default=5.0, help="latest moment after the first step (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a row for each signal to this file")
    chosen = parser.parse_args(argv)
    chance, missed = random.Random(0), False
    for method in chosen.method or [name for name in WORDS if name != "random"]:
        words = WORDS[method].split() if chosen.toy else ["--preset", chosen.preset]
        for turn in range(chosen.count):
            number = list(CODES)[turn % len(CODES)]
            row = stopped(method, words, number, chance.uniform(0, chosen.seconds))
            missed |= row["cpu_seconds"] > GOAL_SECONDS or row["exit"] != CODES[number]
            print(
                f"{method:<16} {row['signal']}: {row['seconds']:6.2f} s, {row['cpu_seconds']:6.2f} s of CPU, exit {row['exit']}"
            )
            if chosen.json is not None:
                with chosen.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**row, "date": now(), "environment": measured_on()}) + "\n")
    return int(missed)


def stopped(method: str, words: Sequence[str], number: signal.Signals, after: float) -> dict[str, Any]:
    """One run, sent the signal ``after`` seconds after it has begun to work."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "engine.search", method, *words, "--device", "cpu", "--quiet", "--out", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_work(process, out)
        time.sleep(after)
        before, asked = _cpu_seconds(process.pid), time.monotonic()
        if before is None:
            raise ConfigurationError(f"{method} ended before it was asked to; choose a larger preset or fewer --seconds")
        process.send_signal(number)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - asked
        process.returncode = os.waitstatus_to_exitcode(status)
        with Run.resume(out) as run:
            whole = run.load() is not None
        spent = usage.ru_utime + usage.ru_stime - before
    found = {"method": method, "words": " ".join(words), "signal": number.name, "exit": process.returncode, "checkpoint": whole}
    return {**found, "seconds": round(seconds, 3), "cpu_seconds": round(spent, 3)}


def wait_for_work(process: subprocess.Popen[bytes], out: Path) -> None:
    """Wait until the run has written its first line or checkpoint, or has been going for a while."""
    started = time.monotonic()
    signs = [out / "scores.jsonl", out / "metrics.jsonl"]
    while time.monotonic() - started < BEGIN_SECONDS and process.poll() is None:
        if (out / "checkpoints").is_dir() or any(path.exists() and path.stat().st_size for path in signs):
            return
        if (out / "env.json").is_file() and (_cpu_seconds(process.pid) or 0.0) > 10:
            return
        time.sleep(0.05)


def _cpu_seconds(pid: int) -> float | None:
    """CPU seconds of a process so far; None where it has ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] == "Z":
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
