"""collect: from the folders of finished runs, or their tables, to figures by arm and seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..base.errors import UserError
from ..base.files import open_file
from ..base.tables import comma_separated
from ..base.words import brief, counted, few, listed, short, suggest
from ..statistics.cells import NOT_SET
from ..statistics.columns import (
    ARM,
    BEST_EPOCH,
    BETWEEN_NOTES,
    FOLDER,
    HARDLY_BEGUN,
    MORE_EPOCHS,
    NOTES,
    SEED,
    USE,
    Reading,
    is_collected_head,
)
from ..statistics.epochs import CHOSEN, EPOCHS, LAST, Row, best_by, check_ends, check_path
from ..statistics.results import Results
from ..statistics.table import Table, add_row, read_tables
from ..statistics.within_pairs import ATTENTION
from .arms import name_runs
from .find import KNOWN, Found, find
from .learned import unlearned
from .pattern import check_arms, check_spelling, from_path, patterns
from .run import Choice, Program, Run

_MOST_TOLD = 8


@dataclass
class Collected:
    """The figures of runs.

    Attributes:
        results: By arm and seed; its notes say what was taken as what, and what was left out.
        paths: The folder or the table of each run.
        epochs: The epoch that the figures of each run are of, where it is known.
        attentions: The attentions that the settings of each arm's runs name; empty if no run names one.
        doubts: The notes that a verdict should tell; the others say how the runs were read.
    """

    results: Results = field(default_factory=Results)
    paths: dict[tuple[str, str], Path] = field(default_factory=dict)
    epochs: dict[tuple[str, str], int] = field(default_factory=dict)
    attentions: dict[str, list[str]] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Add a run."""
        check_path(self.paths.get((row.arm, row.seed), row.path), row)
        add_row(self.results, row)
        self.paths[row.arm, row.seed] = row.path
        if row.epoch is not None:
            self.epochs[row.arm, row.seed] = int(row.epoch)

    def to_csv(self) -> str:
        """Return a line for each run: arm, seed, a column for each figure, the epoch, the folder, and notes.

        A column attention_use, if a run has one, says which runs have an attention that has hardly begun; a column
        more_epochs, if an arm needs them, says why.

        The notes are those that a verdict should tell, for all runs, the same in each line.
        The column of epochs is called best_epoch where the epoch was chosen by the figures that are reported.
        """
        uses = [USE] if any(self.results.hardly_used(arm, [seed]) for arm, seed in self.paths) else []
        longer = [MORE_EPOCHS] if self.results.more_epochs else []
        metrics, chosen = self.results.metrics, CHOSEN in self.results.notes
        lines = [
            (
                arm,
                seed,
                *(repr(figures[name]) if name in figures else "" for name in metrics),
                *(HARDLY_BEGUN if self.results.hardly_used(arm, [seed]) else "" for _ in uses),
                *(self.results.more_epochs.get(arm, "") for _ in longer),
                self.epochs.get((arm, str(seed)), ""),
                self.paths[arm, str(seed)],
                BETWEEN_NOTES.join(self.doubts),
            )
            for arm in self.results.arms
            for seed in self.results.seeds
            if (figures := self.results.runs(arm).get(seed)) is not None
        ]
        head = (ARM, SEED, *metrics, *uses, *longer, BEST_EPOCH if chosen else "epoch", FOLDER, NOTES)
        return comma_separated(head, lines)


def is_collected(path: Path) -> bool:
    """Return whether a file is a table that `Collected.to_csv` wrote."""
    if not path.is_file():
        return False
    with open_file(path) as file:
        head = file.readline(100_000).strip()
    return is_collected_head(head.decode("utf-8", "replace").split(","))


