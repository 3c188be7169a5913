"""From what is asked to the design of a comparison: checked, begun, and with the networks of all arms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..base.errors import UserError
from ..base.words import brief, few, short
from ..data.split import Prepared, fingerprint
from ..networks.spec import NetworkSpec
from ..statistics.metric import METRICS, margin_for
from ..statistics.verdict import default_baseline
from ..training.config import FREE, OPTIONS, TELLS_APART, Config
from .arms import WIDE, build, describe, is_code, num_params, parse_arms, run_options
from .contents import check_unchanged, hashes
from .design import DESIGN, Design, Request, check_metric

_DEFAULT_ARMS, _DEFAULT_SEEDS = "none,se,cbam", 8


def check_given(data: str, given: Mapping[str, Any], request: Request) -> None:
    """Raise UserError if an option of the runs is wrong in itself, or not the user's to give in a comparison."""
    for name in TELLS_APART:
        if name in given:
            instead = {"model": "--backbone", "seed": "--seeds"}.get(name, "--attention, with an arm for each kind")
            raise UserError(f"a comparison chooses {name} for each run; give {instead}")
    Config(data=data, **given)
    weights = given.get("pretrained")
    if weights and weights != "imagenet" and not Path(weights).is_file():
        raise UserError(f"--pretrained {brief(weights, 200)} is no file; give imagenet, or a file of weights")
    if request.lr_search and "lr" in given:
        raise UserError("--lr-search chooses the learning rate; leave out --lr")
    for rate in request.lr_search or ():
        try:
            Config(data=data, **{**given, "lr": rate})
        except UserError as error:
            raise UserError(f"--lr-search: {error}") from error


def with_full_name(request: Request) -> Request:
    """Return the request, its backbone with the name of its library."""
    from ..networks.libraries import full_name

    if request.backbone is None:
        return request
    return dataclasses.replace(request, backbone=full_name(request.backbone))


def asked_for(request: Request) -> dict[str, Any]:
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
        raise UserError(f"--baseline {short(baseline) or repr('')} is none of the arms, {few(names, 10)}")
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


def begun(data: str, config: Config, prepared: Prepared, backbone: str | None, asked: Mapping[str, Any]) -> Design:
    """Return the design of a new comparison: all options of its runs, still without the networks of its arms."""
    options = dataclasses.asdict(config)
    return Design(
        data=data,
        data_fingerprint=images_fingerprint(prepared),
        began=datetime.now(timezone.utc).isoformat(timespec="minutes"),
        backbone=backbone or config.network().backbone,
        **asked,
        options={name: options[name] for name in OPTIONS if name not in FREE and name not in TELLS_APART},
        arm_options={},
    )


def images_fingerprint(prepared: Prepared) -> str:
    """Return a hash of the images, their labels and parts; of their content too, where they are checked."""
    return ":".join(filter(None, (fingerprint(prepared), prepared.report.digest if prepared.report else "")))


def completed(data: str, design: Design, request: Request, prepared: Prepared, out: Path) -> Design:
    """Return the design with the networks of all arms, each built once so that what cannot be is said now.

    Raises:
        UserError: Other images than at the start, an arm that cannot be built, or code that only a file names.
    """
    if images_fingerprint(prepared) != design.data_fingerprint:
        where = f"the comparison in {str(out)!r}"
        if data != design.data:
            raise UserError(
                f"{where} is of {brief(design.data, 200)}, and the images of {data!r} are others; give another --out"
            )
        raise UserError(f"the images of {data!r} have changed since {where} began; restore them, or give another --out")
    named = {arm.name for arm in request.arms or ()}
    for arm in design.arms:
        if is_code(arm.spec) and arm.name not in named:
            raise UserError(
                f"the arm {arm.name} is code ({short(arm.spec)}) that no file may have run; name it in --attention "
                "again"
            )
    num_classes = len(prepared.classes)
    new = [arm.name for arm in design.arms if arm.name not in design.arm_options]
    options = run_options(design.arms, design.backbone, num_classes, design.options.get("at", ""))
    arm_options = {**design.arm_options, **{name: options[name] for name in new}}
    for name, choice in arm_options.items():
        # what a network is made of follows from the arm, whatever stands in the file; only widths and rates are kept
        if any(
            choice.get(part) != options[name].get(part) for part in ("model", "attention", "attention_kwargs", "at")
        ):
            raise UserError(
                f"{str(out / DESIGN)!r} gives the arm {name} another network than its own; restore the file"
            )
    if design.options["pretrained"] and any("width_factor" in choice for choice in arm_options.values()):
        raise UserError("a wide arm has no pretrained weights; leave out the arm or --pretrained")
    for name in new:
        build({**design.options, **arm_options[name]}, num_classes, seed=0)
    weights = Path(design.options["pretrained"])
    if new and design.options["pretrained"] and weights.is_file():
        from ..networks.factory import read_pretrained

        read_pretrained(NetworkSpec(name=design.backbone), str(weights))
    contents = hashes(design.arms, design.options)
    check_unchanged(design.contents, contents, f"the comparison in {str(out)!r}")
    return dataclasses.replace(design, arm_options=arm_options, contents={**design.contents, **contents})


def described(design: Design, num_classes: int) -> list[str]:
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
