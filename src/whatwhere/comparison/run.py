"""A comparison from DATA to its report, from top to bottom: what `whatwhere compare` calls."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..base.errors import UserError
from ..base.files import check_can_write, check_is_no_file, check_writable, locked, write_bytes, write_json
from ..base.screen import Screen
from ..base.words import brief, counted, few
from ..data.split import Prepared
from ..statistics.history import Record, changed_figures, read_record
from ..statistics.independence import check_still_independent
from ..training.config import FREE
from ..training.distributed import Team, team
from ..training.setup import check_apart, check_machine, prepare_images, resolve
from ..training.train import run_training
from .budget import Budget
from .content import COST, DESIGN, REPORT, RESULTS, VERDICT, Content, Costs
from .costs import Measure, measure_costs, read_costs
from .design import Design, read_design
from .forecast import Forecast
from .gather import Gathered
from .planning import Request, asked_for, begun, check_given, completed, continued, described, with_full_name
from .runs import Runner, Runs, RunScreen, Share, Task, failed


def run_comparison(
    data: str,
    given: Mapping[str, Any],
    request: Request,
    own: Share,
    *,
    command: str,
    screen: Screen,
    train: Callable[..., dict[str, Any] | None] = run_training,
    dry_run: bool = False,
    budget: float | None = None,
    measure: Measure = measure_costs,
    clock: Callable[[], float] = time.monotonic,
) -> Content | None:
    """Do the missing runs of a comparison, judge all of them, and return what the report shows.

    The result is None for a share, and after a dry run.

    The folder gets `compare.json` (the design) before the first run, `cost.json`, `runs/ARM/seed-N/`, and at the end
    `results.csv` and `verdict.json`.

    Args:
        data: As `find_source` takes it.
        given: Options of `train` for every run; the others are chosen once for all runs.
        request: What to compare.
        own: The folder, and the share that this process does.
        command: Command that continues the comparison, for messages.
        screen: Shows messages and progress.
        train: Trains one run, as `run_training` does.
        dry_run: Check everything, measure the arms and show how long the runs would take; write nothing.
        budget: Seconds that this call may take: a new comparison gets what fits of what is asked (`Plan`), and no seed
            begins that would end later.
        measure: Measures the cost of each arm.
        clock: Returns the time in seconds.

    Raises:
        UserError: Anything that the user can correct.
        Stopped: A run was asked to stop and is saved.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # before `team` joins torchrun's processes
        raise UserError("compare spreads its runs over the GPUs by itself; start it without torchrun")
    limit = None if budget is None else Budget(budget, clock(), clock)
    given, request, stored = _checked(data, given, request, own.out)
    before = {} if stored is None else stored.options
    check_machine({**before, **given})
    # a wrong request fails before the images are checked, which takes long
    if stored is None:
        asked = asked_for(request)
    else:
        design = continued(stored, _within_schedule(request, stored, limit, own, screen), own.out, given)
    with team(given.get("device", "")) as processes:
        warned: set[str] = set()
        seen = RunScreen(screen, "", warned)
        prepared = prepare_images(data, {**before, **given, "seed": 0}, seen, for_further_seeds=True)
        check_apart(own.out, prepared)
        if stored is None:
            config = resolve(data, {**given, "seed": 0}, prepared, processes)
            design = begun(data, config, prepared, request.backbone, asked)
        design = completed(data, design, request, prepared, own.out)
        free = {"device": str(processes.device)} | {name: value for name, value in given.items() if name in FREE}
        runner = Runner(data, free, command, screen, own, warned, train, clock, budget=limit)
        with _held(own, dry_run):
            runs = Runs(own.out)
            forecast = Forecast(runner, runs, prepared, processes, measure)
            design = forecast.with_widths(design)
            if limit is not None:
                design = forecast.within_budget(design, request, given, is_new=stored is None)
            if design != stored:
                _write(own.out / DESIGN, design, dry_run)
            _describe(design, stored, request, prepared, processes, own, screen)
            costs = forecast.costs(design)
            if costs != read_costs(own.out):
                _write(own.out / COST, costs, dry_run)
            design = runs.with_rates(design)
            if not own.is_inner:
                forecast.say_how_long(design)
            if dry_run:
                screen.line("dry run: nothing written")
                return None
            searched = _search(design, runs, runner)
            return None if searched is None else _advance(searched, runs, runner)


