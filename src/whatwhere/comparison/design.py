"""The design of a comparison, written before the first run: arms, seeds, looks, margin, and all options of the runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ..attention import attention_by_path
from ..base.documents import parse_json
from ..base.errors import UserError, check_integer
from ..base.files import read_file, write_json
from ..base.limits import DOCUMENT_BYTES
from ..base.words import brief, cause, counted, few, option, short
from ..data.split import Prepared, fingerprint
from ..networks.factory import read_pretrained
from ..networks.spec import NetworkSpec
from ..statistics.decide import HELPS, HURTS, SAME, UNKNOWN
from ..statistics.looks import LEAST_PAIRS, MOST_SEEDS, Schedule
from ..statistics.metric import METRICS, margin_for
from ..statistics.verdict import default_baseline
from ..training.config import ADDED, FREE, NUMBER_OR_AUTO, OPTIONS, TELLS_APART, Config
from ..training.setup import with_file_of_weights
from .arms import NONE, Arm, build, check_arm_name, describe, fewer_epochs, num_params, parse_arms, run_options
from .content import DESIGN

_TYPED = {"num_seeds": "--seeds"}  # options that are called otherwise here
_CHOSEN = frozenset(OPTIONS) - FREE - TELLS_APART  # options that a comparison fixes for all runs
_CHANGEABLE = ("num_seeds", "max_seeds", "margin", "metric", "baseline")  # besides the arms, which may become more
WEIGHTS = "the file of weights"

Text = Annotated[str, Meta(min_length=1)]
Pairs = Annotated[int, Meta(ge=LEAST_PAIRS, le=MOST_SEEDS)]
Seed = Annotated[int, Meta(ge=0, le=999_999)]  # as --leave-out takes them
Rate = Annotated[float, Meta(gt=0, le=1e4)]
Verdict = Annotated[str, Meta(pattern=f"^({HELPS}|{HURTS}|{SAME}|{UNKNOWN})$")]


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


class Design(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `compare.json`: a comparison as it began, with the changes since.

    Attributes:
        backbone, arms, baseline, num_seeds, max_seeds, metric, margin, lr_search: As in `Request`.
        data_fingerprint: Hash of the images and their split under seed 0.
        began: Date and time of the start, UTC.
        options: Options that all runs share, chosen once.
        arm_options: Further options of each arm's runs: model, attention, width, learning rate.
        first_look: Number of pairs at the first look; None before it.
        verdicts: Each arm's verdict at its last look, and the number of pairs then.
        changes: Sentences on each change after the start.
        left_out: Seeds that count for no arm.
        contents: SHA-256 of the user code and weights that the runs depend on.
        at_first: What was changed since, as it was at first, by field; of the arms, which may become more, `num_arms`.
            Unset where nothing was, and in files of old versions.
    """

    format: Literal[1] = 1
    data: Text
    data_fingerprint: Text
    began: Text
    backbone: Text
    arms: Annotated[tuple[Arm, ...], Meta(min_length=2)]
    baseline: str
    num_seeds: Annotated[int, Meta(ge=2, le=MOST_SEEDS)]
    max_seeds: Pairs | None
    metric: str
    margin: Annotated[float, Meta(ge=0)]
    lr_search: tuple[Rate, ...]
    options: dict[str, Any]
    arm_options: dict[str, dict[str, Any]]
    first_look: Pairs | None = None
    verdicts: dict[str, tuple[Verdict, Pairs]] = {}
    changes: tuple[str, ...] = ()
    left_out: tuple[Seed, ...] = ()
    contents: dict[str, str] = {}
    at_first: dict[str, int | float | str | None] | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.max_seeds is not None and self.max_seeds < self.num_seeds and self.first_look is None:
            raise UserError(f"--max-seeds {self.max_seeds} is below --seeds {self.num_seeds}; give at least as many")

    @property
    def schedule(self) -> Schedule:
        """The pairs at which the arms are judged."""
        return Schedule(self.first_look or max(LEAST_PAIRS, self.num_seeds), self.max_seeds)

    @property
    def others(self) -> list[str]:
        """Names of the arms without the baseline."""
        return [arm.name for arm in self.arms if arm.name != self.baseline]

    def seeds(self) -> dict[str, tuple[int, ...]]:
        """Return the seeds that each arm needs now: an undecided arm goes on to its next look."""
        target = {}
        for arm in self.others:
            verdict, look = self.verdicts.get(arm, (UNKNOWN, 0))
            if self.max_seeds is not None and verdict == UNKNOWN:
                look = self.schedule.next_after(look) or look
            target[arm] = max(self.num_seeds, look)
        most = target[self.baseline] = max(target.values())
        counted_seeds = [seed for seed in range(most + len(self.left_out)) if seed not in self.left_out]
        return {arm.name: tuple(counted_seeds[: target[arm.name]]) for arm in self.arms}

    def later_runs(self) -> dict[str, int]:
        """Return how many more runs than `seeds` has each arm may get, at most, while its verdict stays open."""
        undecided = [arm for arm in self.others if self.verdicts.get(arm, (UNKNOWN, 0))[0] == UNKNOWN]
        if self.max_seeds is None or not undecided:
            return {}
        seeds = self.seeds()
        return {arm: more for arm in (self.baseline, *undecided) if (more := self.max_seeds - len(seeds[arm])) > 0}

    def run_options(self, arm: str, seed: int) -> dict[str, Any]:
        """Return all options of a run that change its result."""
        return {**self.options, **self.arm_options[arm], "seed": seed}

    def digest(self) -> str:
        """Return the SHA-256 of the design as it was when the comparison began, to publish before the first run.

        It is of everything that the comparison fixes, and of nothing that it finds: looks, learning rates that are
        searched, widths that are measured, seeds that are left out, and later changes leave it as it is. Images, code
        and weights count by their content, not by their paths, so that it is the same on another machine.
        """
        first = {name: getattr(self, name) for name in ("data_fingerprint", "backbone", "lr_search", *_CHANGEABLE)}
        first |= self.at_first or {}
        arms = self.arms[: first.pop("num_arms", len(self.arms))]
        codes = {code_of(arm.name) for arm in arms}
        options = {name: value for name, value in self.options.items() if value != ADDED.get(name, UNSET)}
        if WEIGHTS in self.contents:
            del options["pretrained"]
        first |= {
            "arms": [(arm.name, arm.spec) for arm in arms],
            "options": options,
            "arm_options": {
                arm.name: {
                    name: value
                    for name, value in self.arm_options[arm.name].items()
                    if not (name == "lr" and self.lr_search) and not (name == "width_factor" and arm.is_timed)
                }
                for arm in arms
            },
            "contents": {what: value for what, value in self.contents.items() if what in {WEIGHTS, *codes}},
        }
        # 1 and 1.0 are one number, whichever of them a file holds
        plain = json.loads(json.dumps(first), parse_int=float)
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write `compare.json`."""
        write_json(folder / DESIGN, msgspec.to_builtins(self))


def read_design(folder: Path, advice: str = "give another --out") -> Design | None:
    """Return the design in `folder`; None where there is none.

    Raises:
        UserError: The file is damaged or of another version; `advice` says what to do.
    """
    path = folder / DESIGN
    if not os.path.exists(path):  # nor the end of a link
        return None
    content = read_file(path, DOCUMENT_BYTES)
    try:
        design = parse_json(content, Design)
        # behind the others: a file that has them all is written again byte for byte
        lacking = {name: value for name, value in ADDED.items() if name not in design.options}
        design = msgspec.structs.replace(design, options=design.options | lacking)
        _check_parts(design)
        return design
    except ValueError as error:
        raise UserError(f"{str(path)!r} is no design of a comparison ({cause(error)}); {advice}") from error


def _check_parts(design: Design) -> None:
    """Raise ValueError where the parts of a design from a file do not fit together."""
    names = [arm.name for arm in design.arms]
    for arm in design.arms:
        check_arm_name(arm.name)
    if not all(arm.spec for arm in design.arms) or len({name.lower() for name in names}) < len(names):
        raise ValueError("an arm has no spec, or the name of another")
    for what in ({design.baseline}, design.verdicts, design.arm_options):
        if not set(what) <= set(names):
            raise ValueError(f"{few(sorted(set(what) - set(names)), 3)} is none of its arms")
    if len(design.lr_search) == 1 or len(set(design.lr_search)) < len(design.lr_search):
        raise ValueError("lr_search needs two or more different rates")
    _check_judging(design.metric, design.baseline, design.arms)
    margin_for(METRICS[design.metric], design.margin)
    schedule = design.schedule  # raises UserError where first_look and max_seeds do not fit
    for name, (_, look) in design.verdicts.items():
        if schedule.look_at(look) != look:
            raise ValueError(f"the {look:,} pairs of {name} are no look of its schedule")
    if set(design.options) != _CHOSEN:
        raise ValueError("its options are not those of a run")
    for options in (design.options, *design.arm_options.values()):
        msgspec.convert(options, Config)
    num_arms = (first := design.at_first or {}).get("num_arms", len(names))
    if not first.keys() <= {"num_arms", *_CHANGEABLE} or type(num_arms) is not int or not 2 <= num_arms <= len(names):
        raise ValueError("at_first names what no comparison changes")
    for options in design.arm_options.values():
        if not {"model"} <= set(options) <= {*TELLS_APART, "at", "lr", "epochs"} - {"seed"}:
            raise ValueError("arm_options are not those of an arm")


def _check_judging(metric: str, baseline: str, arms: Sequence[Arm]) -> None:
    if metric not in METRICS:
        raise UserError(f"--metric {brief(metric)} is none of {', '.join(METRICS)}")
    names = [arm.name for arm in arms]
    if baseline not in names:
        raise UserError(f"--baseline {short(baseline) or repr('')} is none of the arms, {few(names, 10)}")


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
    _check_judging(metric, baseline, arms)
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
    _check_judging(metric, baseline, arms)
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
        options={name: getattr(config, name) for name in OPTIONS if name in _CHOSEN},
        arm_options={},
    )


def with_epochs(design: Design, epochs: int) -> Design:
    """Return the design with so many epochs in all runs, and their part in the runs of a short arm.

    Raises:
        UserError: A short arm would be no shorter.
    """
    shorter = {
        arm.name: {**design.arm_options[arm.name], "epochs": fewer_epochs(arm, epochs)}
        for arm in design.arms
        if arm.is_short
    }
    return msgspec.structs.replace(
        design, options={**design.options, "epochs": epochs}, arm_options={**design.arm_options, **shorter}
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


def code_of(arm: str) -> str:
    """Return what `contents` calls the code of an arm."""
    return f"the code of {arm}"


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
