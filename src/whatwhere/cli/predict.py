"""`whatwhere predict` and `whatwhere evaluate`."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Any

import typer

from ..attention import attention_by_path
from ..base.errors import UserError
from ..base.tables import comma_separated, rich_tables, show
from ..base.words import printable
from ..training.bundle import load_bundle
from ..training.distributed import team
from ..training.predict import Prediction, evaluate_bundle, image_files, predict
from ..training.run_folder import training_images
from .screen import TerminalScreen, result_tables


def print_predictions(
    bundle: Path,
    images: list[Path],
    *,
    top: int,
    batch_size: int,
    device: str,
    csv: bool,
    json: bool,
    attention: str | None = None,
) -> bool:
    """Print the `top` classes of each image, and bad files on standard error; return whether all files could be read.

    `attention` is the import path of the network's attention, given on the command line.
    """
    if csv and json:
        raise UserError("--csv and --json cannot be combined; give one of them")
    files = image_files(images)
    own = None if attention is None else attention_by_path(attention)
    num_bad = 0
    found: list[Prediction] = []
    with team(device) as alone:
        network = load_bundle(bundle, alone.device, attention=own)
        if csv:
            typer.echo("path,rank,class,probability")
        for prediction in predict(network, files, top=top, batch_size=batch_size):
            if prediction.error:
                num_bad += 1
                print(f"whatwhere: {prediction.error}", file=sys.stderr)
            elif json:
                found.append(prediction)
            elif csv:
                typer.echo(_csv_lines(prediction), nl=False)
            else:
                typer.echo(_line(prediction))
    if json:
        typer.echo(json_format.dumps([_record(prediction) for prediction in found], indent=2))
    if num_bad:
        print(f"whatwhere: {num_bad} of {len(files)} images could not be read", file=sys.stderr)
    return not num_bad


def _line(prediction: Prediction) -> str:
    return f"{printable(prediction.path)}: " + ", ".join(
        f"{printable(name)} {value:.1%}" for name, value in prediction.classes
    )


def _csv_lines(prediction: Prediction) -> str:
    path = printable(prediction.path)
    rows = [
        (path, str(rank), printable(name), f"{value:.6f}")
        for rank, (name, value) in enumerate(prediction.classes, start=1)
    ]
    return comma_separated(rows[0], rows[1:])


def _record(prediction: Prediction) -> dict[str, Any]:
    classes = [{"class": name, "probability": value} for name, value in prediction.classes]
    return {"path": printable(prediction.path), "predictions": classes}


def print_evaluation(
    bundle: Path, data: str, *, device: str, json: bool, attention: str | None = None, **options: Any
) -> None:
    """Evaluate a network on labelled images and print the figures; `attention` as in `print_predictions`."""
    own = None if attention is None else attention_by_path(attention)
    with team(device) as alone, TerminalScreen(to_stderr=json) as screen:
        network = load_bundle(bundle, alone.device, attention=own)
        result = evaluate_bundle(
            network,
            data,
            trained_on=training_images(bundle),
            progress=lambda done, total: screen.progress("images", done, total),
            **options,
        )
    if result["num_trained_on"]:
        print(
            f"whatwhere: {result['num_trained_on']} of these images were trained on, so the figures are too good; "
            "evaluate with the split.csv of the run as DATA to leave them out",
            file=sys.stderr,
        )
    if json:
        typer.echo(json_format.dumps(result, indent=2))
    else:
        show(rich_tables(result_tables(result)))
