"""The command `whatwhere`: parsing and printing only. torch is imported by the commands, not by --help."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_type_hints

import typer

from ..base.code import outlived
from ..base.errors import Stopped, UserError
from ..base.processes import leave, unwound_at_signals
from ..base.tables import tell
from ..base.words import brief, command_line, number_in, short
from .attend import attend_command
from .audit import audit_command
from .backends import backends_command
from .check import check_command
from .collect import collect_command
from .compare import compare_command, with_optional_values
from .explain import explain_command
from .predict import evaluate_command, predict_command
from .summary import models_command, summary_command
from .train import train_command
from .verdict import verdict_command
from .weights import weights_convert_command, weights_show_command

# the class of all usage errors; typer re-exports none but this leaf of it
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="whatwhere",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Attention for convolutional networks: what it costs, and whether it helps.",
)


def main(run: Any = None) -> None:
    """Run the command line; a `UserError` or a usage error becomes one sentence on standard error, exit status 2.

    Args:
        run: Called by `compare` in place of `run_comparison`; for tests.
    """
    for group in (app, weights_app):
        for registered in group.registered_commands:
            _read_strictly(registered.callback)
    command = typer.main.get_command(app)
    _outlive(command)
    # of corrupt EXIF headers and the like: what spoils a picture is an error of its own
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    _open_streams()
    try:
        try:
            _refuse_file_behind_switch(sys.argv[1:])
            with unwound_at_signals():
                status = command.main(
                    with_optional_values(sys.argv[1:]), prog_name="whatwhere", standalone_mode=False, obj=run
                )
        finally:
            sys.stdout.flush()
        if status == 130:
            raise KeyboardInterrupt
        sys.exit(status)
    except UserError as error:
        _fail(str(error))
    except Stopped as stopped:
        tell(str(stopped))
        leave(128 + stopped.signal if stopped.signal else 1)
    except _UsageError as error:
        usage: Any = error
        sentence = short(" ".join(usage.format_message().split()).rstrip("."), 400)
        _fail(f"{sentence}; see `{'whatwhere' if usage.ctx is None else usage.ctx.command_path} --help`")
    except (typer.Abort, KeyboardInterrupt):
        tell("interrupted")
        leave(130)
    except OSError as error:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - Python flushes it once more at the end
        if isinstance(error, BrokenPipeError):
            leave(1)  # the reader of the output, `head` for example, has seen enough
        # where no file is named it was the output
        where = f"{error.filename!r}: " if error.filename else "cannot write the output: "
        _fail(f"{where}{error.strerror or error}")


def _refuse_file_behind_switch(given: list[str]) -> None:
    """Raise UserError where a file to write is named behind --csv or --json, which take none in any command."""
    for switch, name in pairwise(given):
        if switch in ("--csv", "--json") and name.lower().endswith((".csv", ".json")) and not os.path.exists(name):
            sentence = f"{switch} prints, and takes no file; to keep what it prints, end the command with"
            raise UserError(sentence, f"> {command_line([name])}")


def _open_streams() -> None:
    """Open standard output and error where they are closed (`>&-`): a file of results would be in their place."""
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")  # to write is an error: the output would be lost
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a class or a file may have a name that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")


def _outlive(command: Any) -> None:
    """Let no code of the user end the program; click itself does, where the reader of the output has seen enough."""
    for inner in getattr(command, "commands", {}).values():
        _outlive(inner)
    if command.callback is not None:
        command.callback = outlived("code of yours that the command called")(command.callback)


def _read_strictly(command: Any) -> None:
    """Let the options of a command take numbers as `number_in` reads them, and no path without a name.

    Python itself reads 1_0 as 10, and the digits of all scripts; and "", an empty variable of the shell, as the current
    folder.
    """
    command.__annotations__ = hints = get_type_hints(command, include_extras=True)
    for hint in hints.values():
        inner = next(iter(get_args(hint)), None)
        kind = next((kind for kind in (inner, *get_args(inner)) if kind in (int, float, Path)), None)
        for option in getattr(hint, "__metadata__", ()) if kind else ():
            option.parser = _path if kind is Path else _plain(kind, option.min, option.max)


def _path(given: object) -> Path:
    if not str(given):
        raise typer.BadParameter("the path is empty; perhaps a variable of the shell is not set.")
    return Path(str(given))


_path.__name__ = "path"  # typer shows it


def _plain(kind: Any, least: float | None, most: float | None) -> Callable[[object], float]:
    def parse(given: object) -> float:
        text = str(given)  # a default is a number already
        try:
            number_in(text.strip())
            number: float = kind(text)
        except ValueError:
            raise typer.BadParameter(f"{brief(text)} is not a valid {name}.") from None
        if least is not None and number < least:
            raise typer.BadParameter(f"{number:g} is below {least:g}.")
        if most is not None and number > most:
            raise typer.BadParameter(f"{number:g} is above {most:g}.")
        return number

    parse.__name__ = name = "integer" if kind is int else "number"
    return parse


def _fail(sentence: str) -> NoReturn:
    tell(sentence)
    leave(2)


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(version("whatwhere"))
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        with contextlib.redirect_stdout(sys.stderr):  # Typer prints the help itself
            context.get_help()
        raise typer.Exit(2)


app.command("models")(models_command)
app.command("backends")(backends_command)
app.command("summary")(summary_command)
app.command("attend")(attend_command)
app.command("train")(train_command())
app.command("compare")(compare_command())
app.command("collect")(collect_command)
app.command("verdict")(verdict_command)
app.command("audit")(audit_command)
app.command("check")(check_command)
app.command("predict")(predict_command)
app.command("evaluate")(evaluate_command)
app.command("explain")(explain_command)
weights_app = typer.Typer(help="Weights files: what is in one, and from any layout of names to another.")
weights_app.command("show")(weights_show_command)
weights_app.command("convert")(weights_convert_command)
app.add_typer(weights_app, name="weights")


@app.command("demo")
def demo_command(
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder for the results.")] = "whatwhere-demo",
) -> None:
    """The main job on real images, in a few minutes on a CPU: what CBAM costs, and whether it helps."""
    from .demo import run_demo

    if not out:
        raise UserError("--out is empty; give the folder for the results")
    run_demo(Path(out))
