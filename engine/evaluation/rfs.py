"""Rethinking few-shot (RFS): train on the base classes, freeze, tell new classes apart by a linear classifier.

Reference note metantk-nas, section 7: supervised pretraining without distillation, last checkpoint, features of a BatchNorm
network in inference mode (so no information flows between the queries of a task).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from engine.evaluation.allocator import keep_freed_memory
from engine.evaluation.few_shot import run_tests
from engine.evaluation.networks import find_genotype, make_network
from engine.evaluation.options import RFSOptions
from engine.evaluation.protocol import Protocol, load_protocol
from engine.evaluation.summary import summary
from engine.evaluation.tasks import kinds_of
from engine.evaluation.training import Trainer, count_steps, train_steps
from engine.evaluation.weights import save_weights
from engine.runs.config import rewrite_config
from engine.runs.streams import stream
from engine.spaces.genotype import Genotype

if TYPE_CHECKING:
    from engine.runs.run import Run


def train(options: RFSOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Train one network and test it, going on where the run was stopped; return what goes to result.json.

    The checkpoints' state is ``{"step", "cpu_seconds", "tests"}``; the weights lie in ``weights.safetensors`` once they are
    trained.
    """
    keep_freed_memory()
    state, tensors = run.load() or ({"step": 0, "cpu_seconds": 0.0, "tests": []}, {})
    genotype = find_genotype(options.network, run.directory)
    protocol = load_protocol(options).to(options.device)
    kinds = kinds_of(options, protocol)
    network = build(options, genotype, protocol)
    if options.steps is None:
        options = replace(options, steps=count_steps(options, protocol.data, network))
        rewrite_config(run, options)
    trainer = Trainer(options, protocol.data, network)
    if genotype is not None:
        run.write_text("genotype.json", genotype.to_json())
    if tensors:
        trainer.load(tensors)
    _train(trainer, run, stop, progress, state)
    save_weights(run.directory / "weights.safetensors", network)
    run_tests(options, protocol, network, kinds, run, stop, progress, state, trainer.tensors())
    found = summary(options, protocol, network, state, run.directory)
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


def build(options: RFSOptions, genotype: Genotype | None, protocol: Protocol) -> nn.Module:
    """The network of the options with an output for each training class, and the weights that their seed draws."""
    images = protocol.data.images
    network = make_network(
        options,
        genotype,
        classes=len(protocol.data.classes("train")),
        channels_in=images.shape[1],
        size=images.shape[-1],
        generator=stream(options.seed, "weights"),
    )
    return network.to(images.device)


def _train(trainer: Trainer, run: Run, stop: Any, progress: Any, state: dict[str, Any]) -> None:
    with progress(trainer.total, "training", done=state["step"]) as bar:
        for record in train_steps(trainer, run, stop, state):
            bar.advance(**{name: record[name] for name in ("loss", "accuracy") if record})
