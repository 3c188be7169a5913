"""A comparison from DATA to its report: what `whatwhere compare` calls."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from ..base.errors import UserError
from ..base.files import check_is_no_file, check_writable, locked, write_bytes, write_json
from ..base.screen import Screen, duration
from ..base.words import brief, counted, few
from ..data.split import Prepared
from ..statistics.history import changed_figures, read_record
from ..statistics.independence import check_still_independent
from ..statistics.verdict import judge
from ..training.config import FREE
from ..training.distributed import team
from ..training.setup import check_apart, prepare_images, resolve
from .content import Content, Costs
from .costs import measure_costs, seconds_of, within_an_hour
from .design import (
    Design,
    Request,
    asked_for,
    begun,
    check_given,
    check_options,
    completed,
    continued,
    described,
    read_design,
    with_full_name,
)
from .gather import Gathered
from .runs import Runner, RunScreen, Task, chosen_rates, failed, search_tasks, share, tasks

_HOUR = 3600
COST, RESULTS, VERDICT = "cost.json", "results.csv", "verdict.json"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a comparison is, and which part of it this process does.

    Attributes:
        out: Its folder.
        shard: (i, n), the share of the runs, counted from 1; None for all, and the verdict.
        spread: Runs the present runs in several processes, where there are to be some.
        is_inner: Whether this process is one of these; then another speaks of the whole.
    """

    out: Path
    shard: tuple[int, int] | None = None
    spread: Callable[[], None] | None = None
    is_inner: bool = False


def run_comparison(
    data: str, given: Mapping[str, Any], request: Request, place: Place, *, command: str, screen: Screen
) -> Content | None:
    """Train what is missing of a comparison, judge it, and return what its report shows; None for a shard.

    The folder gets `compare.json` (the design, before the first run), `cost.json`, `runs/ARM/seed-N/`, and in the end
    `results.csv` and `verdict.json`.

    Args:
        data: As `find_source` takes it.
        given: Options of `train` for every run; those left out are chosen, once for all runs.
        request: What is compared.
        place: Where, and which part.
        command: What to type to continue.
        screen: Hears of the progress.

    Raises:
        UserError: Anything that the user can mend.
        Stopped: A run was asked to stop and is saved.
    """
    # torchrun's variable, asked before `team` would join its processes
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("compare spreads its runs over the GPUs by itself; start it without torchrun")
    check_given(data, given, request)
    request = with_full_name(request)
    check_is_no_file(place.out)
    stored = read_design(place.out)
    if stored is None and request.leave_out:
        raise UserError(
            f"there is no comparison in {str(place.out)!r} yet; seeds can be left out once a run has failed"
        )
    # what is wrong in itself is said before a long check of the images
    if stored is None:
        asked = asked_for(request)
    else:
        check_options(stored, place.out, given)
        design = continued(stored, request, place.out)
    with team(given.get("device", "")) as processes:
        before = {} if stored is None else stored.options
        warned: set[str] = set()
        prepared = prepare_images(data, {**before, **given, "seed": 0}, RunScreen(screen, "", warned))
        check_apart(place.out, prepared)
        if stored is None:
            config = resolve(data, {**given, "seed": 0}, prepared, processes)
            design = begun(data, config, prepared, request.backbone, asked)
        design = completed(data, design, request, prepared, place.out)
        free = {name: value for name, value in given.items() if name in FREE}
        free.setdefault("device", str(processes.device))
        whose = f" of part {place.shard[0]}/{place.shard[1]}" if place.shard else ""
        runner = Runner(data, free, command, screen, whose, warned=warned)
        check_writable(place.out)
        with contextlib.nullcontext() if place.shard else locked(place.out):
            if design != stored:
                design.write(place.out)
            if not place.is_inner:
                _say_what_stays(design, request, screen)
            if stored is None and request.backbone is None:
                size, kind = design.options["image_size"], processes.device.type.upper()
                screen.line(f"backbone: {design.backbone}, chosen for {size} px on a {kind}; --backbone names another")
            for line in [] if place.is_inner else described(design, len(prepared.classes)):
                screen.line(line)
            cost = _read_cost(place.out)
            known = [] if cost is None else [row.arm for row in cost.rows]
            if (place.shard is None or place.shard[0] == 1) and known != [arm.name for arm in design.arms]:
                screen.line("measuring what each arm costs")
                measured = measure_costs(design, len(prepared.classes), processes.device)
                write_json(place.out / COST, msgspec.to_builtins(measured))
                cost = measured
            if cost is not None and not place.is_inner:
                _say_how_long(design, prepared, cost, place, runner)
            return _advance(design, place, runner)


