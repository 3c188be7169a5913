"""What the runs of a comparison will take: costs and widths are measured, a budget is kept, and the time is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ..base.errors import UserError
from ..base.screen import about
from ..base.words import counted
from ..data.split import Prepared
from ..training.config import num_steps
from ..training.distributed import Team
from ..training.estimate import HOUR, measure_reading
from ..training.setup import resolve
from .arms import plain_options
from .budget import Budget, Plan, differences_found, seconds_of, with_options
from .content import Costs
from .costs import Estimate, Measure, read_costs, width_for_time, within_an_hour
from .design import Design
from .gather import Gathered
from .planning import Request
from .runs import Runner, Runs, Share, Task


class Forecast:
    """Measures the arms of a comparison, once, and says how long its runs take.

    Args:
        runner: Does the runs: its share, screen and budget count.
        runs: The runs.
        prepared: The images.
        team: The processes that train.
        measure: Measures the cost of each arm.
    """

    def __init__(self, runner: Runner, runs: Runs, prepared: Prepared, team: Team, measure: Measure) -> None:
        self._runner, self._runs, self._prepared, self._team, self._measure = runner, runs, prepared, team, measure
        self._screen, self._share = runner.screen, runner.share
        self._costs: tuple[list[str], Costs | None] | None = None  # for these arms
        self._timed: Estimate | None = None

    @property
    def _is_later_share(self) -> bool:
        """Whether another share measures and plans."""
        return self._share.shard is not None and self._share.shard[0] != 1

    def costs(self, design: Design) -> Costs | None:
        """Return the costs of all arms, measured where not known or doubtful; later shares leave that to the first."""
        arms = [arm.name for arm in design.arms]
        if self._costs is None or self._costs[0] != arms:
            self._costs = arms, self._measured(design, arms)
        return self._costs[1]

    def _measured(self, design: Design, arms: Sequence[str]) -> Costs | None:
        known = read_costs(self._share.out)
        is_doubtful = known is not None and bool(known.doubt) and not self._share.is_inner  # other processes train
        lacks = known is None or [row.arm for row in known.rows] != arms or is_doubtful
        if self._is_later_share or not lacks:
            return known
        self._screen.line(f"measuring what each arm costs{' again' if is_doubtful else ''}")
        costs = self._measure(design, len(self._prepared.classes), self._team.device, self._screen.progress)
        if costs.doubt:
            self._screen.warn(f"{costs.doubt}; the time that the runs take may be quite another than said below")
        return costs

    def with_widths(self, design: Design) -> Design:
        """Return the design with the width of each timed arm; what is measured once stays."""
        for arm in design.arms:
            if arm.name in design.arm_options:
                continue
            if self._is_later_share:
                assert self._share.shard is not None
                first = f"1/{self._share.shard[1]}"
                raise UserError(f"the width of {arm.name} is not measured yet; start the share {first} first")
            self._screen.line(f"measuring the width at which the arm {arm.name} takes as long as its model")
            factor, costs = width_for_time(
                design, arm, len(self._prepared.classes), self._team.device, self._measure, self._screen.progress
            )
            (other, wide) = costs.rows
            self._screen.line(
                f"{arm.name}: {factor:g} times as wide, {wide.training_step_ms or 0:.1f} ms for a step of "
                f"{counted(costs.num_images, 'image')}; {other.arm}: {other.training_step_ms or 0:.1f} ms"
            )
            if costs.doubt:
                self._screen.warn(
                    f"{costs.doubt}; the width of {arm.name} may be wrong: begin again when nothing else runs"
                )
            options = {**plain_options(design.backbone, design.options["at"]), "width_factor": factor}
            design = msgspec.structs.replace(design, arm_options={**design.arm_options, arm.name: options})
        return design

    def within_budget(self, design: Design, request: Request, given: Mapping[str, Any], *, is_new: bool) -> Design:
        """Return a new design with what fits the budget; of one that was begun, say how many seeds fit.

        Raises:
            UserError: Not even the least fits; or a share has no plan yet.
        """
        runner, share, limit, costs = self._runner, self._share, self._runner.budget, self.costs(design)
        assert limit is not None
        if not is_new:
            missing = [task for task in self._tasks(self._runs.with_rates(design)) if not task.is_done()]
            if missing and costs is not None and _covers(costs, missing) and not share.is_inner:
                self._say_what_fits(missing, self._estimate(design, costs), limit)
            return design
        if costs is None:
            assert share.shard is not None
            raise UserError(f"the plan within --budget is not made yet; start the share 1/{share.shard[1]} first")
        estimate = self._estimate(design, costs)
        plan = Plan(
            design,
            lambda candidate: seconds_of(candidate, estimate.of_run, share.num_parts),
            keep_seeds=request.num_seeds is not None,
            keep_epochs="epochs" in given,
        )
        found = plan.within(limit.room())
        if found is None:
            raise plan.refusal(limit, runner.command)
        self._screen.line(plan.said(found, limit))
        if (epochs := found.options["epochs"]) != design.options["epochs"]:
            # the recipe follows from the number of steps
            config = resolve(runner.data, {**given, "seed": 0, "epochs": epochs}, self._prepared, self._team)
            found = msgspec.structs.replace(found, options={name: getattr(config, name) for name in found.options})
        return found

    def _say_what_fits(self, missing: Sequence[Task], estimate: Estimate, limit: Budget) -> None:
        """Show how many of the missing seeds fit what is left of the budget, where not all do.

        Raises:
            UserError: Not one seed fits.
        """
        num_devices = self._share.num_devices
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
                with_options(self._runner.command, [("--budget", enough)]),
            )
        if fitting < len(by_seed):
            self._screen.line(
                f"{limit} is enough for {fitting} of {counted(len(by_seed), 'seed')}; the same command goes on with "
                "the others"
            )

    def say_how_long(self, design: Design) -> None:
        """Show about how long the missing runs take; if that is over an hour, show what would fit one."""
        runner, share, screen, costs = self._runner, self._share, self._screen, self.costs(design)
        if costs is None:
            return
        tasks = self._tasks(design)
        missing = [task for task in tasks if not task.is_done()]
        if not missing:
            screen.line(f"all {len(tasks)} runs are finished already")
        if not missing or not _covers(costs, missing):
            return
        estimate = self._estimate(design, costs)

        def seconds_of_run(arm: str, searching: bool = False) -> float:
            return estimate.of_run(arm, design.run_options(arm, 0)["epochs"], searching)

        runner.expected = lambda task: seconds_of_run(task.arm, task.searching)
        numbers = range(1, share.num_devices + 1)
        parts = [Share(share.out, (number, share.num_devices)).of(missing) for number in numbers]
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
            if found := differences_found(design, Gathered(design, self._runs.tasks(design)).spread()):
                screen.line(found)
        elif seconds > HOUR and len(missing) == len(tasks):
            choice, fitting = within_an_hour(
                design,
                len(self._prepared.classes),
                estimate.num_images,
                self._team.device,
                self._measure,
                reading=estimate.reading,
                progress=screen.progress,
            )
            enough = "an hour is enough for" if fitting <= HOUR else "more than an hour, but the least there is"
            screen.line(f"{enough}: {choice} ({about(fitting)}), with another --out")

    def _estimate(self, design: Design, costs: Costs) -> Estimate:
        """Return the estimate of how long runs take, for which reading a few images is timed once."""
        if self._timed is None:
            options = {**design.run_options(design.baseline, 0), **self._runner.free}
            config = resolve(self._runner.data, options, self._prepared, self._team)
            reading = measure_reading(config, self._prepared, self._team)
            parts = {part: len(self._prepared.parts.get(part, ())) for part in ("train", "val", "test")}
            self._timed = Estimate(costs, reading, parts)
        return self._timed

    def _tasks(self, design: Design) -> list[Task]:
        """Return the runs of the share, those that search for learning rates first."""
        searches = [task for tasks in self._runs.searches(design).values() for task in tasks]
        return [*self._share.of(searches), *self._share.of(self._runs.tasks(design))]


def _covers(costs: Costs, tasks: Sequence[Task]) -> bool:
    """Return whether the costs of all tasks are measured."""
    return {task.arm for task in tasks} <= {row.arm for row in costs.rows}
