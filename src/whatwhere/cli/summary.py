"""`whatwhere summary`."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import typer

from ..base.errors import UserError
from ..base.tables import rich_tables, show
from ..base.words import brief
from ..cost import Cost, compare_costs, cost, measure_latency
from ..cost.measure import random_input
from ..networks.factory import checked, create
from ..networks.spec import NetworkSpec


def print_summary(
    spec: NetworkSpec,
    against: str | None,
    input_size: str,
    *,
    batch_size: int,
    depth: int | None,
    latency: bool,
    as_json: bool,
) -> None:
    """Print the cost of a network, and with `against` the difference from that network.

    A network with `spec.attention` is compared with the same network without attention.
    """
    size = parse_input_size(input_size)
    if spec.attention and against is not None:
        raise UserError("--attention compares with the same network without attention; leave out --against")
    if (spec.at or spec.attention_kwargs) and not spec.attention:
        given = "--at" if spec.at else "--attention-kwargs"
        raise UserError(f"{given} needs an attention; give --attention too")
    against = spec.name if spec.attention else against
    before = [] if against is None else [NetworkSpec(name=against, num_classes=spec.num_classes)]
    specs = [checked(known) for known in (*before, spec)]
    costs = measure_costs(specs, size, batch_size, latency)
    comparison = compare_costs(*costs) if len(costs) == 2 else None
    if as_json:
        # the requested network comes first
        result: dict[str, object] = {"models": [item.to_dict() for item in reversed(costs)]}
        if comparison is not None:
            result["comparison"] = comparison.to_dict()
        typer.echo(json.dumps(result, indent=2))
    elif comparison is not None:
        show(rich_tables(comparison.tables(depth or 1)))
    else:
        show(rich_tables(costs[0].tables(depth or 2)))


def measure_costs(specs: list[NetworkSpec], input_size: tuple[int, ...], batch_size: int, latency: bool) -> list[Cost]:
    """Measure the cost of each network; with `latency`, each round times all networks."""
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
