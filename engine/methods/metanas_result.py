"""What a MetaNAS run leaves in result.json: of one variant, and of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from engine.evaluation.comparison import Difference, paired_difference
from engine.methods.metanas_options import MetaNASOptions
from engine.methods.metanas_tasks import interval
from engine.spaces.genotype import Genotype

ACCURACIES = {"accuracy": "as it was learned", "pruned_accuracy": "one-hot, not retrained"}
DRAWN = ("tables", "plots", "surfaces")  # of single variants, shown in the report of a run of one
SIZES = {"accuracy": "parameters", "pruned_accuracy": "pruned_parameters"}


def outcome(
    options: MetaNASOptions,
    tests: list[dict[str, Any]],
    validations: list[dict[str, float]],
    *,
    seconds: list[float],
    sizes: tuple[int, int],
    genotype: Genotype | None,
) -> dict[str, Any]:
    """The result of one finished variant, JSON types.

    ``seconds`` are wall and CPU seconds of everything, and CPU seconds of the meta-updates; ``sizes`` the numbers of weights and
    of architecture parameters. ``headline`` names the accuracy that counts: the pruned one where there is one.
    """
    columns = {name: interval([t[name] for t in tests]) for name in ACCURACIES if name in tests[0]}
    counted = {SIZES[name]: SIZES[name] in tests[0] for name in columns}
    means = {name: interval([float(t[name]) for t in tests])["mean"] for name, known in counted.items() if known}
    return {
        "network": options.network,
        "accuracy": columns["accuracy"]["mean"],
        "interval": columns["accuracy"]["interval"],
        "headline": list(columns)[-1],
        "test_tasks": len(tests),
        **{f"test_{name}": value for name, value in columns.items()},
        **{f"mean_{name}": value for name, value in means.items()},
        "meta_parameters": sum(sizes),
        "meta_updates": options.meta_epochs,
        "seconds": round(seconds[0], 3),
        "cpu_seconds": round(seconds[1], 3),
        "learning_cpu_seconds": round(seconds[2], 3),
        "validations": validations,
        "tables": [_accuracies(options, columns, means, fixed=sizes[0])],
        "plots": _curves(validations),
        **({} if genotype is None else {"genotype": genotype.to_dict()}),
    }


def alone(result: dict[str, Any]) -> dict[str, Any]:
    """The result of a run of one variant; its genotype as an object."""
    return {**result, "genotype": Genotype.from_dict(result["genotype"])} if "genotype" in result else result


def together(options: MetaNASOptions, variants: Sequence[MetaNASOptions], results: list[dict[str, Any]]) -> dict[str, Any]:
    """The result of several variants: one table, which differences hold, and the learning curves."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for variant, result in zip(variants, results, strict=True):
        groups.setdefault(variant.label, []).append(result)
    differences = _differences(groups)
    return {
        "variants": [
            {"variant": v.label, "seed": v.seed, **{key: value for key, value in r.items() if key not in DRAWN}}
            for v, r in zip(variants, results, strict=True)
        ],
        "findings": [sentence for _, _, sentence in differences],
        "tables": [_summary(options, groups), _difference_table(differences)],
        "plots": [*_group_curves(groups), *_cosines(variants, results)],
        "surfaces": [
            {**surface, "title": f"{v.label}, seed {v.seed}: {surface['title']}"}
            for v, r in zip(variants, results, strict=True)
            for surface in r.get("surfaces", [])[-1:]
        ],
    }


def headline(result: dict[str, Any]) -> float:
    """The accuracy that counts, in percent."""
    return 100 * float(result[f"test_{result['headline']}"]["mean"])


def _percent(results: Sequence[dict[str, Any]], name: str) -> str:
    """Mean over seeds, half the 95 % interval over the tasks of all seeds, and the deviation over seeds."""
    if f"test_{name}" not in results[0]:
        return "–"
    values = [100 * float(r[f"test_{name}"]["mean"]) for r in results]
    tasks = 100 * sum(float(r[f"test_{name}"]["interval"]) ** 2 for r in results) ** 0.5 / len(results)
    return f"{mean(values):.1f} ± {tasks:.1f}" + (f", sd {stdev(values):.1f}" if len(values) > 1 else "")


def _number(results: Sequence[dict[str, Any]], name: str) -> str:
    return f"{mean(float(r[name]) for r in results):,.0f}" if name in results[0] else "–"


