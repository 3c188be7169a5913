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
import torch

from ..base.documents import read_json
from ..base.errors import UserError
from ..base.files import check_can_write, check_is_no_file, check_writable, locked, write_bytes, write_json
from ..base.screen import Screen, about
from ..base.words import brief, counted, few
from ..data.split import Prepared
from ..statistics.history import Record, changed_figures, read_record
from ..statistics.independence import check_still_independent
from ..training.config import FREE, num_steps
from ..training.distributed import Team, team
from ..training.estimate import HOUR, measure_reading
from ..training.setup import check_apart, check_machine, prepare_images, resolve
from ..training.train import run_training
from .arms import plain_options
from .budget import Budget, Plan, differences_found, seconds_of, with_options
from .content import COST, DESIGN, REPORT, RESULTS, VERDICT, Content, Costs
from .costs import Estimate, Measure, measure_costs, width_for_time, within_an_hour
from .design import Design, read_design
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
            design = _with_measured_widths(design, len(prepared.classes), processes.device, measure, own, screen)
            runs, costs, estimate = Runs(own.out), None, None
            if limit is not None:
                costs = _measured(design, prepared, processes, measure, own, screen)
                design, estimate = _within_budget(
                    design, stored, given, request, runs, costs, runner, limit, prepared, processes
                )
            if design != stored:
                _write(own.out / DESIGN, design, dry_run)
            _describe(design, stored, request, prepared, processes, own, screen)
            if limit is None:
                costs = _measured(design, prepared, processes, measure, own, screen)
            if costs != read_costs(own.out):
                _write(own.out / COST, costs, dry_run)
            design = runs.with_rates(design)
            if costs is not None and not own.is_inner:
                _say_how_long(design, runs, prepared, costs, runner, measure, processes, estimate)
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


def _measured(
    design: Design, prepared: Prepared, team: Team, measure: Measure, own: Share, screen: Screen
) -> Costs | None:
    """Return the costs of all arms, measured where they are not known or doubtful; a share leaves that to the first."""
    known = read_costs(own.out)
    is_doubtful = known is not None and bool(known.doubt) and not own.is_inner  # other processes train
    lacks = known is None or [row.arm for row in known.rows] != [arm.name for arm in design.arms] or is_doubtful
    if (own.shard is not None and own.shard[0] != 1) or not lacks:
        return known
    screen.line(f"measuring what each arm costs{' again' if is_doubtful else ''}")
    costs = measure(design, len(prepared.classes), team.device, screen.progress)
    if costs.doubt:
        screen.warn(f"{costs.doubt}; the time that the runs take may be quite another than said below")
    return costs


def _estimate(design: Design, prepared: Prepared, costs: Costs, runner: Runner, team: Team) -> Estimate:
    """Return the estimate of how long runs take, for which reading a few images is timed."""
    options = {**design.run_options(design.baseline, 0), **runner.free}
    reading = measure_reading(resolve(runner.data, options, prepared, team), prepared, team)
    return Estimate(costs, reading, {part: len(prepared.parts.get(part, ())) for part in ("train", "val", "test")})


def _within_budget(
    design: Design,
    stored: Design | None,
    given: Mapping[str, Any],
    request: Request,
    runs: Runs,
    costs: Costs | None,
    runner: Runner,
    limit: Budget,
    prepared: Prepared,
    team: Team,
) -> tuple[Design, Estimate | None]:
    """Return the design with what fits the budget, and the estimate that says so; a stored design stays.

    Raises:
        UserError: Not even the least fits; or a share has no plan yet.
    """
    share = runner.share
    if stored is not None:
        missing = [task for task in _tasks(runs.with_rates(design), runs, share) if not task.is_done()]
        if share.is_inner or costs is None or not missing or not _covers(costs, missing):
            return design, None
        estimate = _estimate(design, prepared, costs, runner, team)
        _say_what_fits(missing, estimate, runner, limit)
        return design, estimate
    if costs is None:
        assert share.shard is not None
        raise UserError(f"the plan within --budget is not made yet; start the share 1/{share.shard[1]} first")
    estimate = _estimate(design, prepared, costs, runner, team)
    plan = Plan(
        design,
        lambda candidate: seconds_of(candidate, estimate.of_run, share.num_parts),
        keep_seeds=request.num_seeds is not None,
        keep_epochs="epochs" in given,
    )
    found = plan.within(limit.room())
    if found is None:
        raise plan.refusal(limit, runner.command)
    runner.screen.line(plan.said(found, limit))
    if (epochs := found.options["epochs"]) != design.options["epochs"]:
        # the recipe follows from the number of steps
        config = resolve(runner.data, {**given, "seed": 0, "epochs": epochs}, prepared, team)
        found = msgspec.structs.replace(found, options={name: getattr(config, name) for name in found.options})
    return found, estimate


def _tasks(design: Design, runs: Runs, share: Share) -> list[Task]:
    """Return the runs of a share, those that search for learning rates first."""
    searches = [task for tasks in runs.searches(design).values() for task in tasks]
    return [*share.of(searches), *share.of(runs.tasks(design))]


def _covers(costs: Costs, tasks: Sequence[Task]) -> bool:
    """Return whether the costs of all tasks are measured."""
    return {task.arm for task in tasks} <= {row.arm for row in costs.rows}


