"""`whatwhere explain`: a page of what a trained network looks at."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..base.errors import UserError
from ..base.files import check_can_write, check_replaceable, write_bytes, writing
from ..base.tables import Table, rich_tables, say, show, tell
from ..base.words import brief, few, printable, suggest
from .predict import BundleFolder, Device, Images, OwnAttention, tell_findings

if TYPE_CHECKING:
    from ..explain import Batch, Explanation
    from ..training.bundle import Bundle

_MOST_IMAGES = 500


def explain_command(
    bundle: BundleFolder,
    images: Images,
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
    device: Device = "",
    attention: OwnAttention = None,
) -> None:
    """Show what a trained network looks at, in a page: gates, Grad-CAM, and whether these maps mean anything.

    Exit status 1 if some images, or a folder, could not be read.
    """
    from ..attention import attention_by_path
    from ..base.code import held_apart
    from ..data.doctor.findings import misfit
    from ..explain import explain
    from ..networks.spec import is_import_path
    from ..report import check_page
    from ..report.explanation import write_explanation
    from ..training.bundle import load_bundle, weights_of
    from ..training.distributed import team
    from ..training.predict import image_files
    from .screen import TerminalScreen

    check_page(out)
    if png is not None:
        _check_picture(png)
    files, findings = image_files(images)
    tell_findings(findings)
    own = None if attention is None else attention_by_path(attention)
    bad: dict[str, str] = {}
    largest: dict[str, int] = {}
    found: list[Explanation] = []
    with team(device) as alone, TerminalScreen() as screen:
        paths = [bundle] if against is None else [bundle, against]
        # code of the user is for those networks that were trained with some
        needing = {path for path in paths if (told := weights_of(path)) and is_import_path(told[1].attention)}
        loaded = [
            (path, load_bundle(path, alone.device, attention=own if path in needing or not needing else None))
            for path in paths
        ]
        _check_classes([network for _, network in loaded])
        described = {network.spec.describe() for _, network in loaded}
        numbers = [None if target is None else _class_number(target, network) for _, network in loaded]
        for (path, network), number in zip(loaded, numbers, strict=True):
            # closed where an error comes in between: threads read ahead
            batches = closing(_batches(network, files, shown, batch_size, bad, largest, images))
            with batches as images_of, held_apart("the network"):
                one = explain(
                    network.model,
                    images_of,
                    classes=network.classes,
                    network=network.spec.describe() if len(described) == len(loaded) else f"{path}",
                    most_shown=shown,
                    layer=layer,
                    target=number,
                    progress=lambda what, done, total: screen.progress(what, done, total or len(files)),
                )
            if found and {*network.classes} != {*loaded[0][1].classes}:
                one.notes.append(
                    f"its classes are not those of {found[0].network}, so its probabilities are of other classes"
                )
            found.append(one)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_explanation(Path(os.path.realpath(out)), found)
    if png is not None:
        _write_picture(png, found)
    if any(one.faithfulness or one.randomized for one in found):
        show(rich_tables([_summary(found)]))
    for one in found:
        whose = f"{one.network}: " if len(found) > 1 else ""
        for text in [finding.sentence for finding in one.findings] + one.notes:
            say(printable(whose + text))
    say(f"The page: {out}")
    if png is not None:
        say(f"The picture: {png}")
    for sentence in bad.values():
        tell(sentence)
    if sentence := misfit(list(largest.values()), loaded[0][1].preprocessing.max_value):
        tell(sentence)
    raise typer.Exit(1 if bad or any(finding.severity == "error" for finding in findings) else 0)


def _batches(
    network: Bundle,
    files: Sequence[Path],
    shown: int,
    batch_size: int,
    bad: dict[str, str],
    largest: dict[str, int],
    given: Sequence[Path],
) -> Generator[Batch]:
    """Yield the images that can be read; note in `bad` why others cannot, in `largest` the values of 16-bit grey."""
    import torch

    from ..data.images import ImageError
    from ..explain import Batch
    from ..explain.explanation import spread
    from ..training.predict import read_pixels

    # spread over all files; where one cannot be read the next one takes its place
    due = deque(spread(len(files), shown))
    device = next(network.model.parameters()).device
    done = 0
    for batch in read_pixels(network.preprocessing, files, batch_size=batch_size):
        readable: list[tuple[Path, torch.Tensor]] = []
        to_show: list[int] = []
        for number, (file, content) in enumerate(batch, start=done):
            if isinstance(content, ImageError):
                bad[str(file)] = str(content)
                continue
            if content[1]:
                largest[str(file)] = content[1]
            if due and number >= due[0]:
                due.popleft()
                to_show.append(len(readable))
            readable.append((file, content[0]))
        done += len(batch)
        if readable:
            pixels = torch.stack([image for _, image in readable])
            yield Batch(
                network.preprocessing.normalize(pixels.to(device)),
                pixels,
                [printable(_name_of(file, given)) for file, _ in readable],
                [file.parent.name if file.parent.name in network.classes else "" for file, _ in readable],
                to_show,
            )
    if len(bad) == len(files):
        raise UserError(f"no image could be read: {next(iter(bad.values()))}")


def _name_of(file: Path, given: Sequence[Path]) -> str:
    """Return a file's path from the folder that was given; the page may be sent to others."""
    folder = next((folder for folder in given if folder.is_dir() and file.is_relative_to(folder)), None)
    return file.name if folder is None else str(Path(folder.resolve().name) / file.relative_to(folder))


