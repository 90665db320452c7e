"""Several runs below one run directory. Finished runs are not done again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from engine.methods.registry import find_method
from engine.methods.study_options import Job
from engine.runs.config import CONFIG_NAME, from_toml, to_toml
from engine.runs.distribution import Ranks
from engine.runs.environment import environment
from engine.runs.leaving import leave
from engine.runs.run import FollowingRun, Run

if TYPE_CHECKING:
    from pathlib import Path

# Options that memory, time or the number of ranks decide: a run that goes on takes what it has written down, or none.
DECIDED = ("task_chunk", "cpu_seconds", "iterations")


def finish_jobs(run: Run, planned: Sequence[Job], stop: Any, progress: Any) -> None:
    """Do what is not done yet. A stop is obeyed inside a run, which then goes on where it was."""
    run.load()
    for number, job in enumerate(planned, start=1):
        finish_job(run, job, stop, partial(_titled, progress, f"{job.folder} ({number} of {len(planned)})"))
        stop.check()


def as_text(table: dict[str, Any]) -> str:
    """A table of the result with aligned columns."""
    rows = [table["columns"], *([("–" if value is None else str(value)) for value in row] for row in table["rows"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join([table["title"], *lines, ""])


def finish_job(run: Run, job: Job, stop: Any, progress: Any) -> None:
    """One run, as far as it is not done yet."""
    directory, ranks = run.directory / job.folder, _ranks_below(run.ranks, job.folder)
    if ranks.share("finished", ranks.lead and (directory / "result.json").is_file()):
        return
    job = replace(job, options=replace(job.options, **ranks.share("decided", _decided(job, directory) if ranks.lead else {})))
    with _opened(directory, job, ranks) as own:
        own.nonfinite = job.options.nonfinite
        method = find_method(job.method)
        result = method.load_search()(job.options, own, stop, progress)
        if ranks.lead:
            leave(own, method, job.options, result)


def _opened(directory: Path, job: Job, ranks: Ranks) -> Run:
    if not ranks.lead:
        return FollowingRun(directory, ranks)
    if (directory / CONFIG_NAME).is_file():
        return Run.resume(directory, ranks=ranks)
    return Run.create(directory, to_toml(job.method, job.options), environment(), ranks=ranks)


def _decided(job: Job, directory: Path) -> dict[str, Any]:
    """What a run that was begun has written down of what memory, time or the number of ranks decide."""
    path = directory / CONFIG_NAME
    if not path.is_file():
        return {}
    written = from_toml(find_method(job.method), path)
    return {name: written.get(name) for name in DECIDED if hasattr(job.options, name)}


def _ranks_below(ranks: Ranks, folder: str) -> Ranks:
    """The same ranks with labels of their own for one run."""
    if ranks.store is None:
        return ranks
    from torch.distributed import PrefixStore

    return replace(ranks, store=PrefixStore(folder, ranks.store))


def _titled(progress: Any, name: str, total: int, title: str, **given: Any) -> Any:
    return progress(total, f"{name}: {title}", **given)
