"""The plan of a comparison before its first run: its design, made of what was asked for, or continued."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from ..attention import attention_by_path
from ..base.errors import UserError, check_integer
from ..base.words import brief, counted, few, option, short
from ..data.split import Prepared, fingerprint
from ..networks.factory import read_pretrained
from ..networks.spec import NetworkSpec
from ..statistics.looks import LEAST_PAIRS, MOST_SEEDS
from ..statistics.metric import METRICS, margin_for
from ..statistics.verdict import default_baseline
from ..training.config import FREE, NUMBER_OR_AUTO, OPTIONS, TELLS_APART, Config
from ..training.setup import with_file_of_weights
from .arms import NONE, Arm, build, describe, num_params, parse_arms, run_options
from .content import DESIGN
from .design import CHOSEN, WEIGHTS, Design, check_judging, code_of

_TYPED = {"num_seeds": "--seeds"}  # options that are called otherwise here


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asks for; None keeps what the design has, or takes the default.

    Attributes:
        backbone: Name of a network without attention.
        arms: The networks to compare.
        num_seeds: Number of runs of each arm, with seeds 0, 1, ...
        max_seeds: Most seeds that an arm may get while its verdict is "cannot tell yet".
        margin: Smallest difference that matters, in the unit shown.
        metric: Name of the figure to judge by.
        baseline: Name of the arm that the others are compared with.
        lr_search: Learning rates to try; each arm keeps its best.
        leave_out: Seeds that count for no arm; further seeds replace them.
    """

    backbone: str | None = None
    arms: tuple[Arm, ...] | None = None
    num_seeds: int | None = None
    max_seeds: int | None = None
    margin: float | None = None
    metric: str | None = None
    baseline: str | None = None
    lr_search: tuple[float, ...] | None = None
    leave_out: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_seeds is not None:
            check_integer("--seeds", self.num_seeds, least=2, most=MOST_SEEDS)
        if self.max_seeds is not None:
            check_integer("--max-seeds", self.max_seeds, least=LEAST_PAIRS, most=MOST_SEEDS)


def continued(design: Design, request: Request, folder: Path, given: Mapping[str, Any] | None = None) -> Design:
    """Return the design with more seeds or arms, or another margin, metric or baseline; it notes each change.

    Raises:
        UserError: An option in `given` differs from that of the comparison, or the request has another backbone, other
            learning rates, the name of another arm, another schedule after a look, an unknown metric or baseline, or a
            metric that needs a margin.
    """
    where = f"the comparison in {str(folder)!r}"
    changed = [
        f"{option(name)} was {brief(design.options.get(name))}, is {brief(value)}"
        for name, value in (given or {}).items()
        # which number "auto" is, is known when the images are checked; see `completed`
        if name not in FREE and design.options.get(name) != value and not (name in NUMBER_OR_AUTO and value == "auto")
    ]
    if changed:
        raise UserError(f"{where} trains with other options: {few(changed, 5, '; ')}; give the same, or another --out")
    if request.backbone not in (None, design.backbone):
        raise UserError(f"{where} compares {short(design.backbone)}, not {short(request.backbone)}; give another --out")
    if request.lr_search not in (None, design.lr_search):
        raise UserError(
            f"{where} searches the learning rates {brief(list(design.lr_search))}; give another --out for others"
        )
    arms = list(design.arms)
    for arm in request.arms or ():
        same = next((known for known in arms if known.name.lower() == arm.name.lower()), None)
        if same is None:
            arms.append(arm)
        elif same != arm:
            raise UserError(
                f"{where} has the arm {same.name} as {short(same.spec)}, not {short(arm.spec)}; name it otherwise"
            )
    if request.max_seeds not in (None, design.max_seeds) and design.first_look is not None:
        raise UserError(
            f"{where} was judged already, so its schedule stays (--max-seeds {design.max_seeds or 'not set'}): "
            "another would make false verdicts more likely; drop --max-seeds, or start again with another --out"
        )
    metric = design.metric if request.metric is None else request.metric
    baseline = design.baseline if request.baseline is None else request.baseline
    check_judging(metric, baseline, arms)
    kept = design.margin if METRICS[metric].unit == METRICS[design.metric].unit else None
    most = design.max_seeds if request.max_seeds is None else request.max_seeds
    if most is not None and (request.num_seeds or 0) > most:
        raise UserError(f"--seeds {request.num_seeds} is more than --max-seeds {most}; give at most {most}")
    wanted: dict[str, Any] = {
        "num_seeds": max(design.num_seeds, request.num_seeds or 0),
        "max_seeds": most,
        "margin": margin_for(METRICS[metric], kept if request.margin is None else request.margin),
        "metric": metric,
        "baseline": baseline,
    }
    texts = [
        f"{_TYPED.get(name, option(name))} was {'not set' if before is None else before}, is {value}"
        for name, value in wanted.items()
        if (before := getattr(design, name)) != value
    ]
    first = {name: value for name in wanted if (value := getattr(design, name)) != wanted[name]}
    if added := arms[len(design.arms) :]:
        texts += [f"arm {arm.name} added" for arm in added]
        first["num_arms"] = len(design.arms)
    leaving = tuple(seed for seed in dict.fromkeys(request.leave_out) if seed not in design.left_out)
    texts += [f"seed {seed} is left out of all arms" for seed in leaving]
    seen = max((look for _, look in design.verdicts.values()), default=0)
    when = datetime.now(timezone.utc).isoformat(timespec="minutes")
    after = f"after a look at {counted(seen, 'pair')}" if seen else "before the first look"
    changes = tuple(f"{when}, {after}: {text}" for text in texts)
    return msgspec.structs.replace(
        design,
        arms=tuple(arms),
        changes=(*design.changes, *changes),
        left_out=(*design.left_out, *leaving),
        at_first=first | (design.at_first or {}) or UNSET,
        **wanted,
    )