def _check_classes(networks: Sequence[Bundle]) -> None:
    """Raise UserError unless two networks know a class in common, so that they can be compared on the same images."""
    first, *others = networks
    for other in others:
        if not {*first.classes} & {*other.classes}:
            raise UserError(
                f"the networks know no class in common ({few(first.classes)}; {few(other.classes)}); give two with the "
                "same classes"
            )


def _class_number(name: str, network: Bundle) -> int:
    if name not in network.classes:
        hint = suggest(name, list(network.classes)) or f"; it knows {few(network.classes, 5)}"
        raise UserError(f"the network does not know the class {brief(name)}{hint}")
    return network.classes.index(name)


def _check_picture(png: Path) -> None:
    from ..explain.picture import is_png_of_ours

    if png.suffix.lower() != ".png":
        raise UserError(f"--png {str(png)!r} must end with .png")
    check_replaceable(png, "--png")
    if png.exists() and png.stat().st_size and not is_png_of_ours(png):
        raise UserError(f"{str(png)!r} is no picture of whatwhere; move it away, or give another --png")
    check_can_write(png, makes_folders=True)


def _write_picture(png: Path, found: Sequence[Explanation]) -> None:
    from ..explain.explanation import explanation_figure
    from ..explain.picture import png as content_of

    content = content_of(explanation_figure(found))
    with writing(png):
        png.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(Path(os.path.realpath(png)), content)


def _summary(found: Sequence[Explanation]) -> Table:
    """Return the maps with the areas below their curves, and their likeness with random weights."""
    from ..explain.faithfulness import told_gain
    from ..explain.randomization import STILL_ALIKE

    rows = []
    for one in found:
        random = one.randomized.likeness if one.randomized else {}
        for name in dict.fromkeys([*one.faithfulness, *random]):
            gains = one.faithfulness[name].gains() if name in one.faithfulness else []
            better = [told_gain(*gain) for gain in gains]
            likeness = random[name][-1] if name in random else math.nan
            rows.append((one.network, name, *(better or ["", ""]), "" if math.isnan(likeness) else f"{likeness:.2f}"))
    return Table(
        "What the maps are worth",
        ("network", "map", "better by insertion", "by deletion", "random weights"),
        rows,
        num_text_columns=2,
        note="Better than pixels in random order, with its 95 % interval: where it contains 0, it is not shown that\n"
        "the class needs what the map points at. Random weights: how alike the map stays when nothing that was\n"
        f"learned is left; from {STILL_ALIKE} on much of it is image and architecture.",
    )
