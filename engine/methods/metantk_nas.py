"""MetaNTK-NAS: training-free few-shot architecture search by pruning a supernet (paper 001, Algorithm 1), and its ablations.

``metantk-nas`` ranks removals by the condition number of the MetaNTK (Eq. 14) and by linear regions (Eq. 15); ``te-nas`` replaces
the MetaNTK by the NTK of a plain batch, ``metantk-only`` and ``linear-regions`` keep one of the two scores. The method follows
from the class of its options.

Paired (default): the candidates of a step are compared with the supernet on common weights, common images and a common head,
drawn by (step, repeat), and the supernet is scored once a repeat. ``faithful`` draws as the published code does: weights once a
step in PyTorch's default initialisation, images anew for every candidate and repeat, different heads for supernet and
candidate, thin networks anew for every candidate (reference note, sections 3 to 6 and 8). Paired, a score that is not ``ok``
ranks last; ``faithful`` has the published special values, so that a negative condition number wins and NaN counts as 100000.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine.data.names import SETS
from engine.errors import NumericalError
from engine.methods.options import NATIVE_LIMIT, BatchOptions, EpisodeOptions, PruningOptions, RegionOptions
from engine.methods.pruning import Decision, Pruning, Record
from engine.methods.scorer import Scorer, load_images
from engine.methods.screening import screen, screening
from engine.methods.steps import Batch, Found, StepWork, named, score_line
from engine.runs.config import rewrite_config
from engine.runs.profiling import span, step_begins
from engine.runs.stopwatch import Stopwatch
from engine.scoring.ablations import bytes_per_architecture, forward_macs
from engine.spaces.cost import count
from engine.spaces.space import Space, get_space

if TYPE_CHECKING:
    from engine.runs.run import Run

# What one CPU thread does of a scored batch, forward and backward, for the estimate of --dry-run (measured: 7e9 at 8x8, 12e9 at
# 28x28).
MACS_PER_SECOND = 8e9
# What Python and torch take before any network exists.
BASE_BYTES = 400e6


def search(options: PruningOptions, run: Run, stop: Any, progress: Any) -> dict[str, Any]:
    """Run Algorithm 1 to a single-path network and return what goes into result.json.

    Checkpoints come between batches of candidates, as :meth:`~engine.runs.run.Run.offer` paces them; ranks share the batches.
    Raises :class:`~engine.errors.NumericalError` when no repeat gives the supernet a usable score, or when any score is not
    finite and ``options.nonfinite`` says ``"stop"``.
    """
    space = searched_space(options)
    pruning = make_pruning(space, options)
    data = load_images(options)
    options = with_width(options, space, data.images.shape[-1])
    rewrite_config(run, options)
    scorer = Scorer(options, space, data)
    scorer.check()
    work = StepWork.restore(run.load(), pruning, space)
    total = sum(pruning.plan(space.alive())) * options.repeats
    with progress(total, "candidates", done=work.evaluated + work.estimated) as bar:
        while candidates := pruning.candidates(work.state):  # line 2
            scorer.watch = watch = Stopwatch()
            with span("round"):
                if options.screen and work.state.stage == "operations":
                    decision, records = screen(candidates, work, pruning, scorer, options, run, stop, bar)
                    warn_of_nonfinite(records, space, options, bar)
                else:
                    while batches := work.batches(candidates, options.repeats, scorer.width, paired=not options.faithful):
                        options = score(batches, work, scorer, options, run, stop, bar)  # lines 3-7
                    decision = pruning.decide(work.state, work.records)  # lines 8-16
            run.append("metrics.jsonl", round_line(space, work, decision, len(candidates), watch))
            work.advance(decision, watch)
            run.offer(work.to_dict, stop)
            stop.check()
    return outcome(options, space, scorer, work)  # line 17


def score(
    batches: list[Batch], work: StepWork, scorer: Scorer, options: PruningOptions, run: Run, stop: Any, bar: Any
) -> PruningOptions:
    """Score the batches, wherever a rank is free, and merge the scores in their order.

    Ends early where memory ran out, with the options that have the new width; the rest of the step is then to be cut anew.
    """
    width = scorer.width
    label = f"step {work.step} from {len(work.records)} by {width}"

    def found(number: int) -> dict[str, Any]:
        step_begins()
        with span("candidate batch"):
            return scorer.found(work.state, work.step, batches[number]).to_json()

    for batch, value in zip(batches, run.ranks.deal(label, len(batches), found, stop), strict=False):
        merged = Found.from_json(value)
        records = work.add(batch, merged)
        for record in records:
            run.append("scores.jsonl", score_line(scorer.space, work, record))
        warn_of_nonfinite(records, scorer.space, options, bar)
        run.offer(work.to_dict, stop)
        latest = {name: score.value for record in records[-1:] for name, score in record.ablated.items()}
        bar.advance(len(records), step=work.step, **latest)
        stop.check()
        if merged.width != width:
            width = merged.width
            options = replace(options, width=width)
            rewrite_config(run, options)
            bar.note(f"out of memory: going on with {width} candidates a forward pass")
            break
    scorer.width = width  # as merged, so the same on every rank
    return options


def warn_of_nonfinite(records: list[Record], space: Space, options: PruningOptions, bar: Any) -> None:
    """Name candidates whose scores are NaN or infinite (their lines are in scores.jsonl): they rank last, or end the search."""
    for record in records:
        bad = [name for name, score in record.ablated.items() if score.status == "nonfinite"]
        bad += [f"supernet's {name}" for name, score in record.supernet.items() if score.status == "nonfinite"]
        if not bad:
            continue
        place = named(space, record.candidate)
        what = f"{' and '.join(bad)} not finite without {place['operation']} on {place['cell']} edge {place['edge']}"
        if options.nonfinite == "stop":
            raise NumericalError(f"{what} (repeat {record.repeat}, see scores.jsonl); --nonfinite skip goes on without it")
        bar.note(f"{what} (repeat {record.repeat})")


def plan(options: PruningOptions) -> list[tuple[str, str]]:
    """Labelled rows for ``--dry-run``: what would be scored, and the width, memory and time by formula."""
    space = searched_space(options)
    steps = make_pruning(space, options).plan(space.alive())
    size = options.resolution((SETS[options.data].size if options.data in SETS else None) or NATIVE_LIMIT)
    options = with_width(options, space, size)
    rows = [
        ("candidates", f"{sum(steps)} in {len(steps) - 1} rounds and the edge stage: {', '.join(map(str, steps))}"),
        ("evaluations", f"{sum(steps) * options.repeats} candidates, {len(steps) * options.repeats} or more supernets"),
        ("repeats", str(options.repeats)),
        ("width", f"{options.width} candidates a forward pass"),
    ]
    if options.screen:
        most = f"at most {options.rescore * options.repeats} scores a round and the edge stage are exact"
        rows.append(("screened", f"{most}; the numbers are those without --screen"))
    if isinstance(options, EpisodeOptions | BatchOptions):
        memory = BASE_BYTES + (options.width or 1) * architecture_bytes(options, space, size)
        seconds = estimated_seconds(options, space, size, steps)
        rows += [("memory", f"{memory / 1e9:.1f} GB (estimate)"), ("time", f"{seconds / 60:.1f} CPU minutes (estimate)")]
    return rows


def searched_space(options: PruningOptions) -> Space:
    """The space of the options, without "none" unless ``prune_none`` lets it compete where its table does."""
    space = get_space(options.space)
    return space if options.prune_none else replace(space, none_competes=False)


def make_pruning(space: Space, options: PruningOptions) -> Pruning:
    """The pruning rule of these options; the scores that a method uses follow from the class of its options."""
    nodes = tuple(
        tuple(e for e, (_, target) in enumerate(space.edges) if target == state) for state in range(space.inputs, space.states)
    )
    metrics = []
    if isinstance(options, EpisodeOptions | BatchOptions):
        metrics.append("condition")
    if isinstance(options, RegionOptions):
        metrics.append("regions")
    kinds = len(space.kinds)
    final_edges = options.final_edges or space.edges_per_node
    return Pruning((nodes,) * kinds, final_edges, tuple(metrics), options.precision, options.faithful)


def samples_per_architecture(options: PruningOptions) -> int:
    """Images N that one kernel is taken over."""
    if isinstance(options, EpisodeOptions):
        return options.tasks * options.ways * (options.shots + options.queries)
    return options.batch if isinstance(options, BatchOptions) else 0


def architecture_bytes(options: PruningOptions, space: Space, size: int) -> int:
    """Memory of one scored architecture; see :func:`~engine.scoring.ablations.bytes_per_architecture`."""
    return bytes_per_architecture(
        space,
        cells=options.cells,
        channels=options.channels,
        size=size,
        samples=samples_per_architecture(options),
        itemsize=8 if options.dtype == "float64" else 4,
    )


def with_width(options: PruningOptions, space: Space, size: int) -> PruningOptions:
    """Options whose width is a number: given, or as many architectures as the memory holds by formula."""
    if options.width is not None:
        return options
    each = architecture_bytes(options, space, size)
    widest = sum(sum(map(sum, kind)) for kind in space.alive())
    return replace(options, width=max(1, min(widest, options.memory_bytes // each)) if each else widest)


def estimated_seconds(options: PruningOptions, space: Space, size: int, steps: list[int]) -> float:
    """CPU seconds of all kernels by operation counts: forward and backward cost three forwards, falling as operations go."""
    full = forward_macs(space, cells=options.cells, channels=options.channels, size=size)
    shares = [1 - step / max(1, len(steps) - 1) * 0.85 for step in range(len(steps))]
    evaluations = sum(share * candidates for share, candidates in zip(shares, steps, strict=True))
    evaluations *= options.repeats * (2 if options.faithful else 1)
    return evaluations * 3 * full * samples_per_architecture(options) / MACS_PER_SECOND


def round_line(space: Space, work: StepWork, decision: Decision, candidates: int, watch: Stopwatch) -> dict[str, Any]:
    """One line of metrics.jsonl: what a step pruned and why, and where its time went."""
    rows = {row.candidate: row for row in decision.rows}
    pruned = [
        {
            **named(space, candidate),
            **{f"delta_{name}": drop for name, drop in rows[candidate].drops.items()},
            "rank_sum": rows[candidate].total,
            "agreement": agreement,
        }
        for candidate, agreement in zip(decision.pruned, decision.agreement, strict=True)
    ]
    seconds, cpu_seconds, phases = watch.read()
    return {
        "event": "round",
        "round": work.step,
        "stage": decision.stage,
        "candidates": candidates,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "phases": phases,
        "pruned": pruned,
    }


def outcome(options: PruningOptions, space: Space, scorer: Scorer, work: StepWork) -> dict[str, Any]:
    """The result of a finished search."""
    genotype = space.genotype([[list(edge) for edge in cell] for cell in work.state.alive])
    classes = len(scorer.data.classes("train"))
    channels_in, _, size = scorer.data.images.shape[1:]
    cost = count(
        genotype, channels=options.channels, cells=options.cells, size=size, classes=classes, channels_in=channels_in, space=space
    )
    return {
        "genotype": genotype,
        "evaluations": work.evaluated + work.rescored,
        "supernet_evaluations": work.supernets,
        "seconds": round(work.seconds, 3),
        "cpu_seconds": round(work.cpu_seconds, 3),
        **({"screening": screening(work)} if options.screen else {}),
        "choice_changes": {"decisions": work.decisions, "changed": work.changed, "share": work.changed / max(1, work.decisions)},
        "parameters": cost.parameters,
        "flops": cost.flops,
    }
