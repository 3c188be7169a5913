"""`whatwhere weights show` and `whatwhere weights convert`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..base.tables import Table, rich_tables, say, say_json, show
from ..base.words import printable

if TYPE_CHECKING:
    from ..networks.convert import Description

_Model = Annotated[str | None, typer.Option(metavar="NAME", help="The network, where names and shapes do not tell it.")]


def weights_show_command(
    file: Annotated[str, typer.Argument(help="A .safetensors or .pth file; nothing in it is executed.")],
    model: _Model = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say what is in a weights file: layout, network, tensors, what is around them, keys that do not fit."""
    from ..networks.convert import describe_weights

    description = describe_weights(file, model)
    if json:
        say_json(description.to_dict())
    else:
        show(rich_tables(_tables(description)))


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
            "copied code with ca.fc1 or ca.fc.0 in its blocks; ultralytics for its CBAM in each block.",
        ),
    ] = "whatwhere",
    attention_kwargs: Annotated[
        str, typer.Option(metavar="JSON", help='What the attention was built with, such as {"pools": ["avg"]}.')
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Bring weights from torchvision, timm or the CBAM authors to this package's networks, or back."""
    from ..networks.convert import convert_weights
    from ..networks.spec import parse_arguments

    kwargs = parse_arguments(attention_kwargs) if attention_kwargs else {}
    done = convert_weights(source, target, model=model, attention_kwargs=kwargs, to=to, force=force)
    if json:
        say_json(done.to_dict())
        return
    say(f"{done.target}: {done.num_tensors} tensors in the layout {done.to}, from {done.layout}")
    say(f"network: {done.network.call()}")
    for key, value in done.left_out.items():
        say(f"left out: {key}, {value}")
    for note in done.notes:
        say(f"note: {note}")


def _tables(found: Description) -> list[Table]:
    network = " or ".join(found.networks[:3]) if found.network is None else found.network.call()
    rows = [
        ("layout", found.layout or "unknown"),
        ("network", network or "no network of whatwhere"),
        ("structure", found.structure),
        ("tensors", f"{found.num_tensors} with {found.num_values:,} values, {', '.join(found.dtypes)}"),
    ]
    if found.wrapper:
        rows.append(("found in", printable(found.wrapper)))
    if found.prefix:
        rows.append(("prefix", printable(found.prefix)))
    rows += [(f"left out: {printable(key)}", printable(value)) for key, value in found.around.items()]
    rows += [("note", note) for note in found.notes]
    rows += [(f"metadata: {printable(key)}", printable(value)) for key, value in found.metadata.items()]
    if found.fit is not None:
        rows.append(("fitting", f"{found.fit.num_fitting} of the network's {found.fit.num_expected} tensors"))
    if found.fit is not None and found.fit.cause:
        rows.append(("cause", found.fit.cause))
    tables = [Table(printable(found.path), ("", ""), rows, num_text_columns=2)]
    faults = [(f"{count:,} NaN or infinite", printable(key), "1", "") for key, count in found.non_finite.items()]
    if found.fit is None:
        faults += [("unknown name", printable(pattern), str(len(keys)), "") for pattern, keys in found.unknown.items()]
    else:
        faults += [
            (group.kind, printable(group.pattern), str(len(group.keys)), group.detail) for group in found.fit.groups
        ]
    if faults:
        tables.append(Table("What does not fit", ("", "name", "tensors", "detail"), faults, num_text_columns=2))
    return tables