def check_given(data: str, given: Mapping[str, Any], request: Request) -> tuple[dict[str, Any], str]:
    """Return the options of the runs, with the file of the weights that a run or bundle holds, and its plain network.

    The network is "" where the weights are none of ours.

    Raises:
        UserError: An option is wrong, or the comparison chooses it itself.
    """
    for name in TELLS_APART:
        if name in given:
            instead = {"model": "--backbone", "seed": "--seeds"}.get(name, "--attention, with an arm for each kind")
            raise UserError(f"a comparison chooses {name} for each run; give {instead}")
    Config(data=data, **given)
    given, network = with_file_of_weights(given)
    weights = given.get("pretrained")
    if weights and weights != "imagenet" and not Path(weights).is_file():
        raise UserError(
            f"--pretrained {brief(weights, 200)} is no file; give imagenet, a file of weights, or the folder of a run"
        )
    if request.lr_search and "lr" in given:
        raise UserError("--lr-search chooses the learning rate; leave out --lr")
    for rate in request.lr_search or ():
        try:
            Config(data=data, **{**given, "lr": rate})
        except UserError as error:
            raise UserError(f"--lr-search: {error}") from error
    return given, "" if network is None else network.backbone


def with_full_name(request: Request) -> Request:
    """Return the request with the full name of its backbone, such as timm:resnet18."""
    from ..networks.libraries import full_name

    if request.backbone is None:
        return request
    return dataclasses.replace(request, backbone=full_name(request.backbone))


def asked_for(request: Request) -> dict[str, Any]:
    """Return the fields of a new design that come from the request, with defaults.

    Raises:
        UserError: Too few arms; an unknown arm, baseline, metric or backbone; a missing or impossible margin.
    """
    arms = request.arms or parse_arms("none,se,cbam")
    if len(arms) < 2:
        raise UserError("a comparison needs two arms or more; give for example --attention none,cbam")
    baseline = default_baseline([arm.name for arm in arms]) if request.baseline is None else request.baseline
    metric = "accuracy" if request.metric is None else request.metric
    check_judging(metric, baseline, arms)
    margin = margin_for(METRICS[metric], request.margin)
    if request.backbone is not None:
        run_options([arm for arm in arms if not arm.is_wide and not arm.is_short], request.backbone, num_classes=1)
    return {
        "arms": arms,
        "baseline": baseline,
        "num_seeds": 8 if request.num_seeds is None else request.num_seeds,
        "max_seeds": request.max_seeds,
        "metric": metric,
        "margin": margin,
        "lr_search": request.lr_search or (),
    }


def begun(data: str, config: Config, prepared: Prepared, backbone: str | None, asked: Mapping[str, Any]) -> Design:
    """Return a new design with all options of its runs; `completed` adds the networks of its arms."""
    return Design(
        data=data,
        data_fingerprint=images_fingerprint(prepared),
        began=datetime.now(timezone.utc).isoformat(timespec="minutes"),
        backbone=backbone or config.network().backbone,
        **asked,
        options={name: getattr(config, name) for name in OPTIONS if name in CHOSEN},
        arm_options={},
    )


def images_fingerprint(prepared: Prepared) -> str:
    """Return a hash of paths, labels and parts, and of the images' content where it was checked."""
    return ":".join(filter(None, (fingerprint(prepared), prepared.report.digest if prepared.report else "")))


