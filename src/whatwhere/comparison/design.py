"""The design of a comparison, as `compare.json` keeps it: arms, seeds, looks, margin, and all options of the runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ..base.documents import parse_json
from ..base.errors import UserError
from ..base.files import read_file, write_json
from ..base.limits import DOCUMENT_BYTES
from ..base.words import brief, cause, few, short
from ..statistics.decide import HELPS, HURTS, SAME, UNKNOWN
from ..statistics.looks import LEAST_PAIRS, MOST_SEEDS, Schedule
from ..statistics.metric import METRICS, margin_for
from ..training.config import ADDED, FREE, OPTIONS, TELLS_APART, Config
from .arms import Arm, check_arm_name, fewer_epochs
from .content import DESIGN

CHOSEN = frozenset(OPTIONS) - FREE - TELLS_APART  # options that a comparison fixes for all runs
_CHANGEABLE = ("num_seeds", "max_seeds", "margin", "metric", "baseline")  # besides the arms, which may become more
WEIGHTS = "the file of weights"

Text = Annotated[str, Meta(min_length=1)]
Pairs = Annotated[int, Meta(ge=LEAST_PAIRS, le=MOST_SEEDS)]
Seed = Annotated[int, Meta(ge=0, le=999_999)]  # as --leave-out takes them
Rate = Annotated[float, Meta(gt=0, le=1e4)]
Verdict = Annotated[str, Meta(pattern=f"^({HELPS}|{HURTS}|{SAME}|{UNKNOWN})$")]


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
    check_judging(design.metric, design.baseline, design.arms)
    margin_for(METRICS[design.metric], design.margin)
    schedule = design.schedule  # raises UserError where first_look and max_seeds do not fit
    for name, (_, look) in design.verdicts.items():
        if schedule.look_at(look) != look:
            raise ValueError(f"the {look:,} pairs of {name} are no look of its schedule")
    if set(design.options) != CHOSEN:
        raise ValueError("its options are not those of a run")
    for options in (design.options, *design.arm_options.values()):
        msgspec.convert(options, Config)
    num_arms = (first := design.at_first or {}).get("num_arms", len(names))
    if not first.keys() <= {"num_arms", *_CHANGEABLE} or type(num_arms) is not int or not 2 <= num_arms <= len(names):
        raise ValueError("at_first names what no comparison changes")
    for options in design.arm_options.values():
        if not {"model"} <= set(options) <= {*TELLS_APART, "at", "lr", "epochs"} - {"seed"}:
            raise ValueError("arm_options are not those of an arm")


def check_judging(metric: str, baseline: str, arms: Sequence[Arm]) -> None:
    """Raise UserError for an unknown metric, or a baseline that is no arm."""
    if metric not in METRICS:
        raise UserError(f"--metric {brief(metric)} is none of {', '.join(METRICS)}")
    names = [arm.name for arm in arms]
    if baseline not in names:
        raise UserError(f"--baseline {short(baseline) or repr('')} is none of the arms, {few(names, 10)}")


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


def code_of(arm: str) -> str:
    """Return what `contents` calls the code of an arm."""
    return f"the code of {arm}"
