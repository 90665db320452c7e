"""Rethinking few-shot (RFS): train on the base classes, freeze, tell new classes apart by a linear classifier.

Reference note metantk-nas, section 7: supervised pretraining without distillation, last checkpoint, features of a BatchNorm
network in inference mode (so no information flows between the queries of a task).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.evaluation.allocator import keep_freed_memory
from engine.evaluation.few_shot import run_tests
from engine.evaluation.fitting import fit
from engine.evaluation.networks import find_genotype
from engine.evaluation.options import RFSOptions
from engine.evaluation.protocol import load_protocol
from engine.evaluation.summary import summary
from engine.evaluation.tasks import kinds_of

if TYPE_CHECKING:
    from engine.runs.run import Run


def train(options: RFSOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Train one network and test it, going on where the run was stopped; return what goes to result.json.

    The checkpoints' state is ``{"step", "cpu_seconds", "tests"}``; the weights lie in ``weights.safetensors`` once they are
    trained.
    """
    keep_freed_memory()
    loaded = run.load()
    genotype = find_genotype(options.network, run.directory)
    protocol = load_protocol(options).to(options.device)
    kinds = kinds_of(options, protocol)
    fitted = fit(options, protocol.data, genotype, loaded, run, stop, progress)
    fitted.state.setdefault("tests", [])
    run_tests(options, protocol, fitted.network, kinds, run, stop, progress, fitted.state, fitted.tensors)
    found = summary(options, protocol, fitted.network, fitted.state, run.directory, steps=fitted.steps, batch=options.batch)
    return found if genotype is None else {**found, "genotype": genotype}


def plan(options: RFSOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``."""
    length = options.budget if options.steps is None else f"{options.steps} steps"
    return [
        ("network", options.network),
        ("training", f"{length} of batches of {options.batch}"),
        ("tests", f"{options.tasks} tasks each of {', '.join(shape.name for shape in options.task_shapes)}"),
        ("classifiers", ", ".join(options.classifier_names)),
    ]
