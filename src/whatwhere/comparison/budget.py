"""What of a comparison fits into `--budget`: seeds, epochs and looks, chosen before the first run."""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from ..base.errors import UserError
from ..base.screen import about
from ..base.words import brief, command_line, counted, few
from ..statistics.decide import least_found
from ..statistics.looks import ALPHA, LEAST_PAIRS
from ..statistics.metric import METRICS
from .arms import Arm, parse_arms
from .costs import FEWEST_EPOCHS
from .design import Design, with_epochs

OfRun = Callable[[str, int, bool], float]  # seconds of a run, by arm, epochs and whether it searches: `Estimate.of_run`

BUDGET = "--budget"

_RESERVE = 0.1  # of the budget, for what the estimate misses
_SLOWER = 1.1  # the next measurement may be so much slower
_SPREADS = (1.0, 2.0)  # standard deviations of differences in points, as comparisons on few images have them
_TIME = re.compile(
    r"(?:(\d{1,6}(?:\.\d{1,6})?) ?h)? ?(?:(\d{1,6}(?:\.\d{1,6})?) ?m(?:in)?)? ?(?:(\d{1,9}) ?s)?", re.ASCII
)


def seconds_in(text: str) -> float:
    """Return the seconds that a text such as 2h, 90m, 30min, 1h30m or 1.5h spells.

    Raises:
        UserError: It spells none, or less than a second.
    """
    found = _TIME.fullmatch(text.strip())
    hours, minutes, seconds = (float(part or 0) for part in found.groups()) if found else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if total < 1:
        raise UserError(f"--budget must be a time such as 2h, 90min or 1h30min, got {brief(text)}")
    return total


