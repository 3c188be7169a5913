"""The command `whatwhere`: parsing and printing only. torch is imported by the commands, not by --help."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from ..base.errors import Stopped, UserError
from ..base.words import brief, printable, short
from .check import check_command
from .compare import compare_command
from .predict import evaluate_command, predict_command
from .train import train_command
from .verdict import verdict_command

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
    command = typer.main.get_command(app)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a class or a file may have a name that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            status = command.main(prog_name="whatwhere", standalone_mode=False, obj=run)
        finally:
            sys.stdout.flush()
        if status == 130:
            raise KeyboardInterrupt
        sys.exit(status)
    except UserError as error:
        _fail(str(error))
    except Stopped as stopped:
        print(f"whatwhere: {stopped}", file=sys.stderr)
        sys.exit(128 + stopped.signal if stopped.signal else 1)
    except _UsageError as error:
        usage: Any = error
        sentence = short(" ".join(usage.format_message().split()).rstrip("."), 400)
        _fail(f"{sentence}; see `{'whatwhere' if usage.ctx is None else usage.ctx.command_path} --help`")
    except (typer.Abort, KeyboardInterrupt):
        print("whatwhere: interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - Python flushes it once more at the end
        if isinstance(error, BrokenPipeError):
            sys.exit(1)  # the reader of the output, `head` for example, has seen enough
        # where no file is named it was the output
        where = f"{error.filename!r}: " if error.filename else "cannot write the output: "
        _fail(f"{where}{error.strerror or error}")


def _fail(sentence: str) -> NoReturn:
    print(f"whatwhere: {printable(sentence)}", file=sys.stderr)
    sys.exit(2)


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


_AttentionKwargs = Annotated[
    str, typer.Option(metavar="JSON", help='Arguments of the attention, such as {"reduction": 8, "form": "timm"}.')
]


@app.command("models")
def models_command(
    pattern: Annotated[str, typer.Argument(help="Shell-style pattern, such as 'cbam_*'.")] = "*",
) -> None:
    """List the networks that create_model knows."""
    from ..networks.spec import list_models

    names = list_models(pattern)
    if not names:
        raise UserError(f"no model matches {brief(pattern)}; `whatwhere models` names them all")
    typer.echo("\n".join(names))


@app.command("summary")
def summary_command(
    model: Annotated[
        str | None,
        typer.Argument(help="A network: ours (see `whatwhere models`), or of torchvision or timm by name."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(metavar="NAME", help="The same, for use with --attention.")] = None,
    attention: Annotated[
        str | None, typer.Option(metavar="NAME", help="Attention for it: shown beside the network without.")
    ] = None,
    attention_kwargs: _AttentionKwargs = "",
    at: Annotated[str, typer.Option(metavar="PLACE", help="Where it stands (see `whatwhere attend --help`).")] = "",
    against: Annotated[str | None, typer.Option(metavar="MODEL", help="Another network to compare with.")] = None,
    input_size: Annotated[str, typer.Option("--input", metavar="CxHxW", help="Shape of one image.")] = "3x224x224",
    batch: Annotated[int, typer.Option(min=1, help="Images per batch; all figures are for the batch.")] = 1,
    classes: Annotated[int, typer.Option(min=1, help="Classes of the classifier.")] = 1000,
    depth: Annotated[int | None, typer.Option(min=1, help="Levels of layers to show: 2, or 1 beside another.")] = None,
    latency: Annotated[bool, typer.Option("--latency", help="Time a forward pass and a training step too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """What a network costs, layer by layer: parameters, MACs, FLOPs, bytes saved for backward."""
    from ..networks.spec import NetworkSpec, parse_arguments
    from .summary import print_summary

    if (model is None) == (backbone is None):
        raise UserError("give one network to `whatwhere summary`, such as cbam_resnext50_32x4d")
    spec = NetworkSpec(
        name=model or backbone or "",
        attention=attention or "",
        attention_kwargs=parse_arguments(attention_kwargs) if attention_kwargs else {},
        at=at,
        num_classes=classes,
    )
    print_summary(spec, against, input_size, batch_size=batch, depth=depth, latency=latency, as_json=json)


@app.command("attend")
def attend_command(
    backbone: Annotated[str, typer.Argument(help="A network: ours, or of torchvision or timm by name.")],
    attention: Annotated[
        str, typer.Option(metavar="NAME", help="cbam, se or another, or MODULE:NAME, code of yours that is imported.")
    ] = "cbam",
    attention_kwargs: _AttentionKwargs = "",
    at: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="blocks (before the sum of each residual block), stages (between them), or patterns of module names "
            "behind which it stands, such as 'layer4.*.bn3'; by default the attention's own place.",
        ),
    ] = None,
    start: Annotated[
        str, typer.Option(metavar="START", help="identity: unchanged at first; paper: as published.")
    ] = "identity",
    replace: Annotated[
        str | None, typer.Option(metavar="se", help="Put it in the place of the network's squeeze-and-excitation.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say where it would go.")] = False,
    input_size: Annotated[str, typer.Option("--input", metavar="CxHxW", help="Shape of one image.")] = "3x224x224",
    batch: Annotated[int, typer.Option(min=1, help="Images per batch; what it costs is for the batch.")] = 2,
    classes: Annotated[int, typer.Option(min=1, help="Classes of the classifier.")] = 1000,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Where attention would go in any convolutional network, and what it would cost there."""
    from .attend import print_attended

    print_attended(
        backbone,
        attention=attention,
        attention_kwargs=attention_kwargs,
        at=at,
        start=start,
        replace=replace,
        input_size=input_size,
        batch_size=batch,
        num_classes=classes,
        plan_only=plan,
        as_json=json,
    )


