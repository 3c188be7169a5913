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
from ..networks import list_models
from ..networks.named import check_network, create_network


def print_models(pattern: str) -> None:
    """Print the names that match `pattern`, a line each."""
    names = list_models(pattern)
    if not names:
        raise UserError(f"no model matches {brief(pattern)}; `whatwhere models` names them all")
    for name in names:
        typer.echo(name)


def print_summary(
    name: str,
    attention: str | None,
    at: str,
    against: str | None,
    input_size: str,
    batch_size: int,
    num_classes: int,
    depth: int | None,
    latency: bool,
    as_json: bool,
) -> None:
    """Print what the model `name` costs, beside `against` if that is given: the change from `against` to `name`.

    With an `attention`, which `name` gets, it is beside the same network without.
    """
    size = parse_input_size(input_size)
    if attention is not None and against is not None:
        raise UserError("with --attention the network is shown beside itself without it; leave out --against")
    if at and attention is None:
        raise UserError("--at says where attention is to stand; give --attention too")
    against = name if attention is not None else against
    networks = [(name, attention, at)] if against is None else [(against, None, ""), (name, attention, at)]
    for known, own, place in networks:
        check_network(known, attention=own, at=place)
    costs = measure_costs(networks, size, batch_size, num_classes, latency)
    comparison = compare_costs(*costs) if len(costs) == 2 else None
    if as_json:
        # the model that was asked for comes first
        result: dict[str, object] = {"models": [item.to_dict() for item in reversed(costs)]}
        if comparison is not None:
            result["comparison"] = comparison.to_dict()
        typer.echo(json.dumps(result, indent=2))
    elif comparison is not None:
        show(rich_tables(comparison.tables(depth or 1)))
    else:
        show(rich_tables(costs[0].tables(depth or 2)))


def measure_costs(
    named: list[tuple[str, str | None, str]],
    input_size: tuple[int, ...],
    batch_size: int,
    num_classes: int,
    latency: bool,
) -> list[Cost]:
    """Return the costs of models (name, attention, its place), timed in turn within each round if `latency`."""
    networks = [
        create_network(name, num_classes=num_classes, attention=attention, at=at, seed=0)
        for name, attention, at in named
    ]
    costs = [
        cost(network, input_size, batch_size=batch_size, name=name if attention is None else f"{name} with {attention}")
        for network, (name, attention, _) in zip(networks, named, strict=True)
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
