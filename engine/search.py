"""The search command: read a configuration, run one method, leave a run directory.

``python -m engine.search [METHOD] [OPTIONS]``, or ``engine search``; ``torchrun ... -m engine.search`` on several processes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engine.benchmarks.outcome import benchmark_lines, check_benchmark, open_benchmark, with_benchmark
from engine.cli import run_command
from engine.data.names import SETS, check_name
from engine.errors import ConfigurationError, MissingDataError
from engine.evaluation.options import PRESETS
from engine.evaluation.registry import TRAIN
from engine.methods.options import CellOptions, RunOptions, suggestion
from engine.methods.registry import SEARCH, Command, Method
from engine.runs.config import CONFIG_NAME, choose, free_directory, resolve, restarted, to_toml
from engine.runs.distribution import Ranks, joined, world_size
from engine.runs.signals import leaving
from engine.spaces.space import get_space

if TYPE_CHECKING:
    from engine.runs.run import Run


def main(argv: Sequence[str] | None = None) -> int:
    """Run one search and return its exit code; raises :class:`~engine.errors.EngineError` on what a user can mend."""
    return start(SEARCH, sys.argv[1:] if argv is None else argv)


def start(command: Command, argv: Sequence[str]) -> int:
    """Run a method of ``command`` from its command line and leave its run directory; returns the exit code."""
    method, words = choose(restarted(argv), command)
    options = resolve(method, words, command)
    check_inputs(options)
    check_sharing(method, options)
    with leaving(), joined(options.device) as ranks:
        finished = ranks.lead and bool(options.resume and options.out) and _finished(Path(options.out or ""))
        if ranks.share("finished", finished):
            if ranks.lead:
                print(f"{options.out} is finished already; nothing is left to do")
            return _train_found(options) if ranks.lead else 0
        options = replace(options, device=usable_device(options.device))
        if options.dry_run:
            return _print_plan(method, options) if ranks.lead else 0
        return _run(method, options, ranks)


def check_sharing(method: Method, options: RunOptions) -> None:
    """Refuse a group of ranks where the method has no work to share, or would not find its run after a restart."""
    if world_size() == 1:
        return
    if not method.shares_work:
        raise ConfigurationError(f"{method.name} computes in one process; start it without torchrun")
    if options.out is None:
        raise ConfigurationError("--out: give the run directory, so that a restarted group of ranks finds it")
    if isinstance(options, CellOptions) and options.then_train is not None:
        raise ConfigurationError("--then-train computes in one process; search with torchrun, then start engine train without it")


def check_inputs(options: RunOptions) -> None:
    """Refuse what can be refused without torch: an unknown data set or space, a data root that is not there."""
    if options.reads_images:
        check_name(options.data)
    if isinstance(options, CellOptions):
        get_space(options.space)
        check_benchmark(options)
        if options.then_train is not None and options.then_train not in PRESETS:
            raise ConfigurationError(
                f"--then-train: unknown preset {options.then_train!r}; {suggestion(options.then_train, PRESETS)}"
            )
    if options.data_root is not None and not Path(options.data_root).expanduser().is_dir():
        how = SETS[options.data].how_to_get if options.data in SETS else ""
        remedy = f"name the folder that holds {options.data}; to get it: {how}" if how else "leave it out or name a folder"
        raise MissingDataError(f"--data-root: there is no folder {options.data_root}\n{remedy}")


def usable_device(device: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """``"cpu"`` or ``"cuda"``: what ``auto`` finds usable, or what was asked for if it is."""
    if device == "cpu":
        return "cpu"
    problem = _cuda_problem()
    if device == "cuda" and problem:
        raise ConfigurationError(f"--device cuda: {problem}; use --device cpu")
    return "cpu" if problem else "cuda"


def _cuda_problem() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return "torch finds no usable GPU"
    try:
        torch.zeros(1, device="cuda").add(1).item()
    except RuntimeError as error:
        return f"the GPU does not compute ({str(error).splitlines()[0]})"
    return None


def _finished(out: Path) -> bool:
    """Whether the run has its result; the report is made up for if the run ended just before it."""
    from engine.runs.report import write_report
    from engine.runs.run import Run

    with Run.resume(out) as run:
        if run.finished and not (out / "report.html").exists():
            write_report(out)
        return run.finished


def _print_plan(method: Method, options: RunOptions) -> int:
    rows = [("method", method.name), ("data", options.data), ("device", options.device), *method.load_plan()(options)]
    for label, value in rows:
        print(f"{label:<20} {value}")
    return 0


def _run(method: Method, options: RunOptions, ranks: Ranks) -> int:
    search = method.load_search()
    table = open_benchmark(options)
    import torch

    from engine.evaluation.allocator import keep_freed_memory
    from engine.runs.environment import environment
    from engine.runs.leaving import leave
    from engine.runs.memory import out_of_memory
    from engine.runs.profiling import profiled, span
    from engine.runs.progress import Progress
    from engine.runs.run import FollowingRun, Run
    from engine.runs.signals import graceful

    torch.set_num_threads(options.threads)
    if options.device == "cpu":
        keep_freed_memory()
    out = Path(options.out) if options.out else free_directory(method, options)
    existed = out.exists()
    run: Run
    if not ranks.lead:
        run = FollowingRun(out, ranks)
    elif options.resume:
        run = Run.resume(out, ranks=ranks)
    else:
        run = Run.create(out, to_toml(method.name, options), environment(), ranks=ranks)
    run.nonfinite = options.nonfinite
    with run, graceful() as stop:
        try:
            check_agreement(method, options, ranks)
            window = options.profile_steps if ranks.lead else 0
            with profiled(out, options.device, nvtx=options.nvtx, steps=window), span("run"):
                result = search(options, run, stop, partial(Progress, quiet=options.quiet or not ranks.lead))
        except (ConfigurationError, MissingDataError):
            if ranks.lead and not options.resume:
                _discard_unused(run, keep_directory=existed)
            raise
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            remedy = "lower what is held at once, such as the batch, the channels or the image size, or use a machine with more"
            raise ConfigurationError(f"memory does not hold one step of {method.name}; {remedy}") from None
        if ranks.lead:
            result = with_benchmark(result, table)
            leave(run, method, options, result)
            print(*benchmark_lines(result), f"{method.name} on {options.data}: see {out / 'report.html'}", sep="\n")
    return _train_found(replace(options, out=str(out))) if ranks.lead else 0


def _train_found(options: RunOptions) -> int:
    """Train and test what the search in ``options.out`` has found, where the options ask for it, or go on with that."""
    if not isinstance(options, CellOptions) or options.then_train is None:
        return 0
    out = Path(f"{options.out}-train")
    words = ["rfs", "--network", str(options.out), "--preset", options.then_train, "--data", options.data, "--out", str(out)]
    words += ["--seed", str(options.seed), "--device", options.device, "--threads", str(options.threads)]
    words += ["--data-root", options.data_root] if options.data_root else []
    words += ["--quiet"] if options.quiet else []
    words += ["--resume"] if (out / CONFIG_NAME).is_file() else []
    return start(TRAIN, words)


def check_agreement(method: Method, options: RunOptions, ranks: Ranks) -> None:
    """Refuse ranks that were started with different options; where the data lies may differ."""
    own = to_toml(method.name, replace(options, data_root=None))
    if ranks.share("options", own) != own:
        raise ConfigurationError(f"rank {ranks.rank} has other options than rank 0; start all with the same command")


def _discard_unused(run: Run, *, keep_directory: bool) -> None:
    """Take back a run that was refused before it saved anything, so that the mended command finds its directory free."""
    logs = [run.directory / name for name in ("scores.jsonl", "metrics.jsonl")]
    checkpoints = run.directory / "checkpoints"
    if any(log.stat().st_size for log in logs) or (checkpoints.is_dir() and any(checkpoints.iterdir())):
        return
    for path in (*logs, run.directory / "config.toml", run.directory / "env.json"):
        path.unlink()
    run.close()
    with suppress(OSError):  # somebody else's files keep the directory
        if not keep_directory:
            run.directory.rmdir()


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
