"""`whatwhere train`: its options come from `training.config`."""

from __future__ import annotations

import inspect
import json as json_format
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import UNSET

from ..base.errors import UserError
from ..base.tables import rich_tables, say, say_json, show
from ..base.words import command_line, option
from ..networks.spec import NetworkSpec, is_import_path, parse_arguments
from ..training.config import CHOICES, FREE, NUMBER_OR_AUTO, OPTIONS, TELLS_APART, network_of, read_config

if TYPE_CHECKING:
    from ..training.run_folder import RunFolder

_COMMON = ("model", "epochs", "batch_size", "lr", "image_size", "seed", "workers", "device")
_ALSO = {"model": ("--backbone",)}  # the name of this option in `compare`
_METAVARS = {int: "N", float: "X", str: "NAME"}


def train_command() -> Callable[..., None]:
    """Return the function of the command for Typer; its parameters are the options of `training.config`."""
    text = (
        "DATA: a folder with a folder for each class (or train, val, test folders of these), a CSV file of paths and "
        "labels, `digits`, or a data set of torchvision's by name."
    )
    own = (
        own_option("out", str | None, "Folder of the run. (default: runs/DATA/MODEL-seedN)", "DIR"),
        own_option("resume", bool, "Continue the run in --out; start one where there is none."),
        own_option("config", Path | None, "YAML file of options; the command line overrides it.", "FILE"),
        own_option("dry_run", bool, "Check everything, show the options, train a few steps."),
        own_option("json", bool, "Print the result as JSON; messages go to standard error."),
    )
    common = [option_parameter(name) for name in _COMMON]
    others = [option_parameter(name) for name in OPTIONS if name not in _COMMON]
    return with_parameters(_train, text, [*common, *own, *others])


def _train(
    data: str, *, out: str | None, resume: bool, config: Path | None, dry_run: bool, json: bool, **options: Any
) -> None:
    """Train a network on your own images: check and split them, train, evaluate."""
    from ..training.train import run_training
    from .screen import TerminalScreen, kept_for_json, result_tables

    given = {**(read_config(config) if config is not None else {}), **given_options(options)}
    if not data:
        raise UserError("DATA is empty; give a folder of images, a CSV file, or the name of a data set")
    if out == "":
        raise UserError("--out is empty; give the folder of the run")
    command = typed_command(*([] if resume else ["--resume"]))
    folder = Path(out) if out else None
    begun: list[RunFolder] = []
    with kept_for_json(json), TerminalScreen(to_stderr=json) as screen:
        result = run_training(
            data, given, out=folder, resume=resume, dry_run=dry_run, command=command, screen=screen, began=begun.append
        )
    if json and result is not None:
        say_json(result)
    elif result is not None:
        show(rich_tables(result_tables(result)))
        for line in what_next(begun[0], given):
            say(line)


def what_next(folder: RunFolder, given: Mapping[str, Any]) -> list[str]:
    """Return lines that name the pictures of a finished run, and commands that can follow.

    `given` are the options of this call, which may continue the run. The comparison of the network with and without
    attention takes these and those that the run was started with. It is left out where it would be of another network
    than the run's, and for a run of an old version, which does not say how it was started.
    """
    description, pictures = folder.description, folder.pictures()
    assert description is not None  # the run is finished
    config = description.options
    spec = network_of(config)
    lines = [f"pictures: {', '.join(map(str, pictures))}"] if pictures else []
    if (photo := folder.held_out_image()) is not None:
        own = ["--attention", spec.attention] if is_import_path(spec.attention) else []
        lines.append(f"predict:  {command_line(['whatwhere', 'predict', str(folder.path), photo, *own])}")
    started_with = description.given
    if started_with is not UNSET and spec.width_factor == 1 and config.get("pretrained", "") in ("", "imagenet"):
        arms = f"none,{_arm(spec)}" if spec.attention_name else "none,se,cbam"
        options = [
            text
            for name in dict.fromkeys([*started_with, *given])
            if name not in TELLS_APART and (name not in FREE or name in given)
            for text in as_arguments(name, config[name] if name not in FREE else given[name])
        ]
        command = ["whatwhere", "compare", config["data"], "--backbone", spec.backbone, "--attention", arms, *options]
        lines.append(f"does the attention help:  {command_line(command)}")
    return lines


def _arm(spec: NetworkSpec) -> str:
    """Return the attention of a network as `compare --attention` takes it."""
    return spec.attention_name + (json_format.dumps(spec.attention_kwargs) if spec.attention_kwargs else "")


def as_arguments(name: str, value: Any) -> list[str]:
    """Return an option as arguments of the command line; a number has all its digits."""
    flag = option(name)
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    return [flag, str(value)]


def with_parameters(
    command: Callable[..., None], data_help: str, parameters: Sequence[inspect.Parameter]
) -> Callable[..., None]:
    """Give `command` a signature of DATA and `parameters`, which Typer reads."""
    data = inspect.Parameter(
        "data", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Annotated[str, typer.Argument(help=data_help)]
    )
    signature = inspect.Signature([data, *parameters])
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return command


def given_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given on the command line."""
    return {
        name: parse_arguments(value)
        if OPTIONS[name].metadata["kind"] is dict
        else number_or_word(value)
        if name in NUMBER_OR_AUTO
        else value
        for name, value in options.items()
        if value is not None
    }


def number_or_word(text: str) -> Any:
    """Return the whole number that an option gives, or its text: a word such as auto, or a mistake."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text


def own_option(
    name: str, kind: Any, help: str, metavar: str | None = None, *, flag: str = "", panel: str = "Common"
) -> inspect.Parameter:
    """Return a keyword parameter for an option of the command itself; `flag` is its name on the command line."""
    declared = typer.Option(flag or option(name), metavar=metavar, help=help, rich_help_panel=panel, show_default=False)
    return own_parameter(name, Annotated[kind, declared], False if kind is bool else None)


def own_parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """Return a keyword parameter of a command."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def option_parameter(name: str) -> inspect.Parameter:
    """Return a keyword parameter for an option of a run; None means that it was not given."""
    field, flag = OPTIONS[name], option(name)
    kind = field.metadata["kind"]
    details = {"help": field.metadata["help"], "rich_help_panel": field.metadata["panel"], "show_default": False}
    if kind is bool:
        names = [f"{flag}/--no-{flag[2:]}"]
    else:
        names = [flag, *_ALSO.get(name, ())]
        details["metavar"] = field.metadata["metavar"] or "|".join(CHOICES.get(name, ())) or _METAVARS[kind]
    typed = str if kind is dict or name in NUMBER_OR_AUTO else kind
    return own_parameter(name, Annotated[typed | None, typer.Option(*names, **details)], None)


def typed_command(*more: str) -> str:
    """Return the command line of this process with `more` at its end, quoted for a shell."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # set by torchrun, which hides its own options
        return command_line(["torchrun", "...", "-m", "whatwhere", *sys.argv[1:], *more])
    return command_line(["whatwhere", *sys.argv[1:], *more])
