"""`whatwhere explain`: a page of what a trained network looks at."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..base.errors import UserError
from ..base.files import check_can_write, check_replaceable, write_bytes, writing
from ..base.tables import Table, rich_tables, say, show, tell
from ..base.words import brief, few, printable, suggest

if TYPE_CHECKING:
    from ..explain import Batch, Explanation
    from ..training.bundle import Bundle

_MOST_IMAGES = 500


def explain_command(
    bundle: Annotated[Path, typer.Argument(help="A run's folder, or its best/.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page.")] = Path("explain.html"),
    against: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Another network for the same images, side by side.")
    ] = None,
    layer: Annotated[str, typer.Option(metavar="NAME", help="Layer of Grad-CAM; by default the last map.")] = "",
    target: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", help="Class of Grad-CAM; by default the predicted one of each image."),
    ] = None,
    shown: Annotated[
        int,
        typer.Option("--images", min=1, max=_MOST_IMAGES, metavar="N", help="Images on the page, spread over all."),
    ] = 100,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a picture for a paper too, of up to 6 of the images.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Images computed together.")] = 32,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps; by default the best.")] = "",
    attention: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME", help="The network's attention, code of yours to import, if it was trained so."
        ),
    ] = None,
) -> None:
    """Show what a trained network looks at, in a page: gates, Grad-CAM, and whether these maps mean anything.

    Exit status 1 if some images, or a folder, could not be read.
    """
    from ..attention import attention_by_path
    from ..explain import explain
    from ..report import check_page
    from ..report.explanation import write_explanation
    from ..training.bundle import load_bundle
    from ..training.distributed import team
    from ..training.predict import image_files
    from .screen import TerminalScreen

    check_page(out)
    if png is not None:
        _check_picture(png, out)
    files, findings = image_files(images)
    for finding in (finding for finding in findings if finding.severity != "note"):
        tell(f"{finding.sentence(skip=False)}: {few([printable(path) for path in finding.paths], 5)}")
    own = None if attention is None else attention_by_path(attention)
    bad: dict[str, str] = {}
    found: list[Explanation] = []
    with team(device) as alone, TerminalScreen() as screen:
        paths = [bundle] if against is None else [bundle, against]
        loaded = [(path, load_bundle(path, alone.device, attention=own if path is bundle else None)) for path in paths]
        described = {network.spec.describe() for _, network in loaded}
        numbers = [None if target is None else _class_number(target, network) for _, network in loaded]
        for (path, network), number in zip(loaded, numbers, strict=True):
            # closed where an error comes in between: threads read ahead
            with closing(_batches(network, files, shown, batch_size, bad)) as batches:
                one = explain(
                    network.model,
                    batches,
                    classes=network.classes,
                    network=network.spec.describe() if len(described) == len(loaded) else f"{path}",
                    most_shown=shown,
                    layer=layer,
                    target=number,
                    progress=lambda what, done, total: screen.progress(what, done, total or len(files)),
                )
            found.append(one)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_explanation(Path(os.path.realpath(out)), found)
    if png is not None:
        _write_picture(png, found)
    show(rich_tables([_summary(found)]))
    for one in found:
        for text in [finding.sentence for finding in one.findings] + one.notes:
            say(printable(text))
    say(f"The page: {out}")
    for sentence in bad.values():
        tell(sentence)
    raise typer.Exit(1 if bad or any(finding.severity == "error" for finding in findings) else 0)


def _batches(
    network: Bundle, files: Sequence[Path], shown: int, batch_size: int, bad: dict[str, str]
) -> Generator[Batch]:
    """Yield the images that can be read; note in `bad` why others cannot."""
    import numpy as np
    import torch

    from ..data.images import ImageError
    from ..explain import Batch
    from ..training.predict import read_pixels

    chosen = set(np.linspace(0, len(files) - 1, min(shown, len(files))).round().astype(int).tolist())
    device = next(network.model.parameters()).device
    done = 0
    for batch in read_pixels(network.preprocessing, files, batch_size=batch_size):
        readable: list[tuple[int, Path, torch.Tensor]] = []
        for number, (file, content) in enumerate(batch, start=done):
            if isinstance(content, ImageError):
                bad[str(file)] = str(content)
            else:
                readable.append((number, file, content[0]))
        done += len(batch)
        if readable:
            pixels = torch.stack([image for _, _, image in readable])
            yield Batch(
                network.preprocessing.normalize(pixels.to(device)),
                pixels,
                [printable(str(file)) for _, file, _ in readable],
                [file.parent.name if file.parent.name in network.classes else "" for _, file, _ in readable],
                [n for n, (number, _, _) in enumerate(readable) if number in chosen],
            )
    if len(bad) == len(files):
        raise UserError(f"no image could be read: {next(iter(bad.values()))}")


def _class_number(name: str, network: Bundle) -> int:
    if name not in network.classes:
        hint = suggest(name, list(network.classes)) or f"; it knows {few(network.classes, 5)}"
        raise UserError(f"the network does not know the class {brief(name)}{hint}")
    return network.classes.index(name)


def _check_picture(png: Path, out: Path) -> None:
    if png.suffix.lower() != ".png":
        raise UserError(f"--png {str(png)!r} must end with .png")
    if os.path.realpath(png) == os.path.realpath(out):
        raise UserError(f"--png and --out are both {str(png)!r}; give two files")
    check_replaceable(png)
    check_can_write(png, makes_folders=True)


def _write_picture(png: Path, found: Sequence[Explanation]) -> None:
    from ..explain import picture

    content = picture.png(picture.explanation_figure(found))
    with writing(png):
        png.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(Path(os.path.realpath(png)), content)


def _summary(found: Sequence[Explanation]) -> Table:
    """Return the maps with the areas below their curves, and their likeness with random weights."""
    from ..explain.randomization import STILL_ALIKE

    rows = []
    for one in found:
        random = one.randomized.likeness if one.randomized else {}
        for name in dict.fromkeys([*one.curves, *random]):
            areas = [f"{float(area.mean()):.2f}" for area in one.curves[name].areas] if name in one.curves else ["", ""]
            likeness = f"{random[name][-1]:.2f}" if name in random else ""
            rows.append((one.network, name, *areas, likeness))
    return Table(
        "What the maps are worth",
        ("network", "map", "insertion", "deletion", "random weights"),
        rows,
        num_text_columns=2,
        note="Insertion: higher is better, deletion: lower; compare both with random order. Random weights: how alike\n"
        f"the map stays when nothing learned is left; from {STILL_ALIKE} on much of it is image and architecture.",
    )
