"""`whatwhere models` and `whatwhere summary`."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from ..base.code import held_apart
from ..base.errors import UserError
from ..base.tables import rich_tables, say_json, show
from ..base.words import brief, few

if TYPE_CHECKING:
    from torch import nn

    from ..cost import Cost, CostComparison

_NETWORK = (
    "A network: a name of whatwhere, torchvision or timm; yolo11n.yaml or the path of such a file, for Ultralytics; or "
    "MODULE:NAME, a function or class of yours that returns one."
)
Network = Annotated[str, typer.Argument(metavar="NETWORK", help=_NETWORK)]
InputSize = Annotated[
    str,
    typer.Option(
        "--input", metavar="CxHxW", help="Shape of one image; by default 3x224x224, 3x640x640 for a detector."
    ),
]
Classes = Annotated[
    int | None, typer.Option(min=1, help="Classes; by default 1000, or what the detector or your function has.")
]
AttentionKwargs = Annotated[
    str, typer.Option(metavar="JSON", help='Arguments of the attention, such as {"reduction": 8, "form": "timm"}.')
]


def models_command(
    pattern: Annotated[str, typer.Argument(help="Shell-style pattern, such as 'cbam_*'.")] = "*",
) -> None:
    """List whatwhere's own networks; those of torchvision and timm are known too, by the names that they have there."""
    from ..networks.spec import list_models

    names = list_models(pattern)
    if not names:
        raise UserError(
            f"no network of whatwhere matches {brief(pattern)}; `whatwhere models` names them all, and those of "
            "torchvision and timm are known by the names that they have there"
        )
    typer.echo("\n".join(names))


def summary_command(
    model: Annotated[str | None, typer.Argument(metavar="NETWORK", help=_NETWORK)] = None,
    *,
    backbone: Annotated[str | None, typer.Option(metavar="NAME", help="The same, for use with --attention.")] = None,
    attention: Annotated[
        str | None, typer.Option(metavar="NAME", help="Attention for it: shown beside the network without.")
    ] = None,
    attention_kwargs: AttentionKwargs = "",
    at: Annotated[str, typer.Option(metavar="PLACE", help="Where it stands (see `whatwhere attend --help`).")] = "",
    against: Annotated[str | None, typer.Option(metavar="NETWORK", help="Another network to compare with.")] = None,
    input_size: InputSize = "",
    batch: Annotated[int, typer.Option(min=1, help="Images per batch; all figures are for the batch.")] = 1,
    classes: Classes = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Levels of layers to show: 2, or 1 beside another.")] = None,
    latency: Annotated[bool, typer.Option("--latency", help="Time a forward pass and a training step too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """What a network costs, layer by layer: parameters, MACs, FLOPs, bytes saved for backward.

    A network with --attention is compared with the same network without attention.
    """
    from ..cost import compare_costs
    from ..networks.factory import checked
    from ..networks.foreign import create_any, is_foreign
    from ..networks.spec import NetworkSpec, parse_arguments

    if (model is None) == (backbone is None):
        raise UserError("give one network to `whatwhere summary`, such as cbam_resnext50_32x4d")
    if attention and against is not None:
        raise UserError("--attention compares with the same network without attention; leave out --against")
    kwargs = parse_arguments(attention_kwargs) if attention_kwargs else {}
    name = model or backbone or ""
    spec = NetworkSpec(name=name, attention=attention or "", attention_kwargs=kwargs, at=at)
    if (at and not attention) or (kwargs and not spec.attention_name):
        raise UserError(f"{'--at' if at else '--attention-kwargs'} needs an attention; give --attention too")
    other = name if attention else against
    specs = [*([] if other is None else [NetworkSpec(name=other)]), spec]
    if input_size:
        parse_input_size(input_size)
    specs = [known if is_foreign(known.name) else checked(known) for known in specs]
    with held_apart(few([brief(known.name) for known in specs], between=" or ")):
        networks = [(known.describe(), create_any(known, num_classes=classes, seed=0)) for known in specs]
        size = parse_input_size(input_size) if input_size else input_size_of(networks[0][1], specs[0].name)
        costs = measure_costs(networks, size, batch, latency=latency)
    comparison = compare_costs(*costs) if len(costs) == 2 else None
    if json:
        # the requested network comes first
        result: dict[str, object] = {"models": [item.to_dict() for item in reversed(costs)]}
        if comparison is not None:
            result["comparison"] = comparison.to_dict()
        say_json(result)
    elif comparison is not None:
        show(rich_tables(comparison.tables(depth or usual_depth(comparison))))
    else:
        show(rich_tables(costs[0].tables(depth or 2)))


def usual_depth(comparison: CostComparison) -> int:
    """Return the levels of layers to show of two networks: 1, or 2 where both consist of one part, as YOLO does."""
    return 1 if sum(layer.depth == 1 for layer in comparison.layers) > 1 else 2


def measure_costs(
    networks: list[tuple[str, nn.Module]], input_size: tuple[int, ...], batch_size: int, *, latency: bool = False
) -> list[Cost]:
    """Measure the cost of each network, given with its name; with `latency`, each round times all networks.

    In evaluation mode, if one of them wants more than images in training mode.
    """
    from ..cost import TrainingModeError, cost, measure_latency
    from ..cost.measure import random_input
    from .screen import TerminalScreen

    def measured(training: bool) -> list[Cost]:
        return [
            cost(network, input_size, batch_size=batch_size, training=training, name=name) for name, network in networks
        ]

    try:
        costs = measured(training=True)
    except TrainingModeError:
        costs = measured(training=False)
    if not latency:
        return costs
    models = [network for _, network in networks]
    images = [random_input(network, input_size, batch_size) for network in models]
    with TerminalScreen(to_stderr=True) as screen:
        times = measure_latency(
            models,
            images,
            training=costs[0].training,
            progress=lambda done, total: screen.progress("timing", done, total),
        )
    return [replace(item, latency=own) for item, own in zip(costs, times, strict=True)]


def input_size_of(network: nn.Module, name: str) -> tuple[int, ...]:
    """Return the shape of one image for the network `name`, where no --input is given.

    Code of the user may take images of another size than usual: the first size with which it runs.
    """
    from ..base.modules import tensors_in
    from ..insert.flow import CONVOLUTIONS, record_example
    from ..networks.foreign import USUAL_INPUT_SIZE, is_code, usual_input_size

    size = usual_input_size(network)
    is_convolutional = any(isinstance(module, CONVOLUTIONS) for module in network.modules())
    if not is_code(name) or size != USUAL_INPUT_SIZE or not is_convolutional:
        return size
    flow = record_example(network, advice="give --input CxHxW, or call attend(model, ..., example=...) in Python")
    return tuple(tensors_in(flow.arguments)[0].shape[-3:])


def parse_input_size(text: str) -> tuple[int, ...]:
    """Return (3, 224, 224) for "3x224x224"."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}(x[1-9][0-9]{0,8}){2}", text):
        raise UserError(f"--input must be channels x height x width, such as 3x224x224, got {brief(text)}")
    return tuple(map(int, text.split("x")))
