"""What a finished run leaves in its directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.runs.config import CONFIG_NAME, command_line
from engine.runs.drawing import draw_cell
from engine.runs.report import write_report

if TYPE_CHECKING:
    from engine.methods.options import RunOptions
    from engine.methods.registry import Method
    from engine.runs.run import Run


def leave(run: Run, method: Method, options: RunOptions, result: dict[str, Any]) -> None:
    """Write what a finished run consists of; result.json comes last but for the report, because it marks the end.

    A method that learns weights and no architecture returns no genotype.
    """
    command = command_line(method, run.directory / CONFIG_NAME)
    head = {"schema": 1, "method": method.name, "data": options.data, "seed": options.seed, "command": command}
    genotype = result.get("genotype")
    if genotype is not None:
        run.write_text("genotype.json", genotype.to_json())
        for kind, _ in genotype.cells:
            run.write_text(f"cell_{kind}.svg", draw_cell(genotype, kind))
        result = {**result, "genotype": genotype.to_dict()}
    run.write_json("result.json", {**head, **result})
    write_report(run.directory)