def typed(seconds: float) -> str:
    """Return a time as `seconds_in` takes it: 2h, 1h30min, 45s."""
    whole = round(seconds)
    parts = ((whole // 3600, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number)


@dataclass(frozen=True)
class Budget:
    """The time that one call of `compare` may take, from its start.

    Attributes:
        seconds: How long.
        began: When the call began, by the clock.
        clock: Returns the time in seconds.
    """

    seconds: float
    began: float
    clock: Callable[[], float]

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.began + self.seconds - self.clock()

    def room(self) -> float:
        """Return the seconds that a plan may use: a tenth is kept for what the estimate misses."""
        return self.left() - _RESERVE * self.seconds

    def enough_for(self, seconds: float) -> str:
        """Return a budget, as it is typed, into which a plan of so many seconds would fit."""
        minutes = _SLOWER * (seconds + self.seconds - self.left()) / (1 - _RESERVE) / 60
        step = 1 if minutes < 20 else 5
        return typed(60 * step * math.ceil(minutes / step))

    def __str__(self) -> str:
        return f"{BUDGET} {typed(self.seconds)}"


def seconds_of(design: Design, of_run: OfRun, num_parts: int) -> float:
    """Return about how many seconds a new comparison takes, all of its looks included.

    Whole seeds go to the `num_parts` devices in turn; the search of learning rates, and each look, ends on all of them
    before the next begins.
    """
    epochs = {arm.name: design.run_options(arm.name, 0)["epochs"] for arm in design.arms}
    looks = [0, design.num_seeds] if design.max_seeds is None else [0, *design.schedule.looks()]
    rounds = sum(math.ceil((after - before) / num_parts) for before, after in pairwise(looks))
    searching = math.ceil(len(design.lr_search) / num_parts)
    return sum(
        searching * of_run(arm, number, True) + rounds * of_run(arm, number, False) for arm, number in epochs.items()
    )


@dataclass(frozen=True)
class Plan:
    """Chooses what of a new comparison fits.

    Attributes:
        design: What was asked for, or is chosen without a budget.
        seconds: Returns about how many seconds a design takes.
        keep_seeds, keep_epochs: Whether the user gave them, so that they stay.
    """

    design: Design
    seconds: Callable[[Design], float]
    keep_seeds: bool = False
    keep_epochs: bool = False

    def within(self, room: float) -> Design | None:
        """Return the design with what takes at most `room` seconds; None where not even the least does.

        First all seeds, down to the 6 that a verdict needs; then fewer epochs, not below 10; all arms stay. Of
        the later looks of --max-seeds, as many pairs as fit even if all looks come.
        """
        for candidate in self._candidates():
            if self.seconds(candidate) <= room:
                return self._with_later_looks(candidate, room)
        return None

    def least(self) -> Design:
        """Return the design with the fewest seeds and epochs."""
        *_, last = self._candidates()
        return last

    def _candidates(self) -> Iterator[Design]:
        """Yield designs that take ever less time, without later looks."""
        epochs, asked = self.design.options["epochs"], self.design.num_seeds
        fewest = asked if self.keep_seeds else min(asked, LEAST_PAIRS)
        for num_seeds in range(asked, fewest - 1, -1):
            most = None if self.design.max_seeds is None else max(num_seeds, LEAST_PAIRS)
            fewer_seeds = msgspec.structs.replace(self.design, num_seeds=num_seeds, max_seeds=most)
            yield fewer_seeds
        for fewer in () if self.keep_epochs else range(epochs - 1, FEWEST_EPOCHS - 1, -1):
            try:
                yield with_epochs(fewer_seeds, fewer)
            except UserError:  # the arm short would be no shorter
                return

    def _with_later_looks(self, design: Design, room: float) -> Design:
        if design.max_seeds is None or self.design.max_seeds is None:
            return design

        def with_most(pairs: int) -> Design:
            return msgspec.structs.replace(design, max_seeds=pairs)

        more = range(design.max_seeds + 1, self.design.max_seeds + 1)
        number = bisect.bisect_right(more, room, key=lambda pairs: self.seconds(with_most(pairs)))
        return with_most(design.max_seeds + number)

    def refusal(self, budget: Budget, command: str) -> UserError:
        """Return the error that says what would fit, where `within` finds nothing: fewer arms, or a longer budget."""
        room, free = budget.room(), Plan(self.design, self.seconds)
        if self.keep_seeds or self.keep_epochs:
            for keep_seeds, keep_epochs in ((False, self.keep_epochs), (self.keep_seeds, False), (False, False)):
                found = Plan(self.design, self.seconds, keep_seeds, keep_epochs).within(room)
                if found is not None:
                    return UserError(
                        f"{budget} is too short for {_size(self.least())}, {about(self.seconds(self.least()))}; "
                        f"{_size(found)} would fit",
                        self._instead(command, found),
                    )
        least = free.least()
        too_short, takes = f"{budget} is too short for {_arms(self.design)}", about(self.seconds(least))
        for arms in _fewer_arms(self.design):
            fewer = msgspec.structs.replace(
                self.design, arms=arms, arm_options={arm.name: self.design.arm_options[arm.name] for arm in arms}
            )
            found = Plan(fewer, self.seconds).within(room)
            if found is not None:
                gone = [arm.name for arm in self.design.arms if arm not in arms]
                return UserError(
                    f"{too_short}: even {_size(least)} take {takes}; without {few(gone)} it would fit",
                    self._instead(command, found),
                )
        enough = budget.enough_for(self.seconds(least))
        return UserError(
            f"{too_short}: even {_size(least)} take {takes}; give --budget {enough}",
            self._instead(command, least, (BUDGET, enough)),
        )

    def _instead(self, command: str, design: Design, *more: tuple[str, str]) -> str:
        """Return the command that asks for a design, with those options changed that have to."""
        options = list(more)
        if design.arms != self.design.arms:
            options.append(("--attention", ",".join(map(_as_typed, design.arms))))
        if self.keep_seeds and design.num_seeds != self.design.num_seeds:
            options.append(("--seeds", str(design.num_seeds)))
        if self.keep_epochs and design.options["epochs"] != self.design.options["epochs"]:
            options.append(("--epochs", str(design.options["epochs"])))
        return with_options(command, options)

    def said(self, design: Design, budget: Budget) -> str:
        """Return what fits of what was asked for, as a sentence."""
        asked = self.design
        parts = [_arms(asked), _of(design.num_seeds, asked.num_seeds, "seed")]
        parts.append(_of(design.options["epochs"], asked.options["epochs"], "epoch"))
        if asked.max_seeds is not None and design.max_seeds is not None:
            later = _of(design.max_seeds, asked.max_seeds, "seed")
            parts.append(f"at most {later} where fewer cannot tell")
        return f"{budget} is enough for {', '.join(parts)}"


def _of(number: int, asked: int, noun: str) -> str:
    return counted(number, noun) + (f" instead of {asked:,}" if number != asked else "")


def _arms(design: Design) -> str:
    return "both arms" if len(design.arms) == 2 else f"all {len(design.arms)} arms"


def _size(design: Design) -> str:
    return f"{counted(design.num_seeds, 'seed')} of {counted(design.options['epochs'], 'epoch')}"


def _fewer_arms(design: Design) -> Iterator[tuple[Arm, ...]]:
    """Yield ever fewer of the arms, down to two; wide arms go first, as their widths follow from other arms."""
    others = sorted((arm for arm in design.arms if arm.name != design.baseline), key=lambda arm: arm.is_wide)
    for number in range(len(others) - 1, 0, -1):
        kept = others[:number]
        yield tuple(arm for arm in design.arms if arm.name == design.baseline or arm in kept)


def _as_typed(arm: Arm) -> str:
    return arm.spec if parse_arms(arm.spec) == (arm,) else f"{arm.name}={arm.spec}"


def with_options(command: str, options: Sequence[tuple[str, str]]) -> str:
    """Return a command line with other values of these options."""
    for flag, _ in options:
        command = re.sub(rf" {flag}[ =]('[^']*'|\S+)", "", command)
    return " ".join([command, *map(command_line, options)])


def differences_found(design: Design, spread: float | None) -> str:
    """Return how small a difference the pairs of a design find four times in five, as a sentence; "" without a look.

    At the level of the strictest test: that of the first of the arms (Holm), at the first look that the seeds reach,
    and at the last one. `spread` is the standard deviation of the differences between finished runs; without it, it is
    1 and 2 points, and for a metric in other units the unit is the standard deviation itself.
    """
    schedule, unit = design.schedule, METRICS[design.metric].unit
    first = schedule.look_at(design.num_seeds) or (schedule.first if design.max_seeds else None)
    if first is None:
        return ""
    looks = dict.fromkeys((first, schedule.last or first))
    found = {look: least_found(look, schedule.level(look, ALPHA / len(design.others))) for look in looks}

    def at(deviation: float, kind: str) -> str:
        first, *later = (f"{deviation * size:.2g}{kind}" for size in found.values())
        return first + "".join(f" ({look} pairs: {text})" for look, text in zip([*looks][1:], later, strict=True))

    before = f"{first} pairs find, 4 times in 5, a difference of"
    if spread:
        return f"{before} {at(spread, f' {unit}'.rstrip())}: the differences vary by {spread:.2g} so far (st. dev.)"
    if unit != "points":
        return f"{before} {at(1.0, '')} times the standard deviation of the differences"
    one, two = _SPREADS
    return (
        f"{before} {at(one, ' points')} where the differences vary by {one:g} point from pair to pair (standard "
        f"deviation), {at(two, ' points')} where by {two:g}"
    )