def completed(data: str, design: Design, request: Request, prepared: Prepared, out: Path) -> Design:
    """Return the design with the network of each arm. Build each new one, so that errors come before the first run.

    A timed arm whose width is not measured yet has none.

    Raises:
        UserError: The images changed, an arm cannot be built, or only the file names its code.
    """
    where = f"the comparison in {str(out)!r}"
    if images_fingerprint(prepared) != design.data_fingerprint:
        if data != design.data:
            raise UserError(
                f"{where} is of {brief(design.data, 200)}, and {data!r} has other images; give another --out"
            )
        raise UserError(f"the images of {data!r} have changed since {where} began; restore them, or give another --out")
    if prepared.max_value != (before := design.options["max_value"]):
        raise UserError(
            f"{where} has max_value {before}, and auto gives {prepared.max_value}; give --max-value {before}, or "
            "another --out"
        )
    named = {arm.name for arm in request.arms or ()}
    for arm in design.arms:
        if arm.is_code and arm.name not in named:
            raise UserError(
                f"the arm {arm.name} is code ({short(arm.spec)}), and whatwhere never imports code named in a file; "
                "name it in --attention again"
            )
    num_classes, weights = len(prepared.classes), design.options["pretrained"]
    contents = _checked_contents(design, where)
    new = [arm.name for arm in design.arms if arm.name not in design.arm_options]
    options = run_options(
        design.arms,
        design.backbone,
        num_classes,
        at=design.options.get("at", ""),
        epochs=design.options["epochs"],
        widths={name: had["width_factor"] for name, had in design.arm_options.items() if "width_factor" in had},
    )
    arm_options = {**design.arm_options, **{name: options[name] for name in new if name in options}}
    _check_networks(arm_options, options, out)
    if weights and any(arm.is_wide for arm in design.arms):
        raise UserError("a wide arm has no pretrained weights; leave out the arm or --pretrained")
    starts = {name: {**design.options, **arm_options[name]} for name in new if name in arm_options}
    _check_starts(starts, design.backbone, num_classes)
    return msgspec.structs.replace(design, arm_options=arm_options, contents={**design.contents, **contents})


def _check_networks(arm_options: Mapping[str, Mapping[str, Any]], own: Mapping[str, Any], out: Path) -> None:
    """Raise UserError where options from a file are not those of the network that an arm names, by arm.

    Only width and learning rate are read from the file.
    """
    parts = ("model", "attention", "attention_kwargs", "at", "epochs")
    for name, choice in arm_options.items():
        if any(choice.get(part) != own[name].get(part) for part in parts):
            raise UserError(
                f"{str(out / DESIGN)!r} gives the arm {name} another network than its own; restore the file"
            )


def check_networks(design: Design, out: Path) -> None:
    """Raise UserError where the design in `out` gives an arm another network than its own; import no code.

    The width of wide arms is not calculated again.
    """
    plain = [Arm(arm.name, NONE) if arm.is_wide else arm for arm in design.arms]
    own = run_options(plain, design.backbone, 1, design.options.get("at", ""), design.options["epochs"])
    _check_networks(design.arm_options, own, out)


def _check_starts(options: Mapping[str, Mapping[str, Any]], backbone: str, num_classes: int) -> None:
    """Raise UserError for an arm, of the options by arm, that a run could not build, or not with its weights."""
    weights = next((given["pretrained"] for given in options.values()), "")
    loaded = read_pretrained(NetworkSpec(name=backbone), weights == "imagenet" or weights or False)
    for name, given in options.items():
        try:
            build(given, num_classes, seed=0, weights=loaded)
        except UserError as error:
            if loaded is None:
                raise
            raise UserError(f"{name}: {error}") from error


def described(design: Design, num_classes: int) -> list[str]:
    """Describe the comparison in lines: each arm, the seeds, the rule, the main options."""
    arms = [
        f"{arm.name}: {describe(choice)}, {num_params({**design.options, **choice}, num_classes):,} parameters"
        for arm in design.arms
        for choice in [design.arm_options[arm.name]]
    ]
    metric, schedule = METRICS[design.metric], design.schedule
    few_pairs = f"fewer than {LEAST_PAIRS} pairs give no verdict: give --seeds {LEAST_PAIRS} or more for one"
    looks = f"then at most {schedule.last} where that cannot tell" if schedule.last else "more may be added later"
    shown = {**design.options, "lr": "searched" if design.lr_search else design.options["lr"]}
    options = ", ".join(f"{name} {shown[name]}" for name in ("epochs", "batch_size", "lr", "image_size", "resize"))
    return [
        *arms,
        f"{design.num_seeds} seeds, {looks}; judged by {metric.label} against {design.baseline}, margin "
        f"{design.margin:g} {metric.unit}".rstrip(),
        *([few_pairs] if design.max_seeds is None and design.num_seeds < LEAST_PAIRS else []),
        f"every run: {options}; all options stand in compare.json",
    ]


def _checked_contents(design: Design, where: str) -> dict[str, str]:
    """Return the hashes of what the runs depend on; raise UserError where one is another than at the start."""
    contents = hash_contents(design.arms, design.options["pretrained"])
    for what, before in design.contents.items():
        if contents.get(what) != before:
            how = "has changed" if what in contents else "is gone"
            raise UserError(f"{short(what)} {how} since {where} began; restore it, or give another --out")
    return contents


def hash_contents(arms: Sequence[Arm], pretrained: str) -> dict[str, str]:
    """Return the SHA-256 of the user's code, which is imported for that, and of the weights that the runs start from.

    Of code, only the file of the named module counts, not the modules that it imports.

    Raises:
        UserError: The code cannot be imported, or a file cannot be read.
    """
    files = {WEIGHTS: pretrained} if pretrained and Path(pretrained).is_file() else {}
    for arm in arms:
        if arm.is_code:
            attention_by_path(arm.attention)
            module = sys.modules.get(arm.attention.partition(":")[0])
            if file := getattr(module, "__file__", None):
                files[code_of(arm.name)] = file
    hashes = {}
    for what, file in files.items():
        try:
            hashes[what] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"cannot read {file!r}, {what}: {error.strerror or error}") from error
    return hashes