def _say_what_fits(missing: Sequence[Task], estimate: Estimate, runner: Runner, limit: Budget) -> None:
    """Show how many of the missing seeds fit what is left of the budget, where not all do.

    Raises:
        UserError: Not one seed fits.
    """
    num_devices = runner.share.num_devices
    searching, by_seed = 0.0, dict[str, float]()
    for task in missing:
        seconds = estimate.of_run(task.arm, task.options["epochs"], task.searching)
        if task.searching:
            searching += seconds / num_devices
        else:
            by_seed[task.folder.name] = by_seed.get(task.folder.name, 0.0) + seconds
    ends, fitting, first = [searching] * num_devices, 0, searching + next(iter(by_seed.values()))
    for number, seconds in enumerate(by_seed.values()):
        ends[number % num_devices] += seconds
        fitting += ends[number % num_devices] <= limit.left()
    if not fitting:
        enough = limit.enough_for(first)
        raise UserError(
            f"{limit} is too short for one more seed of all arms, {about(first)}; give --budget {enough}",
            with_options(runner.command, [("--budget", enough)]),
        )
    if fitting < len(by_seed):
        runner.screen.line(
            f"{limit} is enough for {fitting} of {counted(len(by_seed), 'seed')}; the same command goes on with the "
            "others"
        )


def _with_measured_widths(
    design: Design, num_classes: int, device: torch.device, measure: Measure, own: Share, screen: Screen
) -> Design:
    """Return the design with the width of each timed arm; what is measured once stays."""
    for arm in design.arms:
        if arm.name in design.arm_options:
            continue
        if own.shard is not None and own.shard[0] != 1:
            raise UserError(f"the width of {arm.name} is not measured yet; start the share 1/{own.shard[1]} first")
        screen.line(f"measuring the width at which the arm {arm.name} takes as long as its model")
        factor, costs = width_for_time(design, arm, num_classes, device, measure, screen.progress)
        (other, wide) = costs.rows
        screen.line(
            f"{arm.name}: {factor:g} times as wide, {wide.training_step_ms or 0:.1f} ms for a step of "
            f"{counted(costs.num_images, 'image')}; {other.arm}: {other.training_step_ms or 0:.1f} ms"
        )
        if costs.doubt:
            screen.warn(f"{costs.doubt}; the width of {arm.name} may be wrong: begin again when nothing else runs")
        options = {**plain_options(design.backbone, design.options["at"]), "width_factor": factor}
        design = msgspec.structs.replace(design, arm_options={**design.arm_options, arm.name: options})
    return design


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


def _say_how_long(
    design: Design,
    runs: Runs,
    prepared: Prepared,
    costs: Costs,
    runner: Runner,
    measure: Measure,
    team: Team,
    estimate: Estimate | None,
) -> None:
    """Show about how long the missing runs take; if that is over an hour, show what would fit one."""
    share, screen = runner.share, runner.screen
    tasks = _tasks(design, runs, share)
    missing = [task for task in tasks if not task.is_done()]
    if not missing:
        screen.line(f"all {len(tasks)} runs are finished already")
    if not missing or not _covers(costs, missing):
        return
    estimate = estimate or _estimate(design, prepared, costs, runner, team)

    def seconds_of_run(arm: str, searching: bool = False) -> float:
        return estimate.of_run(arm, design.run_options(arm, 0)["epochs"], searching)

    runner.expected = lambda task: seconds_of_run(task.arm, task.searching)
    parts = [Share(share.out, (number, share.num_devices)).of(missing) for number in range(1, share.num_devices + 1)]
    seconds = max(sum(map(runner.expected, part)) for part in parts)
    later = {} if share.shard else design.later_runs()
    most = seconds + sum(number * seconds_of_run(arm) for arm, number in later.items()) / share.num_devices
    options = design.run_options(design.baseline, 0)
    steps = num_steps(options["epochs"], options["batch_size"], estimate.num_images["train"])
    up_to = f" to {len(missing) + sum(later.values())}" if later else ""
    at_most = f", {about(most)} if no arm has a verdict before" if later else ""
    screen.line(
        f"{len(missing)}{up_to} {'run' if len(missing) == 1 and not later else 'runs'} to do, each of "
        f"{counted(steps, 'step')}, {share.at_once}: {about(seconds)}{at_most}"
    )
    if runner.budget is not None:
        if found := differences_found(design, Gathered(design, runs.tasks(design)).spread()):
            screen.line(found)
    elif seconds > HOUR and len(missing) == len(tasks):
        choice, fitting = within_an_hour(
            design,
            len(prepared.classes),
            estimate.num_images,
            team.device,
            measure,
            reading=estimate.reading,
            progress=screen.progress,
        )
        enough = "an hour is enough for" if fitting <= HOUR else "more than an hour, but the least there is"
        screen.line(f"{enough}: {choice} ({about(fitting)}), with another --out")


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


def read_costs(out: Path) -> Costs | None:
    """Return what the arms cost; None where the file is missing or damaged, as it can be measured again."""
    try:
        costs = read_json(out / COST, Costs)
    except ValueError:  # a UserError too
        return None
    return costs if costs.rows else None
