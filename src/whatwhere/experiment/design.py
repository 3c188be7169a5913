"""The design of a comparison, written before the first run: arms, seeds, looks, margin, every option."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..data.names import counted
from ..errors import UserError, check_integer
from ..files import write_json
from ..training.config import FREE, OPTIONS, TELLS_APART
from .arms import Arm, check_arm_name
from .decide import UNKNOWN
from .metric import METRICS, margin_for
from .plan import LEAST_PAIRS, Plan

DESIGN = "compare.json"
_FORMAT = 1


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
            check_integer("seeds", self.num_seeds, least=2)
        if self.max_seeds is not None:
            check_integer("max-seeds", self.max_seeds, least=LEAST_PAIRS)


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
        content = json.loads(path.read_bytes())
        if content.pop("format") != _FORMAT:
            raise ValueError("another format")
        arms = tuple(Arm(**arm) for arm in content.pop("arms"))
        verdicts = {arm: (verdict, look) for arm, (verdict, look) in content.pop("verdicts").items()}
        for arm in arms:
            check_arm_name(arm.name)
        if not set(OPTIONS) >= set(content["options"]) or TELLS_APART & set(content["options"]):
            raise ValueError("its options are not those of a run")
        rates, changes = tuple(content.pop("lr_search")), tuple(content.pop("changes"))
        left_out = tuple(content.pop("left_out", ()))
        return Design(**content, lr_search=rates, changes=changes, left_out=left_out, arms=arms, verdicts=verdicts)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{str(path)!r} is no design of a comparison ({error}); give another --out") from error


def check_metric(name: str) -> None:
    """Raise UserError if no figure of ours is called so."""
    if name not in METRICS:
        raise UserError(f"--metric {name!r} is none of {', '.join(METRICS)}")


def check_options(design: Design, folder: Path, given: Mapping[str, Any]) -> None:
    """Raise UserError if an option of the runs is given that the comparison does not have."""
    changed = [
        f"{name} was {design.options.get(name)!r}, is {value!r}"
        for name, value in given.items()
        if name not in FREE and design.options.get(name) != value
    ]
    if changed:
        raise UserError(
            f"the comparison in {str(folder)!r} trains otherwise: {'; '.join(changed[:5])}; runs of two kinds "
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
        raise UserError(f"{where} is of {design.backbone}, not of {request.backbone}; give another --out")
    if request.lr_search not in (None, design.lr_search):
        raise UserError(f"{where} searches the learning rates {list(design.lr_search)}; give another --out for others")
    arms = list(design.arms)
    for arm in request.arms or ():
        same = next((known for known in arms if known.name.lower() == arm.name.lower()), None)
        if same is None:
            arms.append(arm)
        elif same != arm:
            raise UserError(f"{where} has the arm {same.name} as {same.spec}, not {arm.spec}; name it otherwise")
    if request.max_seeds not in (None, design.max_seeds) and design.first_look is not None:
        raise UserError(
            f"{where} has been looked at, and its plan ({design.max_seeds or 'no'} most seeds) stands: another would "
            "spend the error twice; leave out --max-seeds, or start anew with another --out"
        )
    metric = request.metric or design.metric
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
        "baseline": request.baseline or design.baseline,
    }
    if wanted["baseline"] not in [arm.name for arm in arms]:
        raise UserError(f"--baseline {wanted['baseline']} is none of the arms, {', '.join(arm.name for arm in arms)}")
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
