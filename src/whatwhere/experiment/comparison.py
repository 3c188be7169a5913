"""A comparison from DATA to its report: what `whatwhere compare` calls."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..data.names import counted
from ..data.prepare import Prepared, fingerprint
from ..errors import UserError
from ..files import check_is_no_file, check_writable, locked, write_bytes, write_json
from ..training.build import resolve
from ..training.config import FREE, OPTIONS, TELLS_APART, Config
from ..training.distributed import team
from ..training.run import Screen
from ..training.start import check_apart, prepare_images
from ..weights.convert import read_weights
from .arms import WIDE, build, describe, is_code, num_params, parse_arms, run_options
from .content import Gathered
from .contents import check_unchanged, hashes
from .costs import COSTS, measure_costs
from .design import DESIGN, Design, Request, check_metric, check_options, continued, read_design
from .metric import METRICS, margin_for
from .record import changed_figures, read_record
from .runs import Runner, RunScreen, Task, chosen_rates, failed, search_tasks, share, tasks
from .shape import number, text
from .verdict import default_baseline, judge

COST, RESULTS, VERDICT = "cost.json", "results.csv", "verdict.json"
_DEFAULT_ARMS, _DEFAULT_SEEDS = "none,se,cbam", 8


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
) -> dict[str, Any] | None:
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
    _check_given(data, given, request)
    check_is_no_file(place.out)
    stored = read_design(place.out)
    if stored is None and request.leave_out:
        raise UserError(
            f"there is no comparison in {str(place.out)!r} yet; seeds can be left out once a run has failed"
        )
    # what is wrong in itself is said before a long check of the images
    if stored is None:
        asked = _asked(request)
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
            design = _begun(data, config, prepared, request.backbone, asked)
        design = _completed(data, design, request, prepared, place.out)
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
            for line in [] if place.is_inner else _described(design, len(prepared.classes)):
                screen.line(line)
            known = [row["arm"] for row in (_read_cost(place.out) or {"rows": []})["rows"]]
            if (place.shard is None or place.shard[0] == 1) and known != [arm.name for arm in design.arms]:
                screen.line("measuring what each arm costs")
                write_json(place.out / COST, measure_costs(design, len(prepared.classes), processes.device))
            return _advance(design, place, runner)


def comparison_folder(data: str, backbone: str | None) -> Path:
    """Return the folder of a comparison that is given none."""
    return Path("runs") / (Path(data).stem or "data") / f"compare-{backbone or 'default'}"


def collect(data: str, out: Path, request: Request, screen: Screen) -> dict[str, Any]:
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
            f"the comparison in {str(out)!r} is of {design.data!r}, not of {data!r}; give that, or another --out"
        )
    with locked(out):
        design = continued(design, request, out)
        _say_what_stays(design, request, screen)
        added = [arm.name for arm in design.arms if arm.name not in design.arm_options]
        if added:
            raise UserError(f"the comparison in {str(out)!r} has no arm {', '.join(added)}; train it without --collect")
        # shares leave the design as it was
        rates = chosen_rates(design, out) if design.lr_search else None
        design, content = _judged(_chosen(design, rates), out, {})
    missing = sum(task.result() is None for task in tasks(design, out))
    if missing:
        screen.line(f"{counted(missing, 'run')} to do: run the same command without --collect")
    return content


def _say_what_stays(design: Design, request: Request, screen: Screen) -> None:
    if request.num_seeds is not None and request.num_seeds < design.num_seeds:
        screen.line(f"--seeds {request.num_seeds}: there are {design.num_seeds} already, and all of them stay")


def _advance(design: Design, place: Place, runner: Runner) -> dict[str, Any] | None:
    """Do the runs of each look until the verdict is there or the plan ends."""
    while True:
        searched = _with_rates(design, place, runner)
        if searched is None:
            return None
        design = searched
        _do(tasks(design, place.out), place, runner)
        if place.shard is not None:
            if runner.failures:
                raise failed(runner.failures)
            if not place.is_inner:
                text = "this share is done; when all are: the same command with --collect instead of --shard"
                runner.screen.line(text)
            return None
        after, content = _judged(design, place.out, runner.failures)
        if runner.failures or after.seeds() == design.seeds():
            return content
        going_on = [arm for arm in after.others if len(after.seeds()[arm]) > len(design.seeds()[arm])]
        runner.screen.line(f"cannot tell yet: {', '.join(going_on)}; going on to the next look, as planned")
        design = after


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
            raise UserError(f"the search of learning rates is incomplete: {'; '.join(runner.failures.values())}")
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
    return dataclasses.replace(design, arm_options=chosen)


def _judged(design: Design, out: Path, failures: Mapping[str, str]) -> tuple[Design, dict[str, Any]]:
    """Judge what is there, write it, and return the design with this look and what the report shows."""
    gathered = Gathered(design, out)
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
    )
    record = read_record(out / VERDICT, "move it away, and the same command writes it anew")
    changed = [] if record is None else changed_figures(record, judgement)
    decided = {arm.arm: (arm.verdict, arm.num_pairs) for arm in judgement.arms if arm.level is not None}
    design = dataclasses.replace(
        design,
        first_look=design.plan.first if decided else design.first_look,
        verdicts={**design.verdicts, **decided},
        changes=(*design.changes, *(text for text in changed if text not in design.changes)),
    )
    design.write(out)
    title = f"{Path(design.data).name}: {design.backbone}"
    content = gathered.content(judgement, title, _read_cost(out), failures, design.changes)
    write_bytes(out / RESULTS, gathered.results.to_csv().encode("utf-8"))
    write_json(out / VERDICT, content)
    return design, content


def _read_cost(out: Path) -> dict[str, Any] | None:
    """Return what the arms cost; None where it was not measured, or is damaged, as it can be measured again."""
    try:
        content: dict[str, Any] = json.loads((out / COST).read_bytes())
        for row in content["rows"]:
            text(row["arm"], "arm")
            for name in COSTS:
                number(row[name], name, least=0)
        for name in ("num_images", "image_size"):
            number(content[name], name, least=1)
        text(content["device"], "device")
        return content if content["rows"] else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _check_given(data: str, given: Mapping[str, Any], request: Request) -> None:
    for name in TELLS_APART:
        if name in given:
            instead = {"model": "--backbone", "seed": "--seeds"}.get(name, "--attention, with an arm for each kind")
            raise UserError(f"a comparison chooses {name} for each run; give {instead}")
    Config(data=data, **given)
    weights = given.get("pretrained")
    if weights and weights != "imagenet" and not Path(weights).is_file():
        raise UserError(f"--pretrained {weights!r} is no file; give imagenet, or a file of weights")
    if request.lr_search and "lr" in given:
        raise UserError("--lr-search chooses the learning rate; leave out --lr")
    for rate in request.lr_search or ():
        try:
            Config(data=data, **{**given, "lr": rate})
        except UserError as error:
            raise UserError(f"--lr-search: {error}") from error


def _asked(request: Request) -> dict[str, Any]:
    """Return what a new comparison is asked for, with defaults.

    Raises:
        UserError: Too few arms, or an unknown arm, baseline, metric or backbone, or a margin that is needed or none.
    """
    arms = request.arms or parse_arms(_DEFAULT_ARMS)
    names = [arm.name for arm in arms]
    baseline = default_baseline(names) if request.baseline is None else request.baseline
    if len(arms) < 2:
        raise UserError("a comparison needs two arms or more; give for example --attention none,cbam")
    if baseline not in names:
        raise UserError(f"--baseline {baseline or repr('')} is none of the arms, {', '.join(names)}")
    metric = "accuracy" if request.metric is None else request.metric
    check_metric(metric)
    margin = margin_for(METRICS[metric], request.margin)
    if request.backbone is not None:
        run_options([arm for arm in arms if arm.spec.partition(":")[0] != WIDE], request.backbone, num_classes=1)
    return {
        "arms": arms,
        "baseline": baseline,
        "num_seeds": _DEFAULT_SEEDS if request.num_seeds is None else request.num_seeds,
        "max_seeds": request.max_seeds,
        "metric": metric,
        "margin": margin,
        "lr_search": request.lr_search or (),
    }


def _begun(data: str, config: Config, prepared: Prepared, backbone: str | None, asked: Mapping[str, Any]) -> Design:
    from ..models.registry import MODELS

    options = dataclasses.asdict(config)
    return Design(
        data=data,
        data_fingerprint=_fingerprint(prepared),
        began=datetime.now(timezone.utc).isoformat(timespec="minutes"),
        backbone=backbone or MODELS[config.model].backbone,
        **asked,
        options={name: options[name] for name in OPTIONS if name not in FREE and name not in TELLS_APART},
        arm_options={},
    )


def _fingerprint(prepared: Prepared) -> str:
    """Return a hash of the images, their labels and parts; of their content too, where they are checked."""
    return ":".join(filter(None, (fingerprint(prepared), prepared.report.digest if prepared.report else "")))


def _completed(data: str, design: Design, request: Request, prepared: Prepared, out: Path) -> Design:
    """Return the design with the networks of all arms, each built once so that what cannot be is said now.

    Raises:
        UserError: Other images than at the start, an arm that cannot be built, or code that only a file names.
    """
    if _fingerprint(prepared) != design.data_fingerprint:
        where = f"the comparison in {str(out)!r}"
        if data != design.data:
            raise UserError(f"{where} is of {design.data!r}, and the images of {data!r} are others; give another --out")
        raise UserError(f"the images of {data!r} have changed since {where} began; restore them, or give another --out")
    named = {arm.name for arm in request.arms or ()}
    for arm in design.arms:
        if is_code(arm.spec) and arm.name not in named:
            raise UserError(
                f"the arm {arm.name} is code ({arm.spec}) that no file may have run; name it in --attention again"
            )
    num_classes = len(prepared.classes)
    new = [arm.name for arm in design.arms if arm.name not in design.arm_options]
    options = run_options(design.arms, design.backbone, num_classes)
    arm_options = {**design.arm_options, **{name: options[name] for name in new}}
    for name, choice in arm_options.items():
        # what a network is made of follows from the arm, whatever stands in the file; only widths and rates are kept
        if any(choice.get(part) != options[name].get(part) for part in ("model", "attention")):
            raise UserError(
                f"{str(out / DESIGN)!r} gives the arm {name} another network than its own; restore the file"
            )
    if design.options["pretrained"] and any("width_factor" in choice for choice in arm_options.values()):
        raise UserError("a wide arm has no pretrained weights; leave out the arm or --pretrained")
    for name in new:
        build({**design.options, **arm_options[name]}, num_classes, seed=0)
    weights = Path(design.options["pretrained"])
    if new and design.options["pretrained"] and weights.is_file():
        read_weights(weights)
    contents = hashes(design.arms, design.options)
    check_unchanged(design.contents, contents, f"the comparison in {str(out)!r}")
    return dataclasses.replace(design, arm_options=arm_options, contents={**design.contents, **contents})


def _described(design: Design, num_classes: int) -> list[str]:
    """Return what will be compared, as lines."""
    arms = [
        f"{arm.name}: {describe(choice)}, {num_params({**design.options, **choice}, num_classes):,} parameters"
        for arm in design.arms
        for choice in [design.arm_options[arm.name]]
    ]
    metric, plan = METRICS[design.metric], design.plan
    looks = f"then at most {plan.last} where that cannot tell" if plan.last else "more may be added later"
    names = ("epochs", "batch_size", "lr", "image_size")
    shown = {**design.options, **({"lr": "searched"} if design.lr_search else {})}
    options = ", ".join(f"{name} {shown[name]}" for name in names)
    return [
        *arms,
        f"{design.num_seeds} seeds, {looks}; judged by {metric.label} against {design.baseline}, margin "
        f"{design.margin:g} {metric.unit}".rstrip(),
        f"every run: {options}; all options stand in compare.json",
    ]