def collect(paths: Sequence[Path], reading: Reading | None = None) -> Collected:
    r"""Return the figures of runs by arm and seed.

    Runs of Ultralytics, timm's train.py, Lightning's CSVLogger and whatwhere are found at any depth. Without any, the
    CSV files are read, as `read_results` does.

    Args:
        paths: Folders of runs, folders that hold them, or CSV files.
        reading: What is the arm, the seed and the metric, and which epoch counts. By default the seed is the setting
            of that name, the arm the one setting in which runs with one seed differ, and the last epoch counts.

    Raises:
        UserError: No runs, runs of two programs, a damaged file, no seed, no arm or several possible ones, two runs of
            one arm with one seed, settings that differ within pairs besides the arm, or a figure that no run has.

    Example:
        >>> from pathlib import Path
        >>> from whatwhere.experiment import Reading, collect
        >>> for arm in ("none", "cbam"):  # a CSV for each run, with a line for each epoch
        ...     _ = Path(f"{arm}_0.csv").write_text(f"epoch,accuracy\n1,0.61\n2,0.63\n")
        >>> collected = collect(sorted(Path().glob("*.csv")), Reading(arm_from="{arm}_{seed}"))
        >>> print(collected.to_csv())
        arm,seed,accuracy,epoch,folder,collect_notes
        cbam,0,0.63,2,cbam_0.csv,
        none,0,0.63,2,none_0.csv,
        <BLANKLINE>
    """
    reading = reading or Reading()
    found = find_some(paths)
    if not found.runs:
        return _collect_tables(found.tables, reading)
    table = next((path for path in paths if path in found.tables), None)
    if table is not None:
        raise UserError(f"{str(table)!r} is a table, {str(next(iter(found.runs)))!r} is a run; give one or the other")
    collected = _collect_runs(found.runs, reading)
    if found.tables:
        files = counted(len(found.tables), "CSV file")
        collected.results.notes.append(f"{files} of no run, such as {short(str(found.tables[0]))}: left out")
    return collected


def find_some(paths: Sequence[Path]) -> Found:
    """Return the runs or the tables in these paths, none of which is read yet; raise UserError where there are none."""
    if not paths:
        raise UserError("there is nothing to collect; give folders of runs, or a CSV")
    found = find(paths)
    if not found.runs and not found.tables:
        raise UserError(f"no run in {few([repr(str(path)) for path in paths])}; known are those of {KNOWN}")
    return found


def _collect_tables(tables: Sequence[Path], reading: Reading) -> Collected:
    collected, given = Collected(), patterns(reading)
    named = [(path, from_path(path.with_suffix(""), given)) for path in tables]
    check_arms(named)
    read = [Table(path, names.get(ARM), names.get(SEED)) for path, names in named]
    for row in read_tables(read, reading, collected.results.notes):
        collected.add(row)
    check_spelling((arm, path) for (arm, _), path in collected.paths.items())
    collected.doubts = [note for note in collected.results.notes if note not in (CHOSEN, LAST)]
    return collected


def _collect_runs(folders: Mapping[Path, Program], reading: Reading) -> Collected:
    program = next(iter(folders.values()))
    if program.chooses_epoch and reading.epoch is not None:
        raise UserError(
            f"runs of {program.name} report one epoch, which their training chose on its validation images; leave out "
            "--epoch"
        )
    metric, lower = best_by(reading)
    runs = [program.read(folder, Choice(metric, lower)) for folder in folders]
    known = {name for run in runs for name in run.settings} | {EPOCHS, ATTENTION}
    known |= {name.rpartition(".")[0] for name in known}
    for name in sorted(reading.may_differ - known):
        raise UserError(f"--may-differ {brief(name)} is no setting of the runs{suggest(name, sorted(known))}")
    figures = list(dict.fromkeys(name for run in runs for name in run.curve.last))
    if figures and reading.metric not in (None, *figures):
        raise UserError(
            f"no run has the figure {brief(reading.metric)}{suggest(reading.metric, figures)}; there are: "
            f"{listed(figures)}"
        )
    collected = Collected()
    notes, doubts = collected.results.notes, collected.doubts
    notes.append(f"{counted(len(runs), 'run')} of {program.name}")
    notes += name_runs(runs, program, reading, doubts)
    collected.attentions = _attentions(runs)
    if program.attention_file and not collected.attentions:
        notes.append(f"no run has an attention that whatwhere put in ({program.attention_file})")
    again = _find_faults(runs, program, reading, doubts)
    ends = {
        f"{run.arm}, seed {run.seed}": run.num_epochs - run.epochs_without(reading.metric)
        for run in runs
        if not run.fault and not run.stopped_early
    }
    check_ends(ends, reading)
    if len(set(ends.values())) > 1:
        doubts.append(f"the runs end at different epochs, {min(ends.values())} to {max(ends.values())}, as asked")
    if program.chooses_epoch:
        notes.append("the epoch of each run is the one that its training chose on its validation images")
    if metric or any(run.is_chosen for run in runs):
        notes.append(CHOSEN)
    elif not program.chooses_epoch:
        notes.append(LAST)
    notes += doubts
    collected.results.more_epochs = _unlearned(runs)
    for run in runs:
        if run in again or (run.fault and (run.arm, run.seed) in collected.paths):
            continue
        curve = run.curve
        at_best = bool(metric) or program.chooses_epoch
        found = {} if run.fault else curve.best if at_best else curve.last
        if not at_best and EPOCHS not in reading.may_differ:
            found = {name: value for name, value in found.items() if name not in curve.ended}
        last = max(curve.epochs, default=0) - run.epochs_without(reading.metric)
        epoch = None if run.fault else curve.best_epoch if at_best else last
        collected.add(Row(run.arm, run.seed, run.path, 0, epoch, {**found}, has_hardly_begun=run.has_hardly_begun))
    return collected


