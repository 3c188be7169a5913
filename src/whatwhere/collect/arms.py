"""The arm and the seed of each run, from its path or its settings, and what else differs within pairs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..base.errors import UserError
from ..base.words import brief, counted, few, listed, suggest
from ..statistics.cells import NOT_SET
from ..statistics.columns import Reading
from ..statistics.derived import as_number, odd_seed
from ..statistics.within_pairs import (
    ATTENTION,
    all_settings,
    attention_of_arms,
    check_data,
    check_pairs,
    differing_settings,
    group_of,
    is_named,
    values_of,
)
from .pattern import check_arms, check_spelling, from_path, patterns
from .run import Program, Run

_SEEDS = ("seed", "random_seed", "random_state", "manual_seed", "seed_everything")

_CALLED_ATTENTION = re.compile("attention|attn", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9.e+-]+|true|false")
_NOT_FINITE = {"nan", "inf", "infinity"}


def name_runs(runs: Sequence[Run], program: Program, reading: Reading, doubts: list[str]) -> list[str]:
    """Name the arm and the seed of each run; return what was taken as what, as sentences.

    `doubts` get those that a verdict should tell, such as which settings differ within pairs.

    The arm is the setting that was asked for, the text in the path, or else the one setting that differs between runs
    with one seed.

    Raises:
        UserError: No seed, no arm, several settings that may be the arm, or settings that differ within a pair besides.
    """
    given = patterns(reading)
    found = [from_path(run.path, given) for run in runs]
    check_arms([(run.path, names) for run, names in zip(runs, found, strict=True)])
    seed_key = None if "seed" in found[0] else _seed_key(runs, reading)
    for names, run in zip(found, runs, strict=True):
        run.seed = names["seed"] if seed_key is None else run.settings[seed_key]
        run.arm = names.get("arm", "")
    if seed_key is None:
        _check_seeds_of_paths(runs, reading)
    else:
        _check_seeds(runs, seed_key)
    doubts += program.complete(runs)
    not_compared = program.ignored if seed_key is None else program.ignored | {seed_key}
    varying = differing_settings(runs)
    if "arm" in found[0]:
        keys = attention_of_arms(runs, varying)
    else:
        keys = _arm_keys(runs, [key for key in varying if key not in not_compared], reading)
        for label, run in zip(_labels(runs, keys), runs, strict=True):
            run.arm = label
    check_spelling((run.arm, run.path) for run in runs)
    sources = ["the path" if "arm" in found[0] else f"the setting {group_of(keys[0])}"]
    sources += ["the path" if seed_key is None else f"the setting {seed_key}"]
    if seed_key is None:
        doubts += _same_seeds(runs)
    check_pairs(runs, [key for key in varying if key not in {*not_compared, *keys}], reading, doubts)
    check_data(runs, varying, doubts)
    _tell_settings(runs, program, {*not_compared, *keys}, doubts, by_path="arm" in found[0])
    notes = [f"the arm is taken from {sources[0]}, the seed from {sources[1]}"]
    hidden = sorted(key for key in program.ignored if len({run.settings.get(key) for run in runs}) > 1)
    if hidden:
        notes.append(f"settings that name, store or place a run were not compared: {listed(hidden)}")
    return notes


def _tell_settings(
    runs: Sequence[Run], program: Program, not_compared: set[str], doubts: list[str], *, by_path: bool
) -> None:
    """Note what the settings, but for the arm, the seed and those that change no figure, do not tell."""
    varying = {*differing_settings(runs)}
    compared = [key for key in all_settings(runs) if key not in {*not_compared, *_SEEDS}]
    if not compared:
        doubts.append("the runs hold no settings besides arm and seed, so none were compared")
    elif by_path and not varying - (not_compared & program.ignored):
        alike = "no recorded setting differs between the arms; only their paths tell them apart"
        doubts.append(f"{alike}; {program.if_alike}" if program.if_alike else alike)
    between = [
        key for key in compared if key not in varying and len({run.settings.get(key, NOT_SET) for run in runs}) > 1
    ]
    if between:
        doubts.append(f"settings that differ between seeds, and are the same within each pair: {listed(between)}")


def _seed_settings(runs: Sequence[Run]) -> list[str]:
    """Return the settings that may be the seed: those called so, of several the ones that differ."""
    possible = [key for key in all_settings(runs) if key.rpartition(".")[2] in _SEEDS]
    differing = [key for key in possible if len({run.settings.get(key) for run in runs}) > 1]
    return differing or possible[:1] if len(possible) > 1 else possible


def _check_seeds(runs: Sequence[Run], key: str) -> None:
    """Raise UserError if the setting `key` of a run is no seed: a list, nan, 0.5, a word where others have numbers."""
    odd = odd_seed([run.seed for run in runs])
    for run in runs:
        number = as_number(run.seed)
        is_list_or_fraction = run.seed.startswith("[") or (number is not None and number % 1 != 0)
        if is_list_or_fraction or run.seed.lower().lstrip("+-") in _NOT_FINITE or (odd and odd[0] == run.seed):
            raise UserError(
                f"the setting {key} in {str(run.path)!r} is {brief(run.seed)}, which is no seed; leave that run "
                "out, or name the setting with the seed as --seed-column"
            )


def _check_seeds_of_paths(runs: Sequence[Run], reading: Reading) -> None:
    """Raise UserError if the paths of two runs name one seed, and their settings two."""
    for key in _seed_settings(runs):
        of_paths: dict[str, Run] = {}
        for run in runs if not is_named(key, reading.may_differ) else ():
            first = of_paths.setdefault(run.seed, run)
            own, other = (one.settings.get(key, NOT_SET) for one in (run, first))
            if own != other:
                raise UserError(
                    f"{str(first.path)!r} and {str(run.path)!r} are both seed {run.seed} by their paths, but "
                    f"{other} and {own} by their setting {key}; leave out the one with the wrong name, or take "
                    "the seed from the settings: no {seed} in the pattern"
                )


def _same_seeds(runs: Sequence[Run]) -> list[str]:
    """Return a sentence where runs of one arm have one seed in their settings, and several by their paths.

    Raises:
        UserError: Two of them have the same figures: they are one run.
    """
    for key in _seed_settings(runs):
        groups = defaultdict[tuple[str, str], list[Run]](list)
        for run in runs:
            if key in run.settings:
                groups[run.arm, run.settings[key]].append(run)
        for (_, seed), group in groups.items():
            by_figures: dict[tuple[tuple[str, float], ...], Run] = {}
            for run in group:
                first = by_figures.setdefault(tuple(run.curve.last.items()), run)
                # one figure may be the same by chance, as an accuracy on few images
                if first.seed != run.seed and len(run.curve.last) > 1:
                    raise UserError(
                        f"{str(first.path)!r} and {str(run.path)!r} both have {key} {seed} in their settings, and the "
                        "same figures: they are one run trained twice. Train each run of an arm with another seed"
                    )
        same = [seed for (_, seed), group in groups.items() if len({run.seed for run in group}) > 1]
        if same:
            return [
                f"runs of one arm whose paths name different seeds have the same {key} in their settings "
                f"({few(list(dict.fromkeys(same)), 4)}): they were trained with one seed, so they differ only by "
                "what that seed does not fix, and the verdict is not about other seeds"
            ]
    return []


def _seed_key(runs: Sequence[Run], reading: Reading) -> str:
    """Return the setting with the seed."""
    keys = all_settings(runs)
    possible = [reading.seed_column] if reading.seed_column is not None else _seed_settings(runs)
    how = "name the setting with --seed-column, or where it stands in the path, such as --seed-from 'seed-{seed}'"
    if len(possible) > 1:
        raise UserError(f"several settings may be the seed, {listed(possible)}; choose one with --seed-column")
    if not possible:
        raise UserError(f"no setting of the runs is called seed, for example in {str(runs[0].path)!r}; {how}")
    lacking = next((run for run in runs if run.settings.get(possible[0], NOT_SET) in ("", NOT_SET)), None)
    if lacking is not None:
        hint = suggest(possible[0], keys) if possible[0] not in keys else ""
        raise UserError(f"the run in {str(lacking.path)!r} has no setting {brief(possible[0])}{hint}; {how}")
    return possible[0]


def _arm_keys(runs: Sequence[Run], varying: list[str], reading: Reading) -> list[str]:
    """Return the setting that is the arm; with the options of an attention, or all that begin with its name."""
    asked, keys = reading.arm_column, all_settings(runs)
    if asked is not None:
        found = [key for key in keys if asked in (key, group_of(key)) or key.startswith(f"{asked}.")]
        if not found:
            raise UserError(f"no run has a setting {brief(asked)}{suggest(asked, keys)}; name another as --arm-column")
        return _with_name(sorted(key for key in found if key in varying) or found, runs)
    groups = defaultdict(list)
    for key in varying:
        if not is_named(key, reading.may_differ):
            groups[group_of(key)].append(key)
    if len(groups) == 1:
        return _with_name(sorted(next(iter(groups.values()))), runs)
    if not groups:
        raise UserError(
            f"{counted(len(runs), 'run')} and no setting that differs but the seed: this is one arm; give the runs of "
            "other arms too, or name the arm by the path, such as --arm-from '{arm}-*'"
        )
    named = few([f"{name} ({values_of(runs, keys[0])})" for name, keys in groups.items()], 6)
    raise UserError(
        f"several settings differ between the runs with one seed, {named}; choose the one that is the arm with "
        "--arm-column, and name those that may differ besides with --may-differ"
    )


def _with_name(keys: list[str], runs: Sequence[Run]) -> list[str]:
    """Return the settings of an arm; before options of an attention its name, though all may have the same."""
    is_option = group_of(keys[0]) == ATTENTION and ATTENTION not in keys
    return [ATTENTION, *keys] if is_option and any(run.settings.get(ATTENTION) for run in runs) else keys


def _labels(runs: Sequence[Run], keys: list[str]) -> list[str]:
    """Return the value of the first setting as the name of each arm; with the others that differ, where two are one."""
    values = [tuple(run.settings.get(key, NOT_SET) or NOT_SET for key in keys) for run in runs]
    firsts = dict.fromkeys(value[0] for value in values)
    last = keys[0].rpartition(".")[2]
    names = {first: Path(first).name or first for first in firsts}
    if len(set(names.values())) < len(names):  # the paths of two models may end alike
        names = {first: first for first in firsts}
    # "none" is the name of a baseline: only an attention that is not there is one
    is_number = all(_NUMBER.fullmatch(first) for first in firsts if first != NOT_SET)
    if is_number or not _CALLED_ATTENTION.search(last):
        names |= {first: f"{last}={first}" for first in firsts if is_number or first == NOT_SET}
    labels = []
    for value in values:
        alike = [other for other in values if other[0] == value[0]]
        differing = [index for index in range(1, len(keys)) if len({other[index] for other in alike}) > 1]
        options = ", ".join(
            f"{keys[index].rpartition('.')[2]}={value[index]}" for index in differing if value[index] != NOT_SET
        )
        labels.append(f"{names[value[0]]} ({options})" if options else names[value[0]])
    return labels
