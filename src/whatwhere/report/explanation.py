"""The page that shows what networks look at: one file of HTML, with its script, that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..base.errors import UserError
from ..base.files import write_bytes
from ..base.words import printable
from ..explain.explanation import Explanation, Layer
from ..explain.faithfulness import area, told_gain
from ..explain.health import LEAST_IMAGES, LEAST_SPREAD
from ..explain.picture import colour_scale
from ..explain.randomization import ANYWHERE_ALIKE, STILL_ALIKE, Randomized
from .charts import Scale
from .figures import NONE
from .html import environment

MOST_BYTES = 20_000_000
_SIDES = (56, 28, 14, 7)  # of the maps on the page, at most: the first with which it is small enough
_PICTURE_SIDE = 224
_COLOURS = ("inferno", "gray")  # of maps, and of those that say little
_MOST_BARS = 48
_MOST_CHANNELS = 12  # in the table of classes
_HTML = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def write_explanation(path: Path | str, explanations: Explanation | Sequence[Explanation]) -> None:
    """Write the page of one network, or of two side by side for the same images, whole or not at all.

    Raises:
        UserError: The file cannot be written, the networks were given other images, or the page gets too large.
    """
    write_bytes(Path(path), explanation_page(explanations).encode())


def explanation_page(explanations: Explanation | Sequence[Explanation]) -> str:
    """Return the page of one network, or of two side by side, of at most 20 MB.

    Raises:
        UserError: The networks were given other images, or so many that the page gets larger.
    """
    explanations = [explanations] if isinstance(explanations, Explanation) else list(explanations)
    if not explanations:
        raise UserError("a page needs the explanation of a network; give at least one")
    first, *others = explanations
    if len(others) > 1:
        raise UserError(f"a page is of one network or two, got {len(explanations)}")
    if any(other.names != first.names for other in others):
        raise UserError("the networks must be explained with the same images, in the same order")
    pictures = [[_jpeg(picture) for picture in one.pictures] for one in explanations if _is_own(one, first)]
    for side in _SIDES:
        page = _page(explanations, pictures, side)
        if len(page.encode()) <= MOST_BYTES:
            return page
    raise UserError(f"a page of {len(first.names)} images has more than {MOST_BYTES / 1e6:g} MB; show fewer images")


def _is_own(one: Explanation, first: Explanation) -> bool:
    """Return whether a network sees other pictures than the first: cut or scaled in another way."""
    return one is first or not torch.equal(one.pictures, first.pictures)


def _page(explanations: Sequence[Explanation], pictures: list[list[str]], side: int) -> str:
    first = explanations[0]
    data = {
        "colours": [_encoded(torch.from_numpy(colour_scale(name))) for name in _COLOURS],
        "networks": [
            {
                "name": printable(one.network),
                "pictures": pictures[1] if one is not first and len(pictures) > 1 else None,
                "predictions": [
                    [(printable(name), value if math.isfinite(value) else None) for name, value in row]
                    for row in one.predictions
                ],
                "cam": None if one.cam is None else _quantized(one.cam, side, each=True),
                "camLayer": printable(one.cam_layer),
                "camClasses": [printable(name) for name in one.cam_classes],
                "layers": [_layer(layer, side) for layer in one.layers],
            }
            for one in explanations
        ],
    }
    templates = environment()
    script = (Path(__file__).parent / "templates" / "explanation.js").read_text(encoding="utf-8")
    return templates.get_template("explanation.html").render(
        title=f"What {first.network} looks at",
        explanations=explanations,
        first=first,
        pictures=pictures[0],
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).translate(_HTML),
        charts=[(one, _curves(one)) for one in explanations if one.faithfulness],
        num_sampled=next((len(f.curves.insertion) for one in explanations for f in one.faithfulness.values()), 0),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        limits=(STILL_ALIKE, ANYWHERE_ALIKE),
        least_images=LEAST_IMAGES,
        likeness=[(one, *_likeness(one.randomized)) for one in explanations if one.randomized],
        class_tables=[(one, tables) for one in explanations if (tables := _class_tables(one))],
    )


def _jpeg(picture: Tensor) -> str:
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    image.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    kept = io.BytesIO()
    image.save(kept, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(kept.getvalue()).decode()


def _quantized(values: Tensor, side: int, *, each: bool = False) -> dict[str, Any]:
    """Return maps (N, h, w) as bytes from 0 to 255, between the least and the greatest of all, or of `each`.

    Large maps are drawn as means of places; the ends of the scale are those of the places themselves.
    """
    finite = torch.where(values.isfinite(), values, 0).float()
    low, high = (finite.amin((1, 2)), finite.amax((1, 2))) if each else (finite.min().expand(1), finite.max().expand(1))
    size = list(values.shape[1:])
    if max(size) > side:
        finite = F.adaptive_avg_pool2d(finite, (min(side, size[0]), min(side, size[1])))
    scaled = ((finite - low[:, None, None]) / (high - low).clamp(min=1e-12)[:, None, None]).clamp(0, 1)
    return {
        "size": size,
        "height": finite.shape[1],
        "width": finite.shape[2],
        "low": [float(f"{value:.4g}") for value in low.tolist()],
        "high": [float(f"{value:.4g}") for value in high.tolist()],
        "bytes": _encoded((scaled * 255).round()),
    }


def _encoded(values: Tensor) -> str:
    return base64.b64encode(values.to(torch.uint8).contiguous().numpy().tobytes()).decode()


def _layer(layer: Layer, side: int) -> dict[str, Any]:
    return {
        "name": printable(layer.name) or "the network",
        "kind": layer.kind,
        "mix": layer.mix if layer.mix is None or math.isfinite(layer.mix) else None,
        "planes": [
            {
                "name": name,
                "least": LEAST_SPREAD * (layer.bounds[1] - layer.bounds[0]),
                "doubt": layer.doubts.get(name, ""),
                "remark": layer.remarks.get(name, ""),
                **_quantized(plane, side),
            }
            for name, plane in layer.planes.items()
        ],
        "channels": [_bars(name, values, layer.bounds) for name, values in layer.channels.items()],
    }


def _bars(name: str, values: Tensor, bounds: tuple[float, float]) -> dict[str, Any]:
    """Return the channels (N, C) that differ most between the images, in their order, as bytes between the bounds."""
    values = values.float().nan_to_num()
    chosen = values.std(0, correction=0).argsort(descending=True)[:_MOST_BARS].sort().values
    middle = sum(bounds) / 2
    low, high = min(bounds[0], float(values.min())), max(bounds[1], float(values.max()))
    return {
        "name": name,
        "total": values.shape[1],
        "numbers": chosen.tolist(),
        "low": low,
        "high": high,
        "middle": middle,
        "open": (values[:, chosen] > middle).sum(1).tolist(),
        "mean": [float(f"{value:.3f}") for value in values[:, chosen].mean(0).tolist()],
        "bytes": _encoded(((values[:, chosen] - low) / (high - low) * 255).round()),
    }


def _curves(one: Explanation) -> list[dict[str, Any]]:
    """Return the two charts of an explanation: for insertion and deletion, two lines for each map."""
    charts = []
    for number, kind in enumerate(("insertion", "deletion")):
        lines = []
        for name, found in one.faithfulness.items():
            own, random = (getattr(curves, kind).mean(0) for curves in (found.curves, found.at_random))
            better = told_gain(*found.gains()[number])
            told = f"{float(area(own)):.2f}, random order {float(area(random)):.2f}; better by {better}"
            lines.append({"name": name, "told": told, "points": _points(own), "random": _points(random)})
        charts.append(
            {"kind": kind, "x_ticks": Scale(0, 100).ticks(5), "y_ticks": Scale(0, 1).ticks(4), "lines": lines}
        )
    return charts


def _points(curve: Tensor) -> str:
    values = curve.nan_to_num().tolist()
    return " ".join(f"{100 * n / (len(values) - 1):.2f},{100 - 100 * value:.2f}" for n, value in enumerate(values))


def _likeness(randomized: Randomized) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows: a row for each map, a column for the first steps, for half of them and for all."""
    num_steps, others = len(randomized.layers), randomized.of_others
    steps = sorted({1, (num_steps + 1) // 2, num_steps})
    shares = [f"last {step / num_steps:.0%} random" for step in steps[:-1]]
    rows = [
        [name, *(NONE if math.isnan(v) else f"{v:.2f}" for v in (*(values[n - 1] for n in steps), others[name]))]
        for name, values in randomized.likeness.items()
    ]
    return ["map", *shares, "all random", "another image's map"], rows


def _class_tables(one: Explanation) -> list[tuple[str, list[str], list[tuple[str, ...]]]]:
    """Return (caption, heads, rows) by channel gate: the channels whose mean differs most between the classes.

    A class counts by its number of images.
    """
    tables = []
    for layer in one.layers:
        for gate, means in layer.class_means.items():
            if len(means) < 2:
                continue
            values = torch.stack(list(means.values()))
            shares = torch.tensor([one.num_predicted[name] for name in means], dtype=values.dtype)[:, None]
            shares = shares / shares.sum()
            spread = (shares * (values - (shares * values).sum(0)).square()).sum(0)
            chosen = spread.argsort(descending=True)[:_MOST_CHANNELS].sort().values
            heads = ["class", "images", *(f"channel {number}" for number in chosen.tolist()), "all channels"]
            rows = [
                (
                    name,
                    f"{one.num_predicted[name]:,}",
                    *(f"{value:.2f}" for value in row[chosen].tolist()),
                    f"{float(row.mean()):.2f}",
                )
                for name, row in means.items()
            ]
            tables.append((f"{layer.name or 'the network'}: {gate} gate", heads, rows))
    return tables
