"""`whatwhere attend`."""

from __future__ import annotations

import copy
import json as json_format
from typing import Annotated, Any

import typer

from ..base.tables import rich_tables, show
from .summary import AttentionKwargs, parse_input_size


def attend_command(
    backbone: Annotated[str, typer.Argument(help="A network by name: of whatwhere, torchvision or timm.")],
    *,
    attention: Annotated[
        str, typer.Option(metavar="NAME", help="cbam, se or another, or MODULE:NAME, code of yours that is imported.")
    ] = "cbam",
    attention_kwargs: AttentionKwargs = "",
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
    plan_only: Annotated[bool, typer.Option("--plan", help="Only say where it would go.")] = False,
    input_size: Annotated[str, typer.Option("--input", metavar="CxHxW", help="Shape of one image.")] = "3x224x224",
    batch: Annotated[int, typer.Option(min=1, help="Images per batch; what it costs is for the batch.")] = 2,
    classes: Annotated[int, typer.Option(min=1, help="Classes of the classifier.")] = 1000,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Where attention would go in any convolutional network, and what it would cost there."""
    from ..attention import attention_builder, attention_by_path
    from ..cost import compare_costs, cost
    from ..cost.measure import random_input
    from ..insert import attend, plan
    from ..networks import NetworkSpec, create
    from ..networks.spec import is_import_path, parse_arguments

    size = parse_input_size(input_size)
    chosen = attention_by_path(attention) if is_import_path(attention) else attention
    attention_builder(chosen)  # before the network is built
    kwargs = parse_arguments(attention_kwargs) if attention_kwargs else {}
    options: dict[str, Any] = {"at": at, "start": start, "replace": replace, "attention_kwargs": kwargs}
    model = create(NetworkSpec(name=backbone, num_classes=classes), seed=0)
    example = random_input(model, size, 1)
    planned = plan(model, chosen, example=example, **options)
    comparison = None
    if not plan_only:
        attended = attend(copy.deepcopy(model), chosen, example=example, seed=0, **options)
        comparison = compare_costs(
            cost(model, size, batch_size=batch, name=backbone),
            cost(attended, size, batch_size=batch, name=f"{backbone} with {attention}"),
        )
    if json:
        content = {"plan": planned.to_dict()}
        if comparison is not None:
            content["comparison"] = comparison.to_dict()
        typer.echo(json_format.dumps(content, indent=2))
        return
    show(rich_tables(planned.tables()))
    if comparison is not None:
        show(rich_tables(comparison.tables()))
