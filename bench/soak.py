"""``python -m bench.soak --seconds 7200``: watch a long run from outside for growth of memory, open files and files on disk.

The run is a real command in a process of its own; its resident memory, descriptors and the files of its directory are read every
few seconds, and lines are fitted to what comes after the warm-up. Exit code 1 if one of them grows by more than a search may:
1 MB, or one descriptor or file, an hour. A slope over less than an hour is uncertain; its standard error is told beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.rows import measured_on, now
from bench.stops import wait_for_work
from engine.cli import run_command
from engine.errors import ConfigurationError

# Runs that go on for longer than anybody waits, in small steps that write lines and checkpoints.
LONG = {
    "maml": "--iterations 100000000 --validate-every 200 --validation-tasks 4 --test-tasks 4 --batch 2",
    "darts": "--cells 2 --channels 2 --epochs 1000000 --batch 8 --images 24",
    "metanas": "--channels 2 --cells 2 --ways 3 --train-shots 3 --meta-epochs 1000000 --meta-batch 2 --steps 2 --batch 4",
}
WARM_UP = 0.3
LIMITS = {"megabytes": 1.0, "descriptors": 1.0, "files": 1.0}


@dataclass(frozen=True)
class Slope:
    """Growth an hour, and its standard error."""

    per_hour: float
    error: float

    @property
    def certain(self) -> float:
        """What it grows by at least, with the odds of two standard errors."""
        return self.per_hour - 2 * self.error


def main(argv: Sequence[str]) -> int:
    """Watch one run; exit code 1 if it grows."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description="Watch a long run for growth.")
    parser.add_argument("--method", default="maml", choices=list(LONG), help="what runs (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=7200.0, help="for how long (default: %(default)s)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append what was found to this file")
    chosen = parser.parse_args(argv)
    if not 0 < chosen.every < chosen.seconds / 10:
        raise ConfigurationError("--every must leave at least ten looks in --seconds")
    looks = watch(chosen.method, chosen.seconds, chosen.every)
    found = {name: slope(looks[:, 0], looks[:, column + 1]) for column, name in enumerate(LIMITS)}
    for name, grown in found.items():
        print(f"{name:<12} {grown.per_hour:+.2f} an hour, standard error {grown.error:.2f}")
    if chosen.json is not None:
        row = {"method": chosen.method, "seconds": chosen.seconds, "looks": len(looks)}
        row |= {name: asdict(grown) for name, grown in found.items()} | {"date": now(), "environment": measured_on()}
        with chosen.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return int(any(grown.certain > LIMITS[name] for name, grown in found.items()))


def watch(method: str, seconds: float, every: float) -> np.ndarray:
    """Looks at a run of ``method``, (N, 4): seconds since its first line, resident megabytes, descriptors, files."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        words = [method, *LONG[method].split(), "--device", "cpu", "--quiet", "--out", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([sys.executable, "-m", "engine.search", *words], env=environment, stderr=subprocess.PIPE)
        wait_for_work(process, out)
        started, looks = time.monotonic(), []
        while time.monotonic() - started < seconds and process.poll() is None:
            time.sleep(every)
            if process.poll() is None:
                looks.append((time.monotonic() - started, *look(process.pid, out)))
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
        if process.returncode != 75:
            raise ConfigurationError(f"the run ended with {process.returncode}: {errors.decode(errors='replace')[-300:].strip()}")
    return np.array(looks)


def look(pid: int, out: Path) -> tuple[float, int, int]:
    """Resident megabytes and descriptors of a process, and the files below a folder."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, descriptors, sum(len(names) for _, _, names in os.walk(out))


def slope(seconds: np.ndarray, values: np.ndarray) -> Slope:
    """The least-squares line through what comes after the warm-up."""
    kept = seconds >= WARM_UP * seconds[-1]
    hours, values = seconds[kept] / 3600, values[kept]
    centred = hours - hours.mean()
    spread = float((centred**2).sum())
    rise = float((centred * values).sum() / spread)
    residuals = values - values.mean() - rise * centred
    return Slope(rise, float(np.sqrt((residuals**2).sum() / max(1, len(hours) - 2) / spread)))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