def _describe(
    design: Design,
    stored: Design | None,
    request: Request,
    prepared: Prepared,
    team: Team,
    own: Share,
    screen: Screen,
) -> None:
    """Show what is compared."""
    if stored is None and request.backbone is None:
        size, kind = design.options["image_size"], team.device.type.upper()
        screen.line(f"backbone: {design.backbone}, chosen for {size} px on a {kind}; --backbone names another")
    if not own.is_inner:
        _say_what_stays(design, request, screen)
        for line in described(design, len(prepared.classes)):
            screen.line(line)
        screen.line(f"SHA-256 of the design: {design.digest()}")


def _within_schedule(request: Request, stored: Design, limit: Budget | None, own: Share, screen: Screen) -> Request:
    """Return the request without more --max-seeds than a plan within a budget left of them: the plan stays."""
    most, asked = stored.max_seeds, request.max_seeds
    if limit is None or most is None or asked is None or asked <= most:
        return request
    if not own.is_inner:
        screen.line(f"--max-seeds {asked}: the plan has {most}, and it stays")
    return dataclasses.replace(request, max_seeds=None)


def _checked(
    data: str, given: Mapping[str, Any], request: Request, out: Path
) -> tuple[dict[str, Any], Request, Design | None]:
    """Return the options and the request with full names, and the design in `out`, before the images are read."""
    options, network = check_given(data, given, request)
    check_is_no_file(out)
    stored = read_design(out)
    if stored is None and request.leave_out:
        raise UserError(f"there is no comparison in {str(out)!r} yet; seeds can be left out once a run has failed")
    for name in (COST, RESULTS, VERDICT, REPORT):  # they are written after the runs
        check_can_write(out / name, makes_folders=True)
        if stored is None and (out / name).exists():
            raise UserError(
                f"{str(out / name)!r} is of no comparison, as there is no {DESIGN} beside it, and would be written "
                "over; move it away, or give another --out"
            )
    _read_record(out)
    if stored is None and network:
        request = dataclasses.replace(request, backbone=request.backbone or network)
    return options, with_full_name(request), stored


def _read_record(out: Path) -> Record | None:
    return read_record(out / VERDICT, "move it away, and the same command writes it anew")


@contextlib.contextmanager
def _held(own: Share, dry_run: bool) -> Iterator[None]:
    """Create the folder and lock it inside the block; shares do not lock it, and a dry run leaves it alone."""
    if not dry_run:
        check_writable(own.out)
    with contextlib.nullcontext() if own.shard or dry_run else locked(own.out):
        yield


def _write(path: Path, content: Design | Costs | None, dry_run: bool) -> None:
    if not dry_run:
        write_json(path, msgspec.to_builtins(content))


def comparison_folder(data: str, backbone: str | None) -> Path:
    """Return the default folder of a comparison."""
    name = (backbone or "default").replace(":", "-")
    return Path("runs") / (Path(data).stem or "data") / f"compare-{name}"


def collect(data: str, out: Path, request: Request, screen: Screen) -> Content:
    """Judge the finished runs in `out` without training, and return what the report shows.

    DATA must be that of the comparison, or a folder or file of the same name elsewhere; no image is read.

    Raises:
        UserError: There is no comparison, none of its runs has finished, or it has not what is requested.
    """
    check_is_no_file(out)
    design = read_design(out)
    if design is None:
        raise UserError(f"there is no comparison in {str(out)!r}; give its folder with --out")
    same_name = Path(data).name == Path(design.data).name
    if Path(data) != Path(design.data) and not (same_name and Path(data).exists()):
        raise UserError(
            f"the comparison in {str(out)!r} is of {brief(design.data, 200)}, not of {brief(data, 200)}; give that, or "
            "another --out"
        )
    with locked(out):
        design = continued(design, with_full_name(request), out)
        _say_what_stays(design, request, screen)
        added = [arm.name for arm in design.arms if arm.name not in design.arm_options]
        if added:
            raise UserError(f"the comparison in {str(out)!r} has no arm {few(added)}; train it without --collect")
        runs = Runs(out)
        design, content = _judged(runs.with_rates(design), runs, {})
    missing = sum(not task.is_done() for task in runs.tasks(design))
    if missing:
        screen.line(f"{counted(missing, 'run')} to do: run the same command without --collect")
    return content


