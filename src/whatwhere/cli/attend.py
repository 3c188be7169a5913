"""`whatwhere attend`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..base.code import held_apart
from ..base.errors import UserError
from ..base.tables import rich_tables, say_json, show
from ..base.words import brief
from .screen import TerminalScreen
from .summary import (
    AttentionKwargs,
    Classes,
    InputSize,
    Network,
    input_size_of,
    measure_costs,
    parse_input_size,
    usual_depth,
)


def attend_command(
    network: Network,
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
    layers: Annotated[
        bool, typer.Option("--layers", help="Also show the cost by layer. It is always part of --json.")
    ] = False,
    input_size: InputSize = "",
    batch: Annotated[int, typer.Option(min=1, help="Images per batch; what it costs is for the batch.")] = 2,
    classes: Classes = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Where attention would go in any convolutional network, and what it would cost there."""
    from ..attention import attention_builder, attention_by_path
    from ..cost import compare_costs, cost
    from ..cost.measure import random_input
    from ..insert import attend, plan
    from ..insert.flow import record_example
    from ..networks import NetworkSpec
    from ..networks.foreign import create_any
    from ..networks.spec import is_import_path, parse_arguments

    if layers and plan_only:
        raise UserError("--plan measures no cost, so --layers has nothing to show; leave out one of the two")
    given = parse_input_size(input_size) if input_size else None
    chosen = attention_by_path(attention) if is_import_path(attention) else attention
    attention_builder(chosen)  # before the network is built
    kwargs = parse_arguments(attention_kwargs) if attention_kwargs else {}
    options: dict[str, Any] = {"at": at, "start": start, "replace": replace, "attention_kwargs": kwargs}
    comparison = None
    with TerminalScreen(to_stderr=True) as screen, held_apart(f"{brief(network)} or {brief(attention)}"):
        steps = iter(range(5))

        def begin(what: str) -> None:
            screen.progress(what, next(steps), 2 if plan_only else 5)

        begin(f"building {network}")
        model = create_any(NetworkSpec(name=network), num_classes=classes, seed=0)
        begin("following the network")
        size = given or input_size_of(model, network)
        flow = record_example(model, random_input(model, size, 1), advice="give another --input")
        planned = plan(model, chosen, example=flow, **options)
        if not plan_only:
            begin(f"cost of {network}")
            before = measure_costs([(network, model)], size, batch)[0]
            begin(f"putting {attention} in")
            attend(model, chosen, example=flow, seed=0, **options)
            begin(f"cost of {network} with {attention}")
            name = f"{network} with {attention}"
            after = cost(model, size, batch_size=batch, training=before.training, name=name)
            comparison = compare_costs(before, after)
    if json:
        content = {"plan": planned.to_dict()}
        if comparison is not None:
            content["comparison"] = comparison.to_dict()
        say_json(content)
        return
    show(rich_tables(planned.tables()))
    if comparison is not None:
        tables = comparison.tables(usual_depth(comparison))
        show(rich_tables(tables if layers else tables[:1]))
