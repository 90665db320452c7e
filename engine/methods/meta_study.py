"""Several meta-learning runs below one run directory, and what they say together. Finished runs are not done again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.methods.learning_options import OuterOptions
from engine.methods.meta_jobs import jobs
from engine.methods.meta_study_result import Finished, summary
from engine.methods.study_runs import as_text, finish_jobs

if TYPE_CHECKING:
    from engine.runs.run import Run


def study(options: OuterOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Do what is not done yet, then tabulate.

    A stop is obeyed inside a run, which then goes on where it was. Ranks share the tasks of each run.
    """
    planned = jobs(options)
    finish_jobs(run, planned, stop, progress)
    if not run.ranks.lead:
        return {}
    result = summary(options, [Finished.read(job, run.directory / job.folder) for job in planned])
    if not options.quiet:
        print(*map(as_text, result["tables"][:2]), sep="\n")
    return result