def _say_what_stays(design: Design, request: Request, screen: Screen) -> None:
    if request.num_seeds is not None and request.num_seeds < design.num_seeds:
        screen.line(f"--seeds {request.num_seeds}: there are {design.num_seeds} already, and all of them stay")


def _search(design: Design, runs: Runs, runner: Runner) -> Design | None:
    """Return the design with each arm's learning rate; None in a share if the search waits for other shares."""
    if not design.lr_search:
        return design
    runner.do([task for tasks in runs.searches(design).values() for task in tasks])
    design = runs.with_rates(design)
    if runs.searches(design):
        if runner.share.shard is None or runner.failures:
            raise UserError(
                f"the search of learning rates is incomplete: {few(list(runner.failures.values()), between='; ')}"
            )
        if not runner.share.is_inner:
            runner.screen.line("this share of the search is done; run the same command again when the other shares are")
        return None
    if not runner.share.is_inner:
        rates = (f"{arm.name} {design.arm_options[arm.name]['lr']:g}" for arm in design.arms)
        runner.screen.line(f"learning rates: {', '.join(rates)}")
    if runner.share.shard is None:  # shares do not write the design
        design.write(runner.share.out)
    return design


def _advance(design: Design, runs: Runs, runner: Runner) -> Content | None:
    """Do the runs of each look, until every arm has a verdict or the schedule ends."""
    while True:
        tasks = runs.tasks(design)
        runner.do(tasks, _warning_if_alike(design, tasks, runner.screen))
        if runner.share.shard is not None:
            if runner.failures:
                raise failed(runner.failures)
            if not runner.share.is_inner:
                runner.screen.line(
                    "this share is done; when all are: the same command with --collect instead of --shard"
                )
            return None
        after, content = _judged(design, runs, runner.failures)
        if runner.failures or after.seeds() == design.seeds():
            return content
        going_on = [arm for arm in after.others if len(after.seeds()[arm]) > len(design.seeds()[arm])]
        runner.screen.line(f"cannot tell yet: {', '.join(going_on)}; going on to the next look, as planned")
        for arm, why in content.first:
            runner.screen.warn(f"{arm}: {why}; more epochs would help more than more pairs")
        design = after


def _warning_if_alike(design: Design, tasks: Sequence[Task], screen: Screen) -> Callable[[Task], None]:
    """Return a function that takes each run as it ends, and warns once if finished runs are copies of one another."""
    gathered, warned = Gathered(design, tasks), False

    def check(task: Task) -> None:
        nonlocal warned
        if warned:
            return
        gathered.add(task)
        advice = "check the learning rate, and what the networks predict"
        try:
            check_still_independent(gathered.results, design.metric, advice, gathered.num_images)
        except UserError as error:
            screen.warn(f"{error}; such runs give no verdict")
            warned = True

    return check


def _judged(design: Design, runs: Runs, failures: Mapping[str, str]) -> tuple[Design, Content]:
    """Judge the finished runs and write the files; return the design after this look, and what the report shows."""
    out = runs.out
    gathered = Gathered(design, runs.tasks(design))
    if not gathered.finished:
        raise UserError(f"no run of the comparison in {str(out)!r} is finished yet")
    differing = gathered.differing_images()
    if differing:
        raise UserError(
            f"the images or their split changed between the runs of a pair ({differing[0]}); move the folders of that "
            "seed away and run again"
        )
    judgement, terms = gathered.judge()
    record = _read_record(out)
    changed = [] if record is None else changed_figures(record, judgement)
    decided = {arm.arm: (arm.verdict, arm.num_pairs) for arm in judgement.arms if arm.level is not None}
    design = msgspec.structs.replace(
        design,
        first_look=design.schedule.first if decided else design.first_look,
        verdicts={**design.verdicts, **decided},
        changes=(*design.changes, *(text for text in changed if text not in design.changes)),
    )
    design.write(out)
    title = f"{Path(design.data).name}: {design.backbone}"
    content = gathered.content(judgement, title, read_costs(out), failures, design.changes)
    content = msgspec.structs.replace(content, terms=terms)
    write_bytes(out / RESULTS, gathered.results.to_csv(with_notes=True).encode("utf-8"))
    write_json(out / VERDICT, content.to_dict())
    return design, content
