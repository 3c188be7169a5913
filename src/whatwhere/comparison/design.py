"""The design of a comparison, written before the first run: arms, seeds, looks, margin, every option."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..base.errors import UserError, check_integer
from ..base.files import write_json
from ..base.words import brief, cause, counted, few, short
from ..statistics.decide import HELPS, HURTS, SAME, UNKNOWN
from ..statistics.looks import LEAST_PAIRS, MOST_SEEDS, Plan
from ..statistics.metric import METRICS, margin_for
from ..statistics.shape import integer, number, record, text, texts
from ..training.config import FREE, OPTIONS, TELLS_APART, Config
from .arms import Arm, check_arm_name

DESIGN = "compare.json"
_FORMAT = 1
_MOST_LEFT_OUT = 999_999  # as --leave-out takes them


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asks for; None is left open: as the design has it, or a default.

    Attributes:
        backbone: A network without attention.
        arms: What to compare.
        num_seeds: Seeds 0, 1, ... of which each arm gets a run each.
        max_seeds: Where "cannot tell yet" may lead; None: open.
        margin: Least difference that matters, in the unit shown.
        metric: What is judged by.
        baseline: Name of an arm.
        lr_search: Learning rates among which each arm chooses.
        leave_out: Seeds that count for no arm, each replaced by a further one.
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


@dataclass(frozen=True, kw_only=True)
class Design:
    """A comparison as it was begun, and what has been changed since.

    Attributes:
        data: DATA.
        data_fingerprint: Of its images under seed 0.
        began: When.
        options: Of every run, resolved once for all of them.
        arm_options: What each arm's runs have besides: model, attention, width, learning rate.
        first_look: Pairs at the first look; None before it.
        verdicts: What each arm was told at its last look: the verdict, and at how many pairs.
        changes: What was changed after the start, as sentences.
        left_out: Seeds that count for no arm.
        contents: Hash of what the options name but do not hold, such as the file of an attention of the user's.
    """

    data: str
    data_fingerprint: str
    began: str
    backbone: str
    arms: tuple[Arm, ...]
    baseline: str
    num_seeds: int
    max_seeds: int | None
    metric: str
    margin: float
    lr_search: tuple[float, ...]
    options: dict[str, Any]
    arm_options: dict[str, dict[str, Any]]
    first_look: int | None = None
    verdicts: dict[str, tuple[str, int]] = dataclasses.field(default_factory=dict)
    changes: tuple[str, ...] = ()
    left_out: tuple[int, ...] = ()
    contents: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_seeds is not None and self.max_seeds < self.num_seeds and self.first_look is None:
            raise UserError(f"--max-seeds {self.max_seeds} is below --seeds {self.num_seeds}; give at least as many")

    @property
    def plan(self) -> Plan:
        """When it is looked at."""
        return Plan(self.first_look or max(LEAST_PAIRS, self.num_seeds), self.max_seeds)

    @property
    def others(self) -> list[str]:
        """The arms that are compared with the baseline."""
        return [arm.name for arm in self.arms if arm.name != self.baseline]

    def seeds(self) -> dict[str, tuple[int, ...]]:
        """Return the seeds that each arm is to have now: up to the next look of those still undecided."""
        target = {}
        for arm in self.others:
            verdict, look = self.verdicts.get(arm, (UNKNOWN, 0))
            if self.max_seeds is not None and verdict == UNKNOWN:
                look = self.plan.next_after(look) or look
            target[arm] = max(self.num_seeds, look)
        target[self.baseline] = max(target.values())
        return {arm.name: self._first_seeds(target[arm.name]) for arm in self.arms}

    def _first_seeds(self, count: int) -> tuple[int, ...]:
        left = (seed for seed in itertools.count() if seed not in self.left_out)
        return tuple(itertools.islice(left, count))

    def run_options(self, arm: str, seed: int) -> dict[str, Any]:
        """Return every option of a run that shapes its result."""
        return {**self.options, **self.arm_options[arm], "seed": seed}

    def write(self, folder: Path) -> None:
        """Write `compare.json`."""
        content = {"format": _FORMAT, **asdict(self)}
        write_json(folder / DESIGN, content)


def read_design(folder: Path) -> Design | None:
    """Return the design in `folder`; None where there is none.

    Raises:
        UserError: The file is damaged, or of another version.
    """
    path = folder / DESIGN
    try:
        content = record(json.loads(path.read_bytes()), "it")
        if content.pop("format") != _FORMAT:
            raise ValueError("another format")
        content = {**content, **_checked({"left_out": [], "contents": {}, **content})}
        design = Design(**content)
        _ = design.plan  # raises UserError where its numbers do not go together
        return design
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is no design of a comparison ({cause(error)}); give another --out") from error


def _checked(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a design's file as they are in a `Design`.

    Raises:
        ValueError, TypeError, KeyError: It is damaged.
    """
    arms = tuple(Arm(**arm) for arm in content["arms"])
    names = [arm.name for arm in arms]
    for arm in arms:
        check_arm_name(arm.name)
        text(arm.spec, "the arm's spec")
    if len(arms) < 2 or len({name.lower() for name in names}) < len(names) or content["baseline"] not in names:
        raise ValueError("its arms are fewer than two, of one name, or without the baseline")
    check_metric(text(content["metric"], "metric"))
    most = {"most": MOST_SEEDS}
    verdicts: dict[str, tuple[str, int]] = {}
    for name, told in record(content["verdicts"], "verdicts").items():
        verdict, look = told
        if name not in names or verdict not in (HELPS, HURTS, SAME, UNKNOWN):
            raise ValueError(f"{brief(name)} has no such verdict")
        verdicts[name] = (verdict, integer(look, "look", least=LEAST_PAIRS, **most))
    left_out = tuple(integer(seed, "left_out", least=0, most=_MOST_LEFT_OUT) for seed in content["left_out"])
    rates = tuple(number(rate, "lr_search", least=0, most=1e4) for rate in content["lr_search"])
    if len(rates) == 1 or len(set(rates)) < len(rates) or 0 in rates:
        raise ValueError("lr_search holds no different rates")
    for name in ("max_seeds", "first_look"):
        if content[name] is not None:
            integer(content[name], name, least=LEAST_PAIRS, **most)
    contents = record(content["contents"], "contents")
    texts(list(contents.values()), "contents")
    return {
        **{name: text(content[name], name) for name in ("data", "data_fingerprint", "began", "backbone")},
        "arms": arms,
        "num_seeds": integer(content["num_seeds"], "num_seeds", least=2, **most),
        "margin": margin_for(METRICS[content["metric"]], number(content["margin"], "margin", least=0)),
        "lr_search": rates,
        "options": _checked_options(content["options"]),
        "arm_options": _checked_arm_options(content["arm_options"], names),
        "verdicts": verdicts,
        "changes": texts(content["changes"], "changes"),
        "left_out": left_out,
    }