def _summary(options: MetaNASOptions, groups: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    rows = []
    for label, results in groups.items():
        size = "mean_pruned_parameters" if "mean_pruned_parameters" in results[0] else "meta_parameters"
        figures = [_percent(results, name) for name in ACCURACIES]
        costs = [_number(results, name) for name in (size, "meta_updates", "learning_cpu_seconds")]
        rows.append([label, len(results), *figures, *costs])
    title = f"{options.ways}-way {options.shots}-shot accuracy of {options.eval_tasks} test tasks a seed"
    columns = ["variant", "seeds", *ACCURACIES.values(), "parameters", "meta-updates", "CPU s of meta-training"]
    note = "Percent, mean over seeds; ± is half the 95 % interval over the tasks of all seeds, sd the deviation over seeds."
    return {"title": title, "columns": columns, "rows": rows, "note": note}


def _differences(groups: dict[str, list[dict[str, Any]]]) -> list[tuple[str, Difference, str]]:
    """The first variant against each other one, paired by seed, whose tasks are the same, and in words."""
    first, *others = groups
    found = []
    for other in others:
        gap = paired_difference(*([headline(r) for r in groups[name]] for name in (first, other)))
        size = f"{gap.value:+.1f}" + ("" if gap.interval is None else f" ± {gap.interval:.1f}") + " points"
        if gap.interval is None:
            sentence = f"{first} is {size} from {other}; one seed does not say whether that holds"
        elif gap.supported:
            sentence = f"{first} is {'above' if gap.value > 0 else 'below'} {other} ({size})"
        else:
            sentence = f"these seeds do not tell {first} from {other} ({size})"
        found.append((other, gap, sentence))
    return found


def _difference_table(differences: list[tuple[str, Difference, str]]) -> dict[str, Any]:
    rows = []
    for other, gap, sentence in differences:
        rows.append([other, f"{gap.value:+.1f}", "–" if gap.interval is None else f"± {gap.interval:.1f}", sentence])
    note = "Pruned accuracy where there is one; Student's t over seeds, 95 %, paired; not corrected for their number."
    columns = ["against", "points", "interval over seeds", "in words"]
    return {"title": "Which differences hold", "columns": columns, "rows": rows, "note": note}


def _accuracies(
    options: MetaNASOptions, columns: dict[str, dict[str, float]], sizes: dict[str, float], *, fixed: int
) -> dict[str, Any]:
    rows = []
    for name, found in columns.items():
        count = sizes.get(SIZES[name], fixed)
        rows.append([ACCURACIES[name], f"{100 * found['mean']:.1f} ± {100 * found['interval']:.1f}", f"{count:,.0f}"])
    title = f"{options.ways}-way {options.shots}-shot accuracy of {options.eval_tasks} test tasks (%, 95 % interval over tasks)"
    return {"title": title, "columns": ["network", "accuracy", "parameters"], "rows": rows}


def _curves(validations: list[dict[str, float]]) -> list[dict[str, Any]]:
    if not validations:
        return []
    x = [v["epoch"] for v in validations]
    series = [
        {"name": label, "x": x, "y": [v[key] for v in validations]} for key, label in ACCURACIES.items() if key in validations[0]
    ]
    return [{"title": "Validation tasks", "x_label": "meta-updates", "y_label": "accuracy", "series": series, "kind": "line"}]


def _group_curves(groups: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The headline accuracy on validation tasks, mean over seeds, against the CPU seconds of meta-training."""
    series = []
    for label, results in groups.items():
        looks = list(zip(*(r["validations"] for r in results), strict=True))
        x = [mean(v["cpu_seconds"] for v in look) for look in looks]
        series.append({"name": label, "x": x, "y": [mean(v[results[0]["headline"]] for v in look) for look in looks]})
    if not any(s["x"] for s in series):
        return []
    title, x_label = "Validation tasks, mean over seeds", "CPU seconds of meta-training"
    return [{"title": title, "x_label": x_label, "y_label": "accuracy", "series": series, "kind": "line", "scale": "linear"}]


def _cosines(variants: Sequence[MetaNASOptions], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """LAMANAS: the cosine between learned loss and cross-entropy of every variant and seed."""
    learned = [(v, r["plots"][-1]) for v, r in zip(variants, results, strict=True) if "cosine_first" in r]
    series = [{**plot["series"][0], "name": f"{v.label}, seed {v.seed}"} for v, plot in learned]
    return [{**learned[0][1], "series": series}] if learned else []
