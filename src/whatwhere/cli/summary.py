"""`whatwhere models` and `whatwhere summary`."""

from __future__ import annotations

import json as json_format
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from ..base.errors import UserError
from ..base.tables import rich_tables, show
from ..base.words import brief

if TYPE_CHECKING:
    from ..cost import Cost
    from ..networks.spec import NetworkSpec

AttentionKwargs = Annotated[
    str, typer.Option(metavar="JSON", help='Arguments of the attention, such as {"reduction": 8, "form": "timm"}.')
]


def models_command(
    pattern: Annotated[str, typer.Argument(help="Shell-style pattern, such as 'cbam_*'.")] = "*",
) -> None:
    """List the networks that create_model knows."""
    from ..networks.spec import list_models

    names = list_models(pattern)
    if not names:
        raise UserError(f"no model matches {brief(pattern)}; `whatwhere models` names them all")
    typer.echo("\n".join(names))


def summary_command(
    model: Annotated[
        str | None,
        typer.Argument(help="A network: a name of `whatwhere models`, or of torchvision or timm."),
    ] = None,
    *,
    backbone: Annotated[str | None, typer.Option(metavar="NAME", help="The same, for use with --attention.")] = None,
    attention: Annotated[
        str | None, typer.Option(metavar="NAME", help="Attention for it: shown beside the network without.")
    ] = None,
    attention_kwargs: AttentionKwargs = "",
    at: Annotated[str, typer.Option(metavar="PLACE", help="Where it stands (see `whatwhere attend --help`).")] = "",
    against: Annotated[str | None, typer.Option(metavar="MODEL", help="Another network to compare with.")] = None,
    input_size: Annotated[str, typer.Option("--input", metavar="CxHxW", help="Shape of one image.")] = "3x224x224",
    batch: Annotated[int, typer.Option(min=1, help="Images per batch; all figures are for the batch.")] = 1,
    classes: Annotated[int, typer.Option(min=1, help="Classes of the classifier.")] = 1000,
    depth: Annotated[int | None, typer.Option(min=1, help="Levels of layers to show: 2, or 1 beside another.")] = None,
    latency: Annotated[bool, typer.Option("--latency", help="Time a forward pass and a training step too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """What a network costs, layer by layer: parameters, MACs, FLOPs, bytes saved for backward.

    A network with --attention is compared with the same network without attention.
    """
    from ..cost import compare_costs
    from ..networks.factory import checked
    from ..networks.spec import NetworkSpec, parse_arguments

    if (model is None) == (backbone is None):
        raise UserError("give one network to `whatwhere summary`, such as cbam_resnext50_32x4d")
    size = parse_input_size(input_size)
    if attention and against is not None:
        raise UserError("--attention compares with the same network without attention; leave out --against")
    kwargs = parse_arguments(attention_kwargs) if attention_kwargs else {}
    name = model or backbone or ""
    spec = NetworkSpec(name=name, attention=attention or "", attention_kwargs=kwargs, at=at, num_classes=classes)
    if (at and not attention) or (kwargs and not spec.attention_name):
        raise UserError(f"{'--at' if at else '--attention-kwargs'} needs an attention; give --attention too")
    other = name if attention else against
    before = [] if other is None else [NetworkSpec(name=other, num_classes=classes)]
    costs = measure_costs([checked(known) for known in (*before, spec)], size, batch, latency)
    comparison = compare_costs(*costs) if len(costs) == 2 else None
    if json:
        # the requested network comes first
        result: dict[str, object] = {"models": [item.to_dict() for item in reversed(costs)]}
        if comparison is not None:
            result["comparison"] = comparison.to_dict()
        typer.echo(json_format.dumps(result, indent=2))
    elif comparison is not None:
        show(rich_tables(comparison.tables(depth or 1)))
    else:
        show(rich_tables(costs[0].tables(depth or 2)))


def measure_costs(specs: list[NetworkSpec], input_size: tuple[int, ...], batch_size: int, latency: bool) -> list[Cost]:
    """Measure the cost of each network; with `latency`, each round times all networks."""
    from ..cost import cost, measure_latency
    from ..cost.measure import random_input
    from ..networks import create

    networks = [create(spec, seed=0) for spec in specs]
    costs = [
        cost(network, input_size, batch_size=batch_size, name=spec.describe())
        for network, spec in zip(networks, specs, strict=True)
    ]
    if not latency:
        return costs
    images = [random_input(network, input_size, batch_size) for network in networks]
    return [replace(item, latency=times) for item, times in zip(costs, measure_latency(networks, images), strict=True)]


def parse_input_size(text: str) -> tuple[int, ...]:
    """Return (3, 224, 224) for "3x224x224"."""
    if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8}){2}", text):
        raise UserError(f"--input must be channels x height x width, such as 3x224x224, got {brief(text)}")
    return tuple(map(int, text.split("x")))
