"""What a table of trained architectures adds to a search: the true accuracy of its genotype. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigurationError, MissingDataError
from engine.methods.options import CellOptions, RunOptions
from engine.spaces.nas_bench_201 import from_genotype, to_string
from engine.spaces.space import NAS_BENCH_201

if TYPE_CHECKING:
    from engine.benchmarks.table import Table


def check_benchmark(options: CellOptions) -> None:
    """Refuse ``--benchmark`` where no table can answer: another space, or a file that is not there."""
    if options.benchmark is None:
        return
    if options.space != NAS_BENCH_201.name:
        raise ConfigurationError(f"--benchmark: tables are of {NAS_BENCH_201.name}, not {options.space}; add its --space")
    if not Path(options.benchmark).expanduser().is_file():
        raise MissingDataError(f"--benchmark: {options.benchmark} is not a file; name a table of {NAS_BENCH_201.name}")


def open_benchmark(options: RunOptions) -> Table | None:
    """The table that the options name, read before the search begins so that a broken one costs nothing."""
    if not isinstance(options, CellOptions) or options.benchmark is None:
        return None
    from engine.benchmarks.table import load_table

    return load_table(Path(options.benchmark).expanduser())


def with_benchmark(result: dict[str, Any], table: Table | None) -> dict[str, Any]:
    """The result of a search with the architecture's string and what a table knows of it: ``"benchmark"``, a table of the report.

    Results without a genotype of NAS-Bench-201 come back as they are.
    """
    genotype = result.get("genotype")
    if genotype is None or genotype.space != NAS_BENCH_201.name:
        return result
    cell = from_genotype(genotype)
    found = {**result, "architecture": to_string(cell)}
    if table is None:
        return found
    summary = table.summary(cell)
    accuracy, best, distance = summary["accuracy"], summary["best"], summary["distance"]
    rows = [[name, accuracy.get(name, "unknown"), best[name], distance.get(name, "unknown")] for name in table.datasets]
    shown = {
        "title": f"Test accuracy in percent ({summary['found']} of {len(table)} architectures)",
        "columns": ["Data set", "Found", "Best of the table", "Distance"],
        "rows": rows,
    }
    return {**found, "benchmark": summary, "tables": [*result.get("tables", []), shown]}


def benchmark_lines(result: dict[str, Any]) -> list[str]:
    """What the search command prints of :func:`with_benchmark`'s result."""
    summary = result.get("benchmark")
    if summary is None:
        return []
    if summary["found"] == "unknown":
        return [f"{result['architecture']}: unknown, the table of {summary['architectures']} has neither it nor a twin"]
    best, distance = summary["best"], summary["distance"]
    twin = "" if summary["found"] == "exact" else f" (its twin {summary['row']})"
    values = [
        f"{name} {value:.2f} % (best {best[name]:.2f} %, {distance[name]:.2f} below)"
        for name, value in summary["accuracy"].items()
    ]
    return [f"{result['architecture']}{twin}: {', '.join(values)}"]
