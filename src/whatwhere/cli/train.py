"""`whatwhere train`: its options come from `training.config`."""

from __future__ import annotations

import inspect
import json as json_format
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..base.errors import UserError
from ..networks.spec import parse_arguments
from ..training.config import CHOICES, OPTIONS, read_config

_COMMON = ("model", "epochs", "batch_size", "lr", "image_size", "seed", "workers", "device")
_ALSO = {"model": ("--backbone",)}  # the name of this option in `compare`
_METAVARS = {int: "N", float: "X", str: "NAME", bool: None}
# options of the command itself
_OUT = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Folder of the run. (default: runs/DATA/MODEL-seedN)", rich_help_panel="Common"),
]
_RESUME = Annotated[
    bool,
    typer.Option(
        "--resume", help="Continue the run in --out; start one where there is none.", rich_help_panel="Common"
    ),
]
_CONFIG = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="YAML file of options; the command line overrides it.", rich_help_panel="Common"),
]
_DRY_RUN = Annotated[
    bool,
    typer.Option("--dry-run", help="Check everything, show the options, train a few steps.", rich_help_panel="Common"),
]
_JSON = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON; messages go to standard error.", rich_help_panel="Common"),
]


def train_command() -> Callable[..., None]:
    """Return the function of the command for Typer; its parameters are the options of `training.config`."""

    def train(data: str, **options: Any) -> None:
        config = options.pop("config")
        given = read_config(config) if config is not None else {}
        own = {name: options.pop(name) for name in ("out", "resume", "dry_run", "json")}
        _run(data, {**given, **given_options(options)}, **own)

    own = (
        ("out", _OUT, None),
        ("resume", _RESUME, False),
        ("config", _CONFIG, None),
        ("dry_run", _DRY_RUN, False),
        ("json", _JSON, False),
    )
    text = (
        "DATA: a folder with a folder for each class (or train, val, test folders of these), a CSV file of paths and "
        "labels, `digits`, or a data set of torchvision's by name."
    )
    parameters = [option_parameter(name) for name in _COMMON]
    parameters += [own_parameter(*option) for option in own]
    parameters += [option_parameter(name) for name in OPTIONS if name not in _COMMON]
    train.__doc__ = "Train a network on your own images: check and split them, train, evaluate."
    return with_parameters(train, text, parameters)


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
        name: parse_arguments(value) if OPTIONS[name].metadata["kind"] is dict else value
        for name, value in options.items()
        if value is not None
    }


def own_parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """Return a keyword parameter for an option of the command itself."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def option_parameter(name: str) -> inspect.Parameter:
    """Return a keyword parameter for an option of a run; None means that it was not given."""
    field = OPTIONS[name]
    kind = field.metadata["kind"]
    metavar = field.metadata["metavar"] or ("|".join(CHOICES[name]) if name in CHOICES else _METAVARS[kind])
    details: dict[str, Any] = {"help": field.metadata["help"], "rich_help_panel": field.metadata["panel"]}
    if kind is not bool:
        details |= {"metavar": metavar, "show_default": False}
    names = [f"--{name.replace('_', '-')}", *_ALSO.get(name, ())]
    typed = str if kind is dict else kind
    annotation: Any = Annotated[typed | None, typer.Option(*names, **details)]
    if kind is bool:
        dashed = name.replace("_", "-")
        annotation = Annotated[bool | None, typer.Option(f"--{dashed}/--no-{dashed}", show_default=False, **details)]
    return own_parameter(name, annotation, None)


def _run(data: str, given: dict[str, Any], out: str | None, resume: bool, dry_run: bool, json: bool) -> None:
    from ..training.stops import Stopped
    from ..training.train import run_training
    from .screen import TerminalScreen, result_tables

    if not data:
        raise UserError("DATA is empty; give a folder of images, a CSV file, or the name of a data set")
    if out == "":
        raise UserError("--out is empty; give the folder of the run")
    with TerminalScreen(to_stderr=json) as screen:
        try:
            result = run_training(
                data,
                given,
                out=Path(out) if out else None,
                resume=resume,
                dry_run=dry_run,
                command=again(typed_command()),
                screen=screen,
            )
        except Stopped as stopped:
            print(f"whatwhere: {stopped}", file=sys.stderr)
            sys.exit(128 + stopped.signal if stopped.signal else 1)
    if result is None:
        return
    if json:
        typer.echo(json_format.dumps(result, indent=2))
    else:
        from ..base.tables import rich_tables, show

        show(rich_tables(result_tables(result)))


def again(command: str) -> str:
    """Return `command` with --resume."""
    return command if " --resume" in command else f"{command} --resume"


def typed_command() -> str:
    """Return the command line of this process, quoted for a shell."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # set by torchrun, which hides its own options
        return shlex.join(["torchrun", "...", "-m", "whatwhere", *sys.argv[1:]])
    return shlex.join(["whatwhere", *sys.argv[1:]])
