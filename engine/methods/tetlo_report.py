"""What a TETLO search shows of what its models take for similar: nearest neighbours (Figure 3), and Figure 6's correlation."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from statistics import StatisticsError, correlation
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from engine.data import ImageSet
from engine.methods.darts_base import Base, Pass
from engine.methods.darts_data import Halves
from engine.runs.markup import escape
from engine.runs.streams import stream

NEAREST = 4
# Images (B, C, H, W) in a pass -> features (B, F).
Embed = Callable[[Tensor, Pass], Tensor]
CHUNK = 1024  # images whose similarities to all others are held at once
RIGHT, WRONG = "#2f7d4f", "#b3452c"


def neighbours(embed: Embed, data: Halves, queries: int, epoch: int) -> dict[str, Any]:
    """The four nearest of the validation half by the cosine of features, for ``queries`` of its images, drawn by address.

    What goes into result.json: ``neighbours`` with the image numbers of each query and its neighbours, nearest first, and the
    share of all images' neighbours that are of the image's class; and a table of their classes. One forward pass over the half,
    and its similarities a chunk at a time.
    """
    with torch.no_grad():
        passes = enumerate(data.plain_validation())
        features = torch.cat([embed(batch.images, Pass("validation", epoch, step, "neighbours")) for step, batch in passes])
        found = nearest(features).cpu()
    places = data.validation_order()
    labels = data.data.labels.cpu()[places]
    same = float((labels[found] == labels[:, None]).double().mean())
    drawn = torch.randperm(len(places), generator=stream(data.seed, "queries"))[:queries]
    ranks = torch.cat([drawn[:, None], found[drawn]], 1)
    table = {
        "title": "Nearest neighbours among validation images",
        "columns": ["image", *(f"nearest {k + 1}" for k in range(NEAREST))],
        "rows": [[data.data.class_names[k] for k in row] for row in labels[ranks].tolist()],
        "note": f"By the cosine of the main model's features; pictures: neighbours.svg. {100 * same:.1f} % of all images' "
        "neighbours are of the image's class.",
    }
    return {"neighbours": {"images": places[ranks].tolist(), "same_class": same}, "tables": [table]}


def with_neighbours(found: dict[str, Any], embed: Embed, data: Halves, base: Base, queries: int) -> dict[str, Any]:
    """A result with :func:`neighbours` after the last epoch of the base, if there are queries."""
    if not queries:
        return found
    return joined(found, neighbours(embed, data, queries, base.first_epoch + base.epochs - 1))


def joined(found: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Two parts of a result, with the plots and tables of both."""
    lists: dict[str, Any] = {
        name: [*found.get(name, []), *more.get(name, [])] for name in ("plots", "tables") if name in found or name in more
    }
    return {**found, **more, **lists}


def nearest(features: Tensor) -> Tensor:
    """The places of the four other rows with the largest cosine, (N, F) -> (N, 4), nearest first; N is at least 5."""
    normal = F.normalize(features, dim=1)
    found = []
    for start in range(0, len(normal), CHUNK):
        c = normal[start : start + CHUNK] @ normal.T
        c.diagonal(start).fill_(-torch.inf)
        found.append(c.topk(NEAREST).indices)
    return torch.cat(found)


def picture(data: ImageSet, rows: Sequence[Sequence[int]]) -> str:
    """An SVG of rows of images by their numbers: a query, then its neighbours, framed green where the class is the query's.

    The labels are the set's own. Needs no other file.
    """
    side, gap = 64, 6
    step = side + 2 * gap
    parts = []
    for y, row in enumerate(rows):
        for x, number in enumerate(row):
            same = int(data.labels[number]) == int(data.labels[row[0]])
            left, top = x * step + gap + (2 * gap if x else 0), y * step + gap
            colour = "none" if not x else RIGHT if same else WRONG
            box = f'x="{left}" y="{top}" width="{side}" height="{side}"'
            name = escape(data.class_names[int(data.labels[number])])
            shown = f'<image {box} image-rendering="pixelated" preserveAspectRatio="none" href="{_png(data.images[number])}"/>'
            parts.append(f'<g><title>{name}</title>{shown}<rect {box} fill="none" stroke="{colour}" stroke-width="4"/></g>')
    width, height = max(map(len, rows)) * step + 2 * gap, len(rows) * step
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    title = "<title>Images and their nearest neighbours</title>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">{title}{"".join(parts)}</svg>'


def _png(image: Tensor) -> str:
    """A uint8 image (C, H, W) as a data URL."""
    pixels = image.cpu().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def agreement(curve: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How the auxiliary model's error and the main model's error on labelled quadruples go together over the epochs (Figure 6).

    ``similarity_correlation`` is Pearson's, None with fewer than three epochs or where either does not change.
    """
    errors = [1 - line["auxiliary_accuracy"] for line in curve]
    wrong = [line["similarity_error"] for line in curve]
    try:
        together = correlation(wrong, errors) if len(curve) > 2 else None
    except StatisticsError:
        together = None
    value = "undefined" if together is None else f"{together:.3f}"
    epochs = [line["epoch"] + 1 for line in curve]
    over = {"x_label": "epoch", "y_label": "error", "kind": "line", "scale": "linear"}
    series = [{"name": "auxiliary model", "x": epochs, "y": errors}, {"name": "main model's quadruples", "x": epochs, "y": wrong}]
    scatter = {"x_label": "error of quadruples", "y_label": "error of the auxiliary model", "kind": "scatter", "scale": "linear"}
    return {
        "auxiliary_accuracy": curve[-1]["auxiliary_accuracy"],
        "similarity_error": wrong[-1],
        "similarity_correlation": together,
        "plots": [
            {"title": "Errors on the validation half", **over, "series": series},
            {
                "title": f"The two errors by epoch, correlation {value}",
                **scatter,
                "series": [{"name": "an epoch", "x": wrong, "y": errors}],
            },
        ],
    }
