"""The sections of the report that follow a search round by round."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from engine.runs.charts import LARGEST, Column, strip_chart
from engine.runs.drawing import input_count
from engine.runs.markup import escape
from engine.runs.progress import duration
from engine.runs.records import RunFiles, number, objects

COLOURS = 5
OTHER = "other"
PRUNING_HEAD = (
    '<th>Cell</th><th>Edge</th><th>Operation</th><th class="number">Δ condition</th><th class="number">Δ regions</th>'
    '<th class="number">Rank sum</th><th>Agreement</th>'
)


def agreement(run: RunFiles) -> str:
    """Say how often the repeats disagreed, over the whole search and round by round."""
    changes = run.result.get("choice_changes")
    text = ""
    if isinstance(changes, dict):
        decisions, changed, share = (number(changes.get(name)) for name in ("decisions", "changed", "share"))
        if decisions is not None and changed is not None and share is not None:
            text = (
                f"<p>In <b>{changed:.0f} of {decisions:.0f} decisions ({share:.0%})</b> at least one repeat taken by itself "
                "would have pruned something else. Read those choices as noise: another seed may make them differently.</p>"
            )
    rows = []
    for event in run.rounds:
        shares = _agreements(event)
        if shares:
            unanimous = sum(share >= 1 for share in shares)
            counts = f'<td class="number">{len(shares)}</td><td class="number">{unanimous}</td>'
            rows.append(f"<tr><td>{escape(_name(event))}</td>{counts}<td>{_meter(sum(shares) / len(shares))}</td></tr>")
    head = '<th>Round</th><th class="number">Decisions</th><th class="number">Unanimous</th><th>Mean agreement of repeats</th>'
    return text + _table(head, rows)


def pruning(run: RunFiles) -> str:
    """List what each round removed and how sure it was."""
    parts = []
    inputs = input_count(run.genotype.space) if run.genotype else 2
    for index, event in enumerate(run.rounds):
        pruned = objects(event.get("pruned"))
        shares = _agreements(event)
        facts = [f"{event['candidates']} candidates"] if "candidates" in event else []
        facts += [f"{len(pruned)} pruned"]
        facts += [f"mean agreement {sum(shares) / len(shares):.0%}"] if shares else []
        summary = f'<summary><b>{escape(_name(event))}</b> <span class="soft">{escape(" · ".join(facts))}</span></summary>'
        table = _table(PRUNING_HEAD, [_pruned(item, inputs) for item in pruned])
        parts.append(f"<details{' open' if index == 0 else ''}>{summary}{table}</details>")
    note = (
        '<p class="soft">Δ is the relative change of a score when the operation is removed, the mean over repeats; the smallest '
        "sum of both ranks on an edge is pruned. Agreement is the share of single repeats that would have pruned the same.</p>"
    )
    return note + "".join(parts) if parts else ""


def _pruned(item: dict[str, Any], inputs: int) -> str:
    share = number(item.get("agreement"))
    edge = f"{_state(item.get('source'), inputs)} → {_state(item.get('target'), inputs)}"
    cells = [
        escape(item.get("cell", "")),
        f'{edge} <span class="soft">({escape(item.get("edge", "?"))})</span>',
        f"<code>{escape(item.get('operation', ''))}</code>",
    ]
    numbers = [_signed(item.get("delta_condition")), _signed(item.get("delta_regions")), escape(item.get("rank_sum", "–"))]
    right = "".join(f'<td class="number">{text}</td>' for text in numbers)
    meter = _meter(share) if share is not None else "–"
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}{right}<td>{meter}</td></tr>"


def scores_by_round(run: RunFiles) -> str:
    """Chart the condition numbers and region counts of candidates and supernets."""
    parts = []
    for title, name in (("Condition number", "condition"), ("Linear regions", "regions")):
        chart = strip_chart(title, _columns(run.scores, name))
        if chart:
            parts.append(f"<h3>{title}</h3>{chart}")
    legend = (
        '<p class="legend"><span><i style="background:var(--accent)"></i>a candidate in one repeat</span>'
        '<span><i style="background:var(--p2)"></i>the supernet, a line for each repeat</span></p>'
    )
    return legend + "".join(parts) if parts else ""


def _columns(scores: list[dict[str, Any]], name: str) -> list[Column]:
    columns: dict[str, Column] = {}
    for record in scores:
        if name not in record:
            continue
        label = _name(record).removeprefix("Round ")
        column = columns.setdefault(label, Column(label))
        value = _usable(record, name)
        if value is None:
            column.unusable += 1
        else:
            column.values.append(value)
        reference = _usable(record, f"supernet_{name}")
        if reference is not None:
            column.references[str(record.get("repeat"))] = reference
    return list(columns.values())


def _usable(record: dict[str, Any], name: str) -> float | None:
    value = number(record.get(name))
    usable = value is not None and abs(value) <= LARGEST and record.get(f"{name}_status", "ok") == "ok"
    return value if usable else None


def phases(run: RunFiles) -> str:
    """Show where the time of each round went."""
    spent = [(event, _seconds(event)) for event in run.rounds]
    spent = [(event, seconds) for event, seconds in spent if seconds]
    if not spent:
        return ""
    names = list(dict.fromkeys(name for _, seconds in spent for name in seconds))
    total = {name: sum(seconds.get(name, 0.0) for _, seconds in spent) for name in names}
    legend = "".join(
        f'<span><i style="background:{_colour(index, name)}"></i>{escape(name)} {duration(total[name])}</span>'
        for index, name in enumerate(names)
    )
    rows = [_time_row(_name(event), names, seconds) for event, seconds in spent]
    rows.append(_time_row("All rounds", names, total))
    head = '<th>Round</th><th class="number">Time</th><th style="width:70%">Phases</th>'
    return f'<p class="legend">{legend}</p>{_table(head, rows)}'


def _time_row(label: str, names: list[str], seconds: dict[str, float]) -> str:
    parts = [(seconds.get(name, 0.0), _colour(index, name)) for index, name in enumerate(names)]
    bars = "".join(f'<span style="flex:{part:.6f} 0 0;background:{colour}"></span>' for part, colour in parts)
    total = duration(sum(seconds.values()))
    return f'<tr><td>{escape(label)}</td><td class="number">{total}</td><td><div class="stack">{bars}</div></td></tr>'


def _colour(index: int, name: str) -> str:
    return f"var(--p{COLOURS if name == OTHER else index % COLOURS})"


def _seconds(event: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of each phase of a round, and as :data:`OTHER` what the phases do not account for."""
    value = event.get("phases")
    named = {str(name): _positive(amount) for name, amount in value.items()} if isinstance(value, dict) else {}
    rest = _positive(event.get("seconds")) - sum(named.values())
    return named | ({OTHER: rest} if rest > 0.001 else {})


def _positive(value: Any) -> float:
    amount = number(value)
    return amount if amount is not None and 0 < amount < 1e9 else 0.0


def _agreements(event: dict[str, Any]) -> list[float]:
    shares = (number(item.get("agreement")) for item in objects(event.get("pruned")))
    return [share for share in shares if share is not None and 0 <= share <= 1]


def _name(record: dict[str, Any]) -> str:
    stage = record.get("stage", "operations")
    return f"Round {record.get('round', '?')}" + ("" if stage == "operations" else f" {stage}")


def _state(value: Any, inputs: int) -> str:
    """Return a state by the name that it has in the drawing."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return "?"
    return f"c<sub>k−{inputs - value}</sub>" if value < inputs else f"node {value - inputs}"


def _signed(value: Any) -> str:
    amount = number(value)
    return "–" if amount is None else f"{amount:+.4f}"


def _meter(share: float) -> str:
    return f'<span class="meter" style="--share:{100 * min(max(share, 0.0), 1.0):.0f}%">{share:.0%}</span>'


def _table(head: str, rows: Iterable[str]) -> str:
    body = "".join(rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>' if body else ""