def _unlearned(runs: Sequence[Run]) -> dict[str, str]:
    """Return, by arm, why it needs more epochs before it can be compared, as its runs of whatwhere tell."""
    found = {}
    for arm in dict.fromkeys(run.arm for run in runs):
        learned = [run.learned for run in runs if run.arm == arm and run.learned and not run.fault]
        if why := unlearned([result for result, _ in learned], [curve for _, curve in learned]):
            found[arm] = why
    return found


def _attentions(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the attentions of each arm; nothing if no run has one."""
    names: dict[str, dict[str, None]] = {}
    for run in runs:
        names.setdefault(run.arm, {})[run.settings.get(ATTENTION, NOT_SET)] = None
    is_told = any({*found} != {NOT_SET} for found in names.values())
    return {arm: [*found] for arm, found in names.items()} if is_told else {}


def _find_faults(runs: Sequence[Run], program: Program, reading: Reading, notes: list[str]) -> list[Run]:
    """Note why runs count as missing; return those of them that were trained again.

    Raises:
        UserError: No run has figures.
    """
    for run in runs:
        notes += run.notes
        run.fault = run.fault or _fault(run, reading, notes)
    broken = [run for run in runs if run.fault]
    told = "; ".join(f"{short(str(run.path), 60)} {run.fault}" for run in broken[:_MOST_TOLD])
    told += f"; and {len(broken) - _MOST_TOLD:,} more" if len(broken) > _MOST_TOLD else ""
    if any(_is_unfinished(run) and run.curve.epochs for run in broken):
        told += f" (--may-differ {EPOCHS} counts runs that ended early)"
    if len(broken) == len(runs):
        raise UserError(f"no run has figures to compare: {told}")
    complete = {(run.arm, run.seed) for run in runs if not run.fault}
    again = [run for run in broken if (run.arm, run.seed) in complete]
    if broken:
        notes.append(f"runs that count as missing: {told}")
    if again:
        notes.append(f"missing runs that were trained again: {few([str(run.path) for run in again], 6)}")
    idle = [str(run.path) for run in runs if not run.fault and run.has_hardly_begun]
    if idle:
        notes.append(
            f"at the end the attention had hardly begun, as its mixing factors were near 0: {few(idle, 4)}; train for "
            "more steps before you judge it"
        )
    early = [run for run in runs if not run.fault and run.stopped_early and run.num_epochs < (run.epochs_asked or 0)]
    if early:
        ends = few([f"{short(str(run.path), 60)} ({counted(run.num_epochs, 'epoch')})" for run in early], 6)
        notes.append(f"runs that {program.name} ended early, as its settings ask: {ends}")
    return again


def _is_unfinished(run: Run) -> bool:
    return run.epochs_asked is not None and run.num_epochs < run.epochs_asked and not run.stopped_early


def _fault(run: Run, reading: Reading, notes: list[str]) -> str:
    """Return why a run counts as missing, as part of a sentence; "" where it counts. Notes say what else is odd."""
    if _is_unfinished(run):
        unfinished = f"ended after {run.num_epochs} of {counted(run.epochs_asked or 0, 'epoch')}"
        if EPOCHS not in reading.may_differ:
            return unfinished
        notes.append(f"{str(run.path)!r} {unfinished}")
    curve, metric = run.curve, reading.metric
    taken = curve.best if reading.epoch == "best" else curve.last
    if metric is not None and metric not in taken:
        return f"has no {metric}"
    ended = {name: f"has no {name} after epoch {curve.last_epochs[name]}" for name in sorted(curve.ended)}
    if metric in ended and EPOCHS not in reading.may_differ:
        return ended[metric]
    notes += [f"{str(run.path)!r} {text}" for text in ended.values()]
    if metric is not None and not math.isfinite(taken[metric]):
        return f"diverged: {metric} is not finite in its last epoch"
    dead = [name for name, value in curve.last.items() if not math.isfinite(value)]
    if dead:
        notes.append(f"{str(run.path)!r} diverged: {few(dead)} not finite in its last epoch")
    return ""
