"""`whatwhere attend`."""

from __future__ import annotations

import copy
import json as json_format
from typing import Any

import typer

from ..attention import attention_builder, attention_by_path
from ..base.tables import rich_tables, show
from ..cost import CostComparison, compare_costs, cost
from ..cost.measure import random_input
from ..insert import attend, plan
from ..networks import NetworkSpec, create
from ..networks.spec import is_import_path, parse_arguments
from .summary import parse_input_size


def print_attended(
    backbone: str,
    *,
    attention: str,
    attention_kwargs: str,
    at: str | None,
    start: str,
    replace: str | None,
    input_size: str,
    batch_size: int,
    num_classes: int,
    plan_only: bool,
    as_json: bool,
) -> None:
    """Print the places of attention in a network, and its cost unless `plan_only`."""
    size = parse_input_size(input_size)
    chosen = attention_by_path(attention) if is_import_path(attention) else attention
    attention_builder(chosen)  # before the network is built
    kwargs = parse_arguments(attention_kwargs) if attention_kwargs else {}
    options: dict[str, Any] = {"at": at, "start": start, "replace": replace, "attention_kwargs": kwargs}
    model = create(NetworkSpec(name=backbone, num_classes=num_classes), seed=0)
    example = random_input(model, size, 1)
    planned = plan(model, chosen, example=example, **options)
    comparison: CostComparison | None = None
    if not plan_only:
        attended = attend(copy.deepcopy(model), chosen, example=example, seed=0, **options)
        comparison = compare_costs(
            cost(model, size, batch_size=batch_size, name=backbone),
            cost(attended, size, batch_size=batch_size, name=f"{backbone} with {attention}"),
        )
    if as_json:
        content = {"plan": planned.to_dict()}
        if comparison is not None:
            content["comparison"] = comparison.to_dict()
        typer.echo(json_format.dumps(content, indent=2))
        return
    show(rich_tables(planned.tables()))
    if comparison is not None:
        show(rich_tables(comparison.tables()))
