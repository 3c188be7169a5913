from __future__ import annotations

import json
import re
from dataclasses import replace

import typer

from ..cost import Cost, compare_costs, cost, measure_latency
from ..cost.measure import random_input
from ..errors import UserError
from ..models import create_model, list_models
from ..models.registry import check_name
from ..tables import rich_tables, show


def print_models(pattern: str) -> None:
    """Print the names that match `pattern`, a line each."""
    names = list_models(pattern)
    if not names:
        raise UserError(f"no model matches {pattern!r}; `whatwhere models` names them all")
    for name in names:
        typer.echo(name)


def print_summary(
    name: str,
    against: str | None,
    input_size: str,
    batch_size: int,
    num_classes: int,
    depth: int | None,
    latency: bool,
    as_json: bool,
) -> None:
    """Print what the model `name` costs, beside `against` if that is given: the change from `against` to `name`."""
    size = parse_input_size(input_size)
    names = [name] if against is None else [against, name]
    for known in names:
        check_name(known)
    costs = measure_costs(names, size, batch_size, num_classes, latency)
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
    names: list[str], input_size: tuple[int, ...], batch_size: int, num_classes: int, latency: bool
) -> list[Cost]:
    """Return the costs of models by name, timed in turn within each round if `latency`."""
    networks = [create_model(name, num_classes=num_classes, seed=0) for name in names]
    costs = [
        cost(network, input_size, batch_size=batch_size, name=name)
        for network, name in zip(networks, names, strict=True)
    ]
    if not latency:
        return costs
    images = [random_input(network, input_size, batch_size) for network in networks]
    return [replace(item, latency=times) for item, times in zip(costs, measure_latency(networks, images), strict=True)]


def parse_input_size(text: str) -> tuple[int, ...]:
    """Return (3, 224, 224) for "3x224x224"."""
    if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8}){2}", text):
        raise UserError(f"--input must be channels x height x width, such as 3x224x224, got {text!r}")
    return tuple(map(int, text.split("x")))