def _checked_options(options: Any) -> dict[str, Any]:
    shaping = {name for name in OPTIONS if name not in FREE and name not in TELLS_APART}
    if set(record(options, "options")) != shaping:
        raise ValueError("its options are not those of a run")
    _check_kinds(options)
    Config(**options)
    return dict(options)


def _checked_arm_options(arm_options: Any, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    if not set(record(arm_options, "arm_options")) <= set(names):
        raise ValueError("arm_options has an arm that is none")
    for options in arm_options.values():
        if not {"model"} <= set(record(options, "arm_options")) <= {*TELLS_APART, "at", "lr"} - {"seed"}:
            raise ValueError("arm_options are not those of an arm")
        _check_kinds(options)
        Config(**options)
    return dict(arm_options)


def _check_kinds(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        kind = OPTIONS[name].metadata["kind"]
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"{name} is of another kind")


def check_metric(name: str) -> None:
    """Raise UserError if no figure of ours is called so."""
    if name not in METRICS:
        raise UserError(f"--metric {brief(name)} is none of {', '.join(METRICS)}")


def check_options(design: Design, folder: Path, given: Mapping[str, Any]) -> None:
    """Raise UserError if an option of the runs is given that the comparison does not have."""
    changed = [
        f"{name} was {brief(design.options.get(name), 40)}, is {brief(value, 40)}"
        for name, value in given.items()
        if name not in FREE and design.options.get(name) != value
    ]
    if changed:
        raise UserError(
            f"the comparison in {str(folder)!r} trains otherwise: {few(changed, 5, '; ')}; runs of two kinds "
            "cannot be compared: give the same options, or another --out"
        )


def continued(design: Design, request: Request, folder: Path) -> Design:
    """Return the design after a request: more seeds and arms, another margin, metric or baseline; each change is noted.

    Raises:
        UserError: Another backbone, other learning rates, an arm under another's name, another plan after a look, or
            an unknown metric, or one whose margin is not known.
    """
    where = f"the comparison in {str(folder)!r}"
    if request.backbone not in (None, design.backbone):
        raise UserError(f"{where} is of {short(design.backbone)}, not of {short(request.backbone)}; give another --out")
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
            f"{where} has been looked at, and its plan ({design.max_seeds or 'no'} most seeds) stands: another would "
            "spend the error twice; leave out --max-seeds, or start anew with another --out"
        )
    metric = design.metric if request.metric is None else request.metric
    check_metric(metric)
    kept = design.margin if METRICS[metric].unit == METRICS[design.metric].unit else None
    most = design.max_seeds if request.max_seeds is None else request.max_seeds
    if most is not None and (request.num_seeds or 0) > most:
        raise UserError(f"--seeds {request.num_seeds} is more than the plan's most, {most}; the rest could not count")
    wanted: dict[str, Any] = {
        "num_seeds": max(design.num_seeds, request.num_seeds or 0),
        "max_seeds": most,
        "margin": margin_for(METRICS[metric], kept if request.margin is None else request.margin),
        "metric": metric,
        "baseline": design.baseline if request.baseline is None else request.baseline,
    }
    if wanted["baseline"] not in [arm.name for arm in arms]:
        raise UserError(
            f"--baseline {short(wanted['baseline']) or repr('')} is none of the arms, "
            f"{few([arm.name for arm in arms], 10)}"
        )
    texts = [
        f"{name.replace('_', ' ')} was {getattr(design, name)}, is {value}"
        for name, value in wanted.items()
        if getattr(design, name) != value
    ]
    texts += [f"arm {arm.name} added" for arm in arms[len(design.arms) :]]
    leaving = tuple(seed for seed in dict.fromkeys(request.leave_out) if seed not in design.left_out)
    texts += [f"seed {seed} is left out of all arms" for seed in leaving]
    seen = max((look for _, look in design.verdicts.values()), default=0)
    when = datetime.now(timezone.utc).isoformat(timespec="minutes")
    after = f"after a look at {counted(seen, 'pair')}" if seen else "before the first look"
    changes = tuple(f"{when}, {after}: {text}" for text in texts)
    return dataclasses.replace(
        design, arms=tuple(arms), changes=(*design.changes, *changes), left_out=(*design.left_out, *leaving), **wanted
    )