def _say_how_long(design: Design, prepared: Prepared, cost: Costs, place: Place, runner: Runner) -> None:
    """Show about how long the missing runs take, and where that is over an hour what would fit one."""
    items = tasks(design, place.out)
    missing = [item for item in (share(items, place.shard) if place.shard else items) if not item.is_done()]
    left = {arm.name: sum(item.folder.parent.name == arm.name for item in missing) for arm in design.arms}
    if not missing or set(left) - {row.arm for row in cost.rows}:
        return
    num_images = {part: len(prepared.parts.get(part, ())) for part in ("train", "val", "test")}
    seconds = seconds_of(design, cost, num_images, left)
    runner.screen.line(
        f"{counted(len(missing), 'run')} to do: about {duration(seconds)} one after another, reading the images not "
        "counted"
    )
    if seconds > _HOUR and len(missing) == len(items):
        device = torch.device(runner.free["device"])
        options, fitting = within_an_hour(design, len(prepared.classes), num_images, device)
        runner.screen.line(f"an hour is enough for: {options} (about {duration(fitting)}), with another --out")


def comparison_folder(data: str, backbone: str | None) -> Path:
    """Return the folder of a comparison that is given none."""
    name = (backbone or "default").replace(":", "-")
    return Path("runs") / (Path(data).stem or "data") / f"compare-{name}"


def collect(data: str, out: Path, request: Request, screen: Screen) -> Content:
    """Judge the runs that are finished in `out`, without training; return what the report shows.

    DATA must be what the comparison was begun with, or a folder or file of that name elsewhere; no image is read.

    Raises:
        UserError: No comparison is there, no run of it is finished, or it has not what is requested.
    """
    check_is_no_file(out)
    design = read_design(out)
    if design is None:
        raise UserError(f"there is no comparison in {str(out)!r}; give its folder with --out")
    same_name = Path(data).name == Path(design.data).name
    if Path(data) != Path(design.data) and not (same_name and Path(data).exists()):
        raise UserError(
            f"the comparison in {str(out)!r} is of {brief(design.data)}, not of {brief(data)}; give that, or another "
            "--out"
        )
    with locked(out):
        request = with_full_name(request)
        design = continued(design, request, out)
        _say_what_stays(design, request, screen)
        added = [arm.name for arm in design.arms if arm.name not in design.arm_options]
        if added:
            raise UserError(f"the comparison in {str(out)!r} has no arm {few(added)}; train it without --collect")
        # shares leave the design as it was
        rates = chosen_rates(design, out) if design.lr_search else None
        design = _chosen(design, rates)
        design, content = _judged(design, tasks(design, out), out, {})
    missing = sum(task.result() is None for task in tasks(design, out))
    if missing:
        screen.line(f"{counted(missing, 'run')} to do: run the same command without --collect")
    return content


def _say_what_stays(design: Design, request: Request, screen: Screen) -> None:
    if request.num_seeds is not None and request.num_seeds < design.num_seeds:
        screen.line(f"--seeds {request.num_seeds}: there are {design.num_seeds} already, and all of them stay")


def _advance(design: Design, place: Place, runner: Runner) -> Content | None:
    """Do the runs of each look until the verdict is there or the plan ends."""
    while True:
        searched = _with_rates(design, place, runner)
        if searched is None:
            return None
        design = searched
        items = tasks(design, place.out)
        runner.after = functools.partial(_warn_if_alike, design, items, runner)
        _do(items, place, runner)
        if place.shard is not None:
            if runner.failures:
                raise failed(runner.failures)
            if not place.is_inner:
                text = "this share is done; when all are: the same command with --collect instead of --shard"
                runner.screen.line(text)
            return None
        after, content = _judged(design, items, place.out, runner.failures)
        if runner.failures or after.seeds() == design.seeds():
            return content
        going_on = [arm for arm in after.others if len(after.seeds()[arm]) > len(design.seeds()[arm])]
        runner.screen.line(f"cannot tell yet: {', '.join(going_on)}; going on to the next look, as planned")
        for arm, why in content.first:
            runner.screen.warn(f"{arm}: {why}; more epochs would tell more than more pairs")
        design = after


