"""`whatwhere weights show` and `whatwhere weights convert`."""

from __future__ import annotations

import json

import typer

from ..base.tables import Table, rich_tables, show
from ..base.words import printable
from ..networks.convert import Description, convert_weights, describe_weights
from ..networks.spec import parse_arguments


def print_weights(file: str, model: str | None, as_json: bool) -> None:
    """Print the content of a weights file."""
    description = describe_weights(file, model)
    if as_json:
        typer.echo(json.dumps(description.to_dict(), indent=2))
    else:
        show(rich_tables(_tables(description)))


def print_conversion(
    source: str, target: str, model: str | None, attention_kwargs: str, to: str, force: bool, as_json: bool
) -> None:
    """Convert a weights file and print the result."""
    given = parse_arguments(attention_kwargs) if attention_kwargs else {}
    done = convert_weights(source, target, model=model, attention_kwargs=given, to=to, force=force)
    if as_json:
        typer.echo(json.dumps(done.to_dict(), indent=2))
        return
    typer.echo(f"{printable(done.target)}: {done.num_tensors} tensors in the layout {done.to}, from {done.layout}")
    typer.echo(f"network: {done.network.call()}")
    for key, value in done.left_out.items():
        typer.echo(f"left out: {printable(key)}, {printable(value)}")
    for note in done.notes:
        typer.echo(f"note: {note}")


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
