"""Which column of a table is the arm, which the seed, which the epoch: by name, as programs write them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..base.errors import UserError
from ..base.words import brief, listed, suggest
from .cells import MISSING, Line, is_like_a_number
from .wide import EXAMPLE, find_arms, is_unnamed

ARM, SEED = "arm", "seed"
FOLDER = "folder"  # the column of `whatwhere collect` that says where a run lies
# its last column, by which it is known: what a verdict should tell, the same in each line
NOTES, BETWEEN_NOTES = "collect_notes", " | "
COMPARED = "compare_notes"  # the same in a table of `whatwhere compare`
MORE_EPOCHS = "more_epochs"  # column of both: why an arm needs more epochs before it can be compared
USE, HARDLY_BEGUN = "attention_use", "hardly begun"  # its column for runs with attention near its start
BEST_EPOCH = "best_epoch"  # of tables that `whatwhere collect --epoch best` wrote
_ARMS = (
    *("model", "variant", "method", "attention", "architecture", "arch", "network", "backbone", "algorithm", "config"),
    *("configuration", "setting", "condition", "treatment", "group", "模型", "方法", "网络", "变体"),
)
_ARMS_IF_REPEATED = ("name", "experiment", "run")
_SEEDS = (
    *("random_seed", "random_state", "manual_seed", "trial", "repeat", "repetition", "replicate", "rep", "fold"),
    *("种子", "随机种子", "run", "run_id", "id"),
)
_EPOCHS = (
    *("epoch", "轮次", "last_epoch", "final_epoch", "current_epoch", "epochs_trained", "epochs_run", "trained_epochs"),
    *("completed_epochs", "epochs_completed", "step", "global_step", "iteration", "iter", "training_iteration"),
    "迭代次数",
)
_STATES = ("state", "status", "run_state", "run_status", "状态")
_IS_DONE = ("done", "finished", "completed")  # states where all cells say yes or no
_YES_OR_NO = {"true", "false", "1", "0", "yes", "no", "y", "n", "是", "否", ""}
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z][a-z])")  # where a word begins in learningRate; mAP50 is one
_SETTINGS = {
    *("lr", "lr0", "base_lr", "learning_rate", "batch", "batch_size", "imgsz", "img_size", "image_size", "input_size"),
    *("epochs", "num_epochs", "num_epoch", "max_epochs", "optimizer", "weight_decay", "momentum"),
    *("warmup_epochs", "pretrained"),
    *("学习率", "批大小", "批次大小", "批量大小", "轮数", "训练轮数"),
    *("优化器", "权重衰减", "动量", "输入尺寸", "图像尺寸"),
}
# where a column tells the arm, or all values are one: else each of them may be an arm, such as mixup
_SETTINGS_BESIDE_AN_ARM = {
    *("init_lr", "initial_lr", "min_lr", "opt", "wd", "bs", "batchsize", "train_batch_size", "accumulate"),
    *(
        "grad_accum_steps",
        "imsize",
        "resolution",
        "crop_size",
        "crop_pct",
        "n_epochs",
        "nepochs",
        "total_epochs",
        "max_steps",
    ),
    *("warmup", "warmup_steps", "scheduler", "lr_scheduler", "sched", "patience", "freeze", "amp", "init"),
    *("num_train", "n_train", "train_size", "train_images", "clip_grad", "grad_clip"),
    *("augment", "augmentation", "aug", "auto_augment", "aa", "mixup", "cutmix", "label_smoothing", "smoothing"),
    *("dropout", "drop_rate", "drop_path", "drop_path_rate"),
}
# settings that name the images of a run
DATA = re.compile(r"(data|data_?sets?)(_?(name|dir|path|root))?|domain|task|benchmark|corpus", re.IGNORECASE)
_FOLD = r"(cv|k)?_?folds?(_?(id|number|no|nr|index|idx))?"
_NAME_OF_SEED = re.compile(r"((seed|run|trial|fold|repeat|rep|s|r)_?)?[0-9]+(\.0)?")
FOLDS = (
    "the seeds are folds: those of one cross-validation share most of their training images, so the interval is too "
    "narrow, and a difference is claimed too often (Dietterich, Neural Computation 10, 1998); other seeds, each with a "
    "split of its own, would be fair"
)
# what programs write before settings: MLflow, Lightning, W&B, TensorBoard, Optuna, argparse
_SETTING = re.compile(r"(params|parameters|config|hparams|hyper_?parameters|args|cfg|user_attrs)[./]")
# and what may stand before others too, so that the rest must be known
_BEFORE = re.compile(
    r"((params?|parameters?|config|cfg|hparams?|hyper_?param(eter)?s?|args|user_attrs|optim(izer)?|train(er|ing)?)[./_]+)+"
)


@dataclass(frozen=True)
class Reading:
    """How to read tables and runs, as the user asked.

    Attributes:
        metric: The figure to judge by.
        lower_is_better: Whether lower is better; None where the name of the metric tells.
        epoch: Which epoch of a run with several is taken; None takes the last, and a note says so.
        arm_column, seed_column: The column, or the setting, with the arm and with the seed.
        arm_from, seed_from: The pattern of the path with the arm and with the seed.
        may_differ: Settings that may differ within a pair; "epochs" is the number of epochs.
    """

    metric: str | None = None
    lower_is_better: bool | None = None
    epoch: Literal["last", "best"] | None = None
    arm_column: str | None = None
    seed_column: str | None = None
    arm_from: str | None = None
    seed_from: str | None = None
    may_differ: frozenset[str] = frozenset()


def is_collected_head(head: Sequence[str]) -> bool:
    """Return whether a table with these columns is one that `whatwhere collect` wrote."""
    return [*head[:2], *head[-2:]] == [ARM, SEED, FOLDER, NOTES] and head[-3] in ("epoch", BEST_EPOCH)


def has_notes(head: Sequence[str]) -> bool:
    """Return whether the last column of a table is what a verdict should tell."""
    return is_collected_head(head) or [*head[:2], *head[-1:]] == [ARM, SEED, COMPARED]


def may_differ_note(names: list[str]) -> str:
    """Return the sentence about settings that differ within pairs as the user allowed."""
    return (
        f"within pairs these settings differ besides the arm, as asked: {listed(names)}; the verdict is "
        "about these settings and the arm together"
    )


@dataclass
class Roles:
    """The columns of a table by what they are, as positions.

    Attributes:
        arm, seed: None where the path of the file tells.
        epoch: None where the table has none.
        states: Columns that say whether a run finished, in the words of W&B and MLflow.
        use: Whether the attention of a run has hardly begun, as `whatwhere collect` writes it.
        more_epochs: Why the arm needs more epochs before it can be compared.
        settings: Columns with settings of the runs, by the names that MLflow and others give them, or by usual ones.
        no_figures: Columns of numbers that are no figures.
        arms: The columns of figures in a table with one column for each arm; else empty.
        notes: What was understood, as sentences.
    """

    arm: int | None = None
    seed: int | None = None
    epoch: int | None = None
    states: list[int] = field(default_factory=list)
    use: int | None = None
    more_epochs: int | None = None
    settings: list[int] = field(default_factory=list)
    no_figures: set[int] = field(default_factory=set)
    arms: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def taken(self) -> set[int]:
        """All columns that hold no figures."""
        return {column for column in (self.arm, self.seed) if column is not None} | self.no_figures


def find_roles(
    head: list[str],
    lines: Sequence[Line],
    path: Path,
    reading: Reading,
    *,
    needs_arm: bool = True,
    needs_seed: bool = True,
) -> Roles:
    """Return what each column is.

    The arm is the column that was asked for, else the one called arm, else the one with another usual name; the seed
    likewise. A column with one value is no arm and no seed, and neither is a seed one whose values occur with one arm
    only. A table without a column of arms may have a column of figures for each arm.

    Raises:
        UserError: No column, or several, can be the arm or the seed.
    """
    columns = _Columns.of(head, lines, path)
    names, cells, roles = columns.names, columns.cells, Roles()
    # what the user named is what he says
    free = [c for c, name in enumerate(head) if name not in (reading.metric, reading.arm_column, reading.seed_column)]
    _find_told(roles, columns, free)
    seed = _given(SEED, reading.seed_column, head, names, path) if needs_seed else None
    if needs_arm:
        roles.arm = _given(ARM, reading.arm_column, head, names, path)
        if roles.arm is None:
            roles.arm = _likely_arm(columns, seed)
            if roles.arm is not None:
                roles.notes.append(f"the column {brief(head[roles.arm])} is taken as the arm")
    hint = ""
    if needs_seed:
        is_said = seed is not None and reading.seed_column is not None
        if seed is None or (not is_said and _is_one_for_all(seed, roles, columns)):
            likely, hint = _likely_seed(columns, roles.arm)
            seed = seed if likely is None else likely
            if likely is not None:
                roles.notes.append(f"the column {brief(head[likely])} is taken as the seed")
    roles.seed = seed
    if seed is not None and re.fullmatch(_FOLD, names[seed]):
        roles.notes.append(FOLDS)
    _find_settings(roles, columns, reading.metric)
    if needs_arm and roles.arm is None and seed is not None:
        find_arms(roles, head, cells, reading.metric, path)
    is_needed = {ARM: needs_arm and roles.arm is None and not roles.arms, SEED: needs_seed and seed is None}
    if missing := [name for name, needed in is_needed.items() if needed]:
        raise _not_found(missing, head, names, hint, path)
    return roles


@dataclass(frozen=True)
class _Columns:
    """The columns of a table, by position.

    Attributes:
        head: Their names as they stand.
        names: Their names in one spelling, without what programs write before settings: learning_rate.
        rests: These without what else may stand before them: lr of optimizer.lr, epoch of train/epoch.
    """

    head: list[str]
    names: list[str]
    rests: list[str]
    lines: Sequence[Line]
    path: Path

    @classmethod
    def of(cls, head: list[str], lines: Sequence[Line], path: Path) -> _Columns:
        spelt = [re.sub(r"[ -]", "_", _CAPITAL.sub("_", name).lower()).lstrip("_") for name in head]
        names = [_SETTING.sub("", name, count=1) for name in spelt]
        return cls(head, names, [_BEFORE.sub("", name, count=1) for name in names], lines, path)

    def cells(self, column: int) -> list[str]:
        # a line that is too short is refused later
        return [row[column].strip() if len(row) > column else "" for _, row in self.lines]

    def only(self, columns: list[int], what: str) -> int | None:
        """Return the only column, of several the only one that varies; None where there is none."""
        if len(columns) > 1:
            columns = [column for column in columns if len(set(self.cells(column))) > 1]
        if len(columns) > 1:
            raise UserError(
                f"{str(self.path)!r} has several columns that may be the {what}: "
                f"{listed([brief(self.head[c]) for c in columns])}; choose one with --{what}-column"
            )
        return columns[0] if columns else None


def _likely_arm(columns: _Columns, seed: int | None) -> int | None:
    """Return the column with a usual name of arms; None where there is none."""
    names, free = columns.names, [column for column in range(len(columns.head)) if column != seed]
    likely = [column for column in free if names[column] in _ARMS]
    varying = [column for column in free if len(set(columns.cells(column))) > 1]
    likely = likely or [column for column in varying if columns.rests[column] in (ARM, *_ARMS)]
    found = columns.only(likely, ARM)
    if found is not None:
        return found
    # a name that each run has for itself is no arm
    repeated = [column for column in free if names[column] in _ARMS_IF_REPEATED]
    repeated = [c for c in repeated if 1 < len(set(columns.cells(c))) < len(columns.lines)]
    return columns.only([c for c in repeated if not is_like_a_number(columns.cells(c)[0])], ARM)


def _is_one_for_all(seed: int, roles: Roles, columns: _Columns) -> bool:
    """Return whether all runs of an arm have one seed, so that another column must count them."""
    if roles.arm is None or roles.epoch is not None or len(set(columns.cells(seed))) > 1:
        return False
    return len(columns.lines) > len(set(columns.cells(roles.arm)))


def _likely_seed(columns: _Columns, arm: int | None) -> tuple[int | None, str]:
    """Return the column with a usual name of seeds, None where there is none; and why one with such a name is none."""
    free, hint = [column for column in range(len(columns.head)) if column != arm], ""
    likely = [column for column in free if columns.names[column] in _SEEDS]
    likely = likely or [c for c in free if columns.rests[c] in (SEED, *_SEEDS) and columns.names[c] != SEED]
    if arm is not None and likely:
        hint = f", and {brief(columns.head[likely[0]])} has no value that two arms share"
        likely = [column for column in likely if _makes_pairs(columns.cells(arm), columns.cells(column))]
    return columns.only(likely, SEED), hint


def _find_told(roles: Roles, columns: _Columns, free: Sequence[int]) -> None:
    """Find the columns, among those that are free, that tell how far a run came, and what else a program notes."""
    head, names = columns.head, columns.names
    epochs = [
        column for known in _EPOCHS for called in (names, columns.rests) for column in free if called[column] == known
    ]
    roles.epoch = next(iter(epochs), None)
    roles.states = [
        column
        for column in free
        if names[column] in _STATES
        or (names[column] in _IS_DONE and {cell.lower() for cell in columns.cells(column)} <= _YES_OR_NO)
    ]
    roles.no_figures |= {*epochs, *roles.states, *(column for column in free if names[column] == BEST_EPOCH)}
    roles.use = next((column for column in free if head[column] == USE), None)
    roles.more_epochs = next((c for c, name in enumerate(head) if name == MORE_EPOCHS and has_notes(head)), None)
    roles.no_figures |= {column for column in (roles.use, roles.more_epochs) if column is not None}


def _is_constant(cells: Sequence[str]) -> bool:
    """Return whether all cells are one value; an arm whose runs all failed has none."""
    return len(set(cells)) == 1 and cells[0].lower() not in MISSING


def _find_settings(roles: Roles, columns: _Columns, wanted: str | None) -> None:
    """Find the columns with settings, by what stands before their names, or by usual names."""
    head, cells = columns.head, columns.cells
    known = _SETTINGS | (_SETTINGS_BESIDE_AN_ARM if roles.arm is not None else set())
    by_name = [
        column
        for column, name in enumerate(columns.names)
        if {name, columns.rests[column]} & known
        or DATA.fullmatch(name)
        or (name in _SETTINGS_BESIDE_AN_ARM and _is_constant(cells(column)))
    ]
    by_name = [] if is_collected_head(head) else by_name
    of_runs = [cells(column) for column in (roles.arm, roles.seed) if column is not None]

    def is_one_a_run(column: int) -> bool:
        # a rate that falls during a run is no setting
        runs = list(zip(*of_runs, strict=True)) or [()] * len(cells(column))
        return len({*zip(runs, cells(column), strict=True)}) == len({*runs})

    roles.settings = [
        column
        for column, name in enumerate(head)
        if (_SETTING.match(name.lower()) or (column in by_name and name != wanted and is_one_a_run(column)))
        and column not in (roles.arm, roles.seed, roles.epoch)
    ]
    roles.no_figures |= {column for column in roles.settings if head[column] != wanted}


def _not_found(missing: Sequence[str], head: list[str], names: list[str], hint: str, path: Path) -> UserError:
    what = " and ".join(f"no column {brief(name)}{suggest(name, names)}" for name in missing)
    others = [name for name in names if not _NAME_OF_SEED.fullmatch(name)]
    if SEED in missing and len(names) > 2 and len(others) == 1 and others[0] in (ARM, *_ARMS, *_ARMS_IF_REPEATED):
        return UserError(
            f"{str(path)!r} has a column for each seed; turn it, so that it has a line for each seed and a column for "
            f"each arm, or a line for each run, such as {EXAMPLE}"
        )
    if SEED in missing and is_unnamed(head[0]):
        return UserError(
            f"{str(path)!r} has no column 'seed'; if its first column, which has no name, holds the seeds, call it seed"
        )
    if any(is_like_a_number(name) and "." in name for name in head):
        return _looks_like_a_run(head, what, path)
    there = listed(list(map(brief, head)))
    options = " and ".join(f"--{name}-column" for name in missing)
    return UserError(
        f"{str(path)!r} has {what}; it has {there}{hint}; name {'one' if len(missing) == 1 else 'them'} with "
        f"{options}, or write lines such as {EXAMPLE}"
    )


def check_is_head(head: list[str], roles: Roles, path: Path) -> None:
    """Raise UserError where the names of arm and seed are cells of a run: else its first run would be lost."""
    given = [head[column] for column in (roles.arm, roles.seed) if column is not None]
    numbers = [name for name in head if is_like_a_number(name)]
    # pandas numbers columns without names
    is_counted = any(numbers == [str(first + place) for place in range(len(numbers))] for first in (0, 1))
    if any(map(is_like_a_number, given)) and not (is_counted and all(map(is_like_a_number, given))):
        raise _looks_like_a_run(head, "no head", path)


def _looks_like_a_run(head: list[str], what: str, path: Path) -> UserError:
    return UserError(
        f"{str(path)!r} has {what}: its first line, {listed(list(map(brief, head)))}, looks like a run; write a head "
        "such as arm,seed,accuracy above it"
    )


def _given(what: str, asked: str | None, head: list[str], names: list[str], path: Path) -> int | None:
    """Return the column that was asked for, else the one that is called `what`; None where there is none."""
    if asked is None:
        return names.index(what) if what in names else None
    if asked not in head:
        raise UserError(
            f"{str(path)!r} has no column {brief(asked)}{suggest(asked, head)}; it has {listed(list(map(brief, head)))}"
        )
    return head.index(asked)


def _makes_pairs(arms: list[str], seeds: list[str]) -> bool:
    """Return whether a seed occurs with two arms; the number of a run in a data base does not."""
    by_seed = defaultdict(set)
    for arm, seed in zip(arms, seeds, strict=True):
        by_seed[seed].add(arm)
    return any(len(arms) > 1 for arms in by_seed.values())