def _warn_if_alike(design: Design, items: Sequence[Task], runner: Runner) -> None:
    """Say while runs are still to come that those that are there are copies of one another."""
    gathered = Gathered(design, items)
    try:
        check_still_independent(
            gathered.results,
            design.metric,
            "see the learning rate, and what the networks answer",
            gathered.num_images(),
        )
    except UserError as error:
        runner.screen.warn(f"{error}; no verdict can come of such runs")
        runner.after = lambda: None


def _do(items: list[Task], place: Place, runner: Runner) -> None:
    if place.shard is not None:
        items = share(items, place.shard)
    if place.spread is None:
        runner.do(items)
    elif not all(item.is_done() for item in items):
        try:
            place.spread()
        except UserError as error:
            missing = [item.label for item in items if not item.is_done()]
            if len(missing) == len(items):
                raise
            runner.failures.update(dict.fromkeys(missing, str(error)))


def _with_rates(design: Design, place: Place, runner: Runner) -> Design | None:
    """Return the design with each arm's learning rate; None in a share whose search others have not finished."""
    if not design.lr_search:
        return design
    items = [task for by_rate in search_tasks(design, place.out).values() for task in by_rate.values()]
    _do(items, place, runner)
    rates = chosen_rates(design, place.out)
    if rates is None:
        if place.shard is None or runner.failures:
            raise UserError(
                f"the search of learning rates is incomplete: {few(list(runner.failures.values()), between='; ')}"
            )
        if not place.is_inner:
            text = "this share of the search is done; run the same command again when the other shares are"
            runner.screen.line(text)
        return None
    if not place.is_inner:
        runner.screen.line("learning rates: " + ", ".join(f"{arm.name} {rates[arm.name]:g}" for arm in design.arms))
    design = _chosen(design, rates)
    if place.shard is None:
        design.write(place.out)
    return design


def _chosen(design: Design, rates: Mapping[str, float] | None) -> Design:
    """Return the design with these learning rates."""
    if not rates:
        return design
    chosen = {arm: {**options, "lr": rates[arm]} for arm, options in design.arm_options.items()}
    return msgspec.structs.replace(design, arm_options=chosen)


def _judged(design: Design, items: Sequence[Task], out: Path, failures: Mapping[str, str]) -> tuple[Design, Content]:
    """Judge what is there, write it, and return the design with this look and what the report shows."""
    gathered = Gathered(design, items)
    if not gathered.finished:
        raise UserError(f"no run of the comparison in {str(out)!r} is finished yet")
    differing = gathered.differing_images()
    if differing:
        raise UserError(
            f"the images or their split changed between the runs of a pair ({differing[0]}); move the folders of that "
            "seed away and run again"
        )
    judgement = judge(
        gathered.results,
        metric=design.metric,
        baseline=design.baseline,
        margin=design.margin,
        first_look=design.plan.first,
        max_pairs=design.max_seeds,
        awaited=design.seeds(),
        test_images=gathered.num_images(),
    )
    record = read_record(out / VERDICT, "move it away, and the same command writes it anew")
    changed = [] if record is None else changed_figures(record, judgement)
    decided = {arm.arm: (arm.verdict, arm.num_pairs) for arm in judgement.arms if arm.level is not None}
    design = msgspec.structs.replace(
        design,
        first_look=design.plan.first if decided else design.first_look,
        verdicts={**design.verdicts, **decided},
        changes=(*design.changes, *(text for text in changed if text not in design.changes)),
    )
    design.write(out)
    title = f"{Path(design.data).name}: {design.backbone}"
    content = gathered.content(judgement, title, _read_cost(out), failures, design.changes)
    write_bytes(out / RESULTS, gathered.results.to_csv().encode("utf-8"))
    write_json(out / VERDICT, content.to_dict())
    return design, content


def _read_cost(out: Path) -> Costs | None:
    """Return what the arms cost; None where it was not measured, or is damaged, as it can be measured again."""
    try:
        cost = msgspec.json.decode((out / COST).read_bytes(), type=Costs)
    except (OSError, ValueError, RecursionError):
        return None
    return cost if cost.rows else None