app.command("train")(train_command())
app.command("compare")(compare_command())
app.command("verdict")(verdict_command)
app.command("check")(check_command)
app.command("predict")(predict_command)
app.command("evaluate")(evaluate_command)


weights_app = typer.Typer(help="Weights files: what is in one, and from any layout of names to another.")
app.add_typer(weights_app, name="weights")

_Model = Annotated[str | None, typer.Option(metavar="NAME", help="The network, where names and shapes do not tell it.")]


@weights_app.command("show")
def weights_show_command(
    file: Annotated[str, typer.Argument(help="A .safetensors or .pth file; nothing in it is executed.")],
    model: _Model = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say what is in a weights file: layout, network, tensors, what is around them, keys that do not fit."""
    from .weights import print_weights

    print_weights(file, model, json)


@weights_app.command("convert")
def weights_convert_command(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A .safetensors or .pth file; nothing in it is executed.")
    ],
    target: Annotated[str, typer.Argument(metavar="OUT", help="The .safetensors file to write.")],
    model: _Model = None,
    to: Annotated[
        str,
        typer.Option(
            metavar="LAYOUT",
            help="whatwhere, torchvision, official (CBAM's authors), timm, timm-legacy; ca-sa or ca-sa-sequential for "
            "copied code with ca.fc1 or ca.fc.0 in its blocks.",
        ),
    ] = "whatwhere",
    attention_kwargs: Annotated[
        str, typer.Option(metavar="JSON", help='What the attention was built with, such as {"pools": ["avg"]}.')
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Bring weights from torchvision, timm or the CBAM authors to this package's networks, or back."""
    from .weights import print_conversion

    print_conversion(source, target, model, attention_kwargs, to, force, json)


@app.command("demo")
def demo_command(
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder for the results.")] = "whatwhere-demo",
) -> None:
    """The main job on real images, in a few minutes on a CPU: what CBAM costs, and whether it helps."""
    from .demo import run_demo

    if not out:
        raise UserError("--out is empty; give the folder for the results")
    run_demo(Path(out))
