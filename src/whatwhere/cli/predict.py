"""`whatwhere predict` and `whatwhere evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..base.errors import UserError
from ..base.screen import Silent
from ..base.tables import comma_separated, rich_tables, say, say_json, show, tell
from ..base.words import brief, few, printable
from .check import DataDir, Download, LabelColumn, PathColumn, SplitColumn

if TYPE_CHECKING:
    from ..data.sources.source import Finding

BundleFolder = Annotated[Path, typer.Argument(help="A run's folder, or its best/.")]
Images = Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")]
_BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Images computed together.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps; by default the best.")]
OwnAttention = Annotated[
    str | None,
    typer.Option(metavar="MODULE:NAME", help="The network's attention, code of yours to import, if it was trained so."),
]


def tell_findings(findings: Iterable[Finding]) -> None:
    """Say what `image_files` left out."""
    for finding in (finding for finding in findings if finding.severity != "note"):
        tell(f"{finding.sentence(skip=False)}: {few([printable(path) for path in finding.paths], 5)}")


def predict_command(
    bundle: BundleFolder,
    images: Images,
    *,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Classes to give of each image.")] = 5,
    batch_size: _BatchSize = 64,
    device: Device = "",
    attention: OwnAttention = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print path, rank, class, probability.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a trained network sees in images; exit status 1 if some of them, or a folder, could not be read."""
    from ..attention import attention_by_path
    from ..data.doctor.findings import misfit
    from ..training.bundle import load_bundle
    from ..training.distributed import team
    from ..training.predict import image_files, predict
    from .screen import TerminalScreen

    if csv and json:
        raise UserError("--csv and --json cannot be combined; give one of them")
    files, findings = image_files(images)
    own = None if attention is None else attention_by_path(attention)
    errors = [finding for finding in findings if finding.severity == "error"]
    # a folder that cannot be listed is no image, however many are in it
    num_bad = sum(len(finding.paths) for finding in errors if finding.kind != "permission")
    num_images = len(files) + num_bad
    tell_findings(findings)
    found: list[dict[str, Any]] = []
    largest: list[int] = []
    # on a terminal the predictions themselves show how far it is
    shown = nullcontext(Silent()) if sys.stdout.isatty() and not json else TerminalScreen(to_stderr=True)
    with team(device) as alone, shown as screen:
        network = load_bundle(bundle, alone.device, attention=own)
        if csv:
            typer.echo("path,rank,class,probability")
        for done, prediction in enumerate(predict(network, files, top=top, batch_size=batch_size), start=1):
            screen.progress("predicting", done, len(files))
            path = printable(prediction.path)
            largest += [prediction.largest] if prediction.largest else []
            if prediction.error:
                num_bad += 1
                tell(prediction.error)
            elif json:
                classes = [{"class": name, "probability": value} for name, value in prediction.classes]
                found.append({"path": prediction.path, "predictions": classes})
            elif csv:
                for rank, (name, value) in enumerate(prediction.classes, start=1):
                    typer.echo(comma_separated((path, rank, name, f"{value:.6f}")), nl=False)
            else:
                texts = [f"{printable(name)} {value:.1%}" for name, value in prediction.classes]
                say(f"{path}: {', '.join(texts)}")
    if json:
        say_json(found)
    if sentence := misfit(largest, network.preprocessing.max_value):
        tell(sentence)
    if num_bad:
        tell(f"{num_bad} of {num_images} images could not be read")
    raise typer.Exit(1 if num_bad or errors else 0)


def evaluate_command(
    bundle: BundleFolder,
    data: Annotated[str, typer.Argument(help="Labelled images, as `whatwhere train` takes them.")],
    *,
    split: Annotated[
        str | None, typer.Option(metavar="PART", help="train, val, test or all; by default test, else val, else all.")
    ] = None,
    batch_size: _BatchSize = 128,
    workers: Annotated[int, typer.Option(min=0, metavar="N", help="Threads that read images.")] = 0,
    device: Device = "",
    attention: OwnAttention = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images and rows that are bad.")] = False,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    data_dir: DataDir = None,
    download: Download = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Evaluate a trained network on labelled images: accuracy, cross-entropy, figures of each class."""
    from ..attention import attention_by_path
    from ..training.bundle import load_bundle
    from ..training.distributed import team
    from ..training.predict import evaluate_bundle
    from ..training.run_folder import training_images
    from .screen import TerminalScreen, kept_for_json, result_tables

    if split not in (None, "train", "val", "test", "all"):
        raise UserError(f"--split must be train, val, test or all, got {brief(split)}")
    own = None if attention is None else attention_by_path(attention)
    with team(device) as alone, kept_for_json(json), TerminalScreen(to_stderr=json) as screen:
        result = evaluate_bundle(
            load_bundle(bundle, alone.device, attention=own),
            data,
            split=split,
            skip_bad=skip_bad,
            batch_size=batch_size,
            num_workers=workers,
            trained_on=training_images(bundle),
            progress=lambda done, total: screen.progress("images", done, total),
            warn=tell,
            path_column=path_column,
            label_column=label_column,
            split_column=split_column,
            data_dir=data_dir,
            download=download,
        )
    if result["misfit"]:
        tell(result["misfit"])
    if result["num_trained_on"]:
        tell(
            f"{result['num_trained_on']} of these images were trained on, so the figures are too good; "
            "evaluate with the split.csv of the run as DATA to leave them out"
        )
    if json:
        say_json(result)
    else:
        show(rich_tables(result_tables(result)))
