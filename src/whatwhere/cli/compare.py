"""`whatwhere compare`: its options, and what it prints."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..base.errors import UserError
from ..base.tables import say
from ..base.words import brief, number_in, option
from ..training.config import OPTIONS, TELLS_APART, read_config
from .train import given_options, option_parameter, own_option, own_parameter, typed_command, with_parameters
from .verdict import LATEX, MARKDOWN, chosen_form, show_comparison, verdict_again

if TYPE_CHECKING:
    from ..comparison.content import Content
    from ..comparison.runs import Runner, Spread, Task

_option = functools.partial(own_option, panel="Comparison")
_OWN = (
    _option("backbone", str | None, "Network without attention. (default: by the images, as `train`)", "NAME"),
    _option(
        "arms",
        str | None,
        "Arms: none, se, cbam or another attention, static:cbam (its placebo: the same parameters, and it does not "
        "look at the image), MODULE:NAME of your own, wide (the backbone with as many parameters as the largest arm, "
        "or wide:ARM's), wide:time (as wide as the slowest arm is slow, or wide:time:ARM), short (the backbone with "
        "half the epochs, or short:0.75); NAME=ARM calls it otherwise. "
        "(default: none,se,cbam)",
        "ARMS",
        flag="--attention",
    ),
    _option("seeds", int | None, "Runs of each arm, with seeds 0, 1, ... (default: 8)", "N"),
    _option(
        "max_seeds",
        int | None,
        "Go on to so many where fewer cannot tell, looking after each further --seeds of them. (default: stop, with a "
        "fifth of the error kept for seeds added later)",
        "N",
    ),
    _option("margin", float | None, "Least difference that matters, in points. (default: 0.5)", "X"),
    _option(
        "metric",
        str | None,
        "accuracy, balanced_accuracy, macro_f1, auroc, loss, calibration_error. (default: accuracy)",
        "NAME",
    ),
    _option("baseline", str | None, "The arm that the others are compared with. (default: none)", "ARM"),
    _option(
        "lr_search",
        str | None,
        "Learning rates to try, such as 0.02,0.05,0.1; each arm takes its best by validation images.",
        "X,X",
    ),
    _option(
        "leave_out",
        str | None,
        "Seeds whose runs always fail: they count for no arm, further ones replace them, and the report says so.",
        "SEED,SEED",
    ),
    _option(
        "budget",
        str | None,
        "Time that this call may take, such as 2h or 1h30min: it chooses seeds and epochs that fit, says how small a "
        "difference they find, and begins no seed that would end later.",
        "TIME",
    ),
    _option("out", str | None, "Folder. (default: runs/DATA/compare-BACKBONE)", "DIR"),
    _option("processes", int | None, "Runs at the same time. (default: one for each GPU; 1 without)", "N"),
    _option(
        "ray",
        str | None,
        "Spread the runs over a Ray cluster, each seed a task with a GPU or cores; a lost node's go on elsewhere. "
        "(without ADDRESS: RAY_ADDRESS, the cluster of this machine, or a new one)",
        "[ADDRESS]",
    ),
    _option("shard", str | None, "Do part i of n only, as in 2/8; then --collect where all are together.", "i/n"),
    _option("collect", bool, "Train nothing: judge the finished runs in --out."),
    _option("dry_run", bool, "Check everything, measure the arms, say how long it would take; write nothing."),
    _option("config", Path | None, "YAML with options of the runs; the command line overrides it.", "FILE"),
    _option("json", bool, "Print the result as JSON; all else goes to standard error."),
    _option("latex", bool, LATEX),
    _option("markdown", bool, MARKDOWN),
    # the command of the whole, for the processes that --processes starts
    own_parameter("whole", Annotated[str | None, typer.Option("--whole", hidden=True)], None),
)


def compare_command() -> Callable[..., None]:
    """Return the function of the command for Typer: options of a comparison, and those of `train`.

    The object of Typer's context, if there is one, is called in place of `run_comparison`.
    """

    def compare(data: str, context: typer.Context, **options: Any) -> None:
        own = {parameter.name: options.pop(parameter.name) for parameter in _OWN}
        config = own.pop("config")
        given = read_config(config) if config is not None else {}
        _compare(data, {**given, **given_options(options)}, own, context.obj)

    compare.__doc__ = (
        "Does it help? Train arms with and without attention on your images, over seeds, and give a verdict.\n\n"
        "The same command continues what was interrupted; with more --seeds or arms, it adds them."
    )
    chosen = TELLS_APART - {"attention_kwargs"}
    parameters = [
        inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        *_OWN,
        *(option_parameter(name) for name in OPTIONS if name not in chosen),
    ]
    return with_parameters(compare, "Images, as `whatwhere train` takes them.", parameters)


def _compare(
    data: str, given: dict[str, Any], own: dict[str, Any], run: Callable[..., Content | None] | None = None
) -> None:
    from ..comparison.arms import parse_arms, with_arguments
    from ..comparison.budget import seconds_in
    from ..comparison.content import REPORT, RESULTS
    from ..comparison.planning import Request
    from ..comparison.run import collect, comparison_folder, run_comparison
    from ..comparison.runs import Share, failed
    from .screen import TerminalScreen, kept_for_json

    if not data or own["out"] == "":
        raise UserError(f"{'--out' if data else 'DATA'} is empty; give the {'folder' if data else 'images'}")
    arms, kwargs = None if own["arms"] is None else parse_arms(own["arms"]), given.pop("attention_kwargs", None)
    if kwargs:
        if arms is None:
            raise UserError("--attention-kwargs is for the arms with attention; name them with --attention")
        arms = with_arguments(arms, kwargs)
    request = Request(
        **{name: own[name] for name in ("backbone", "max_seeds", "margin", "metric", "baseline")},
        arms=arms,
        num_seeds=own["seeds"],
        lr_search=None if own["lr_search"] is None else _rates(own["lr_search"]),
        leave_out=() if own["leave_out"] is None else _seeds(own["leave_out"]),
    )
    budget = None if own["budget"] is None else seconds_in(own["budget"])
    out = Path(own["out"]) if own["out"] else comparison_folder(data, request.backbone)
    shard = None if own["shard"] is None else _shard(own["shard"])
    if own["collect"] and shard:
        raise UserError("--collect judges all shares; leave out --shard")
    if own["collect"] and own["dry_run"]:
        raise UserError("--collect trains nothing, so there is nothing to try; leave out --dry-run")
    if own["collect"] and budget is not None:
        raise UserError("--collect trains nothing, so it takes no time; leave out --budget")
    form = chosen_form(**{name: own[name] for name in ("json", "latex", "markdown")})
    with kept_for_json(bool(form)), TerminalScreen(to_stderr=bool(form)) as screen:
        if own["collect"]:
            content: Content | None = collect(data, out, request, screen)
        else:
            spread, num_devices, num_processes = _spread(given, own, shard)
            share = Share(out, shard, spread, bool(own["whole"]), num_devices, num_processes)
            command = own["whole"] or typed_command()
            content = (run or run_comparison)(
                data, given, request, share, command=command, screen=screen, dry_run=own["dry_run"], budget=budget
            )
    if content is None:
        return
    show_comparison(content, out / REPORT, form)
    if not form:
        say(f"The verdict on other terms: {verdict_again(out / RESULTS, content.terms)}")
    if content.failures:
        raise failed(content.failures)


def _spread(
    given: dict[str, Any], own: dict[str, Any], shard: tuple[int, int] | None
) -> tuple[Spread | None, int, int]:
    """Return a function that does the runs in several processes, None for one; how many devices and processes."""
    from ..comparison.shards import default_processes, run_shards

    if own["ray"] is not None:
        return _on_ray(given, own)
    processes = own["processes"]
    if processes is not None and not 1 <= processes <= 256:
        raise UserError(f"--processes must be from 1 to 256, got {brief(processes)}")
    num_gpus = default_processes(given.get("device", ""))
    count = processes or num_gpus
    if count == 1:
        return None, 1, 1
    arguments = _without(sys.argv[2:], ("--shard", "--processes"))
    command = typed_command()

    def spread(runner: Runner, tasks: Sequence[Task], *more: str) -> None:
        run_shards(arguments, shard or (1, 1), count, *more, num_gpus=num_gpus, command=command)

    return spread, max(1, min(count, num_gpus)), count


def _on_ray(given: dict[str, Any], own: dict[str, Any]) -> tuple[Spread | None, int, int]:
    """Return as `_spread`, for a Ray cluster."""
    from ..comparison.cluster import join

    for name in ("processes", "shard", "budget"):
        if own[name] is not None:
            raise UserError(f"--ray spreads all runs by itself, and keeps to no time; leave out {option(name)}")
    cluster = join(own["ray"], given.get("device", ""))
    return cluster.do, cluster.num_runs, cluster.num_runs


def with_optional_values(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of `whatwhere` with `--ray=` for `--ray` alone: Typer has no value that may be missing."""
    following = [*arguments[1:], "--"]
    is_ours = list(arguments[:1]) == ["compare"]
    return [
        f"{text}=" if is_ours and text == "--ray" and after.startswith("-") else text
        for text, after in zip(arguments, following, strict=False)
    ]


def _without(arguments: list[str], names: tuple[str, ...]) -> list[str]:
    """Return the arguments without these options and their values."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in names:
            skip = True
        elif not argument.startswith(tuple(f"{name}=" for name in names)):
            kept.append(argument)
    return kept


def _rates(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(number_in(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--lr-search must be learning rates such as 0.02,0.05,0.1, got {brief(text)}") from error
    if len(set(rates)) < 2 or len(set(rates)) < len(rates) or not all(0 < rate < float("inf") for rate in rates):
        raise UserError(f"--lr-search must be two or more different positive rates, got {brief(text)}")
    return rates


def _seeds(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[0-9]{1,6}(,[0-9]{1,6})*", text):
        raise UserError(f"--leave-out must be seeds such as 3 or 3,7, got {brief(text)}")
    return tuple(map(int, text.split(",")))


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch("([0-9]{1,4})/([0-9]{1,4})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--shard must be i/n with i from 1 to n, such as 2/8, got {brief(text)}")
    return int(found[1]), int(found[2])
