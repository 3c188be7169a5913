"""The arm and the seed of each run, from its settings or from its path, and what else differs within pairs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..base.errors import UserError
from ..base.words import brief, counted, few, suggest
from ..statistics.columns import Reading
from ..statistics.within_pairs import (
    ATTENTION,
    NOT_SET,
    all_settings,
    check_pairs,
    differing_settings,
    group_of,
    is_named,
    values_of,
)
from .run import Program, Run

_SEEDS = ("seed", "random_seed", "random_state", "manual_seed", "seed_everything")

_CALLED_ATTENTION = re.compile("attention|attn", re.IGNORECASE)
_NUMBER = re.compile(r"[\d.e+-]+|true|false")


class Pattern:
    """Where the names of arm and seed stand in a path: `{arm}-{seed}`, `{arm}/version_{seed}`, `seed{seed}/*`.

    A pattern is compared with the last names of a path. `{arm}` is any text, `{seed}` a whole number, `*` anything
    within a name.

    Raises:
        UserError: `what` ("arm" or "seed") is not in the pattern, or something else is in braces.
    """

    def __init__(self, text: str, what: str) -> None:
        self.text, option = text, f"--{what}-from"
        fields = re.findall(r"\{.*?\}|[{}]", text)
        if f"{{{what}}}" not in fields or len(fields) != len({*fields} & {"{arm}", "{seed}"}):
            raise UserError(
                f"{option} {brief(text)} must hold {{{what}}} once, and nothing else in braces but "
                f"{'{seed}' if what == 'arm' else '{arm}'}; for example {option} '{{arm}}-{{seed}}'"
            )
        self.names = [name for name in text.split("/") if name not in ("", ".")]
        known = {"*": "[^/]*", "{arm}": "(?P<arm>[^/]+)", "{seed}": r"(?<!\d)(?P<seed>\d+)(?!\d)"}
        parts = re.split(r"(\*|\{arm\}|\{seed\})", "/".join(self.names))
        self._pattern = re.compile("".join(known.get(part) or re.escape(part) for part in parts))

    def match(self, path: Path) -> dict[str, str]:
        """Return the arm and the seed in a path, by these names.

        Raises:
            UserError: The path has another form.
        """
        end = "/".join(path.absolute().parts[-len(self.names) :])
        found = self._pattern.fullmatch(end)
        if found is None:
            raise UserError(
                f"{end!r} is not of the form {brief(self.text)}; {{arm}} is any text, {{seed}} a whole number, * "
                "anything; leave that run out, or give another pattern with --arm-from or --seed-from"
            )
        names = found.groupdict()
        if "seed" in names:
            names["seed"] = str(int(names["seed"]))
        return names


def patterns(reading: Reading) -> list[Pattern]:
    """Return the patterns that were asked for."""
    asked = (("arm", reading.arm_from), ("seed", reading.seed_from))
    for what, text in asked:
        if text is not None and getattr(reading, f"{what}_column") is not None:
            raise UserError(f"--{what}-from and --{what}-column both say where the {what} is; give one of them")
    return [Pattern(text, what) for what, text in asked if text is not None]


def from_path(path: Path, given: Iterable[Pattern]) -> dict[str, str]:
    """Return the arm and the seed that patterns find in a path; what the first one finds counts."""
    found: dict[str, str] = {}
    for pattern in given:
        found = {**pattern.match(path), **found}
    return found


def name_runs(runs: Sequence[Run], program: Program, reading: Reading, doubts: list[str]) -> list[str]:
    """Name the arm and the seed of each run; return what was taken as what, as sentences.

    `doubts` get those that a verdict should tell, such as which settings differ within pairs.

    The arm is the setting that was asked for, the text in the path, or else the one setting that differs between runs
    with one seed.

    Raises:
        UserError: No seed, no arm, several settings that may be the arm, or settings that differ within a pair besides.
    """
    given, ignored = patterns(reading), program.ignored
    found = [from_path(run.path, given) for run in runs]
    seed_key = None if "seed" in found[0] else _seed_key(runs, reading)
    for names, run in zip(found, runs, strict=True):
        run.seed = names["seed"] if seed_key is None else run.settings[seed_key]
    not_compared = ignored if seed_key is None else ignored | {seed_key}
    varying = differing_settings(runs)
    if seed_key is None:
        own = {(run.seed, run.settings["seed"]) for run in runs if "seed" in run.settings}
        if len({other for _, other in own}) < len({seed for seed, _ in own}):
            doubts.append(
                "runs whose paths name different seeds have the same seed in their settings; if it is the number that "
                "fixes everything random, they are one run several times"
            )
    if "arm" in found[0]:
        arms = [names["arm"] for names in found]
        # where each arm has an attention of its own, it is the arm
        keys = [key for key in varying if group_of(key) == ATTENTION]
        of_arms = {(arm, *(run.settings.get(key) for key in keys)) for arm, run in zip(arms, runs, strict=True)}
        keys = keys if len(of_arms) == len(set(arms)) else []
    else:
        keys = _arm_keys(runs, [key for key in varying if key not in not_compared], reading)
        arms = _labels(runs, keys)
    for arm, run in zip(arms, runs, strict=True):
        run.arm = arm
    sources = ["the path" if "arm" in found[0] else f"the setting {group_of(keys[0])}"]
    sources += ["the path" if seed_key is None else f"the setting {seed_key}"]
    notes = [f"the arm is taken from {sources[0]}, the seed from {sources[1]}"]
    check_pairs(runs, [key for key in varying if key not in {*not_compared, *keys}], reading, doubts)
    compared = [key for key in all_settings(runs) if key not in {*not_compared, *keys, *_SEEDS}]
    if not compared:
        doubts.append("the runs hold no settings besides arm and seed, so none were compared")
    elif "arm" in found[0] and not {*varying} & {*compared, *keys}:
        alike = "no recorded setting differs between the arms; only their paths tell them apart"
        doubts.append(f"{alike}; {program.if_alike}" if program.if_alike else alike)
    hidden = sorted(key for key in ignored if len({run.settings.get(key) for run in runs}) > 1)
    if hidden:
        notes.append(f"settings that name, store or place a run were not compared: {few(hidden, 10)}")
    between = [
        key
        for key in all_settings(runs)
        if key not in {*varying, *not_compared, *keys, *_SEEDS}
        and len({run.settings.get(key, NOT_SET) for run in runs}) > 1
    ]
    if between:
        doubts.append(f"settings that differ between seeds, and are the same within each pair: {few(between, 10)}")
    return notes


def _seed_key(runs: Sequence[Run], reading: Reading) -> str:
    """Return the setting with the seed."""
    keys = all_settings(runs)
    if reading.seed_column is not None:
        possible = [reading.seed_column]
    else:
        possible = [key for key in keys if key.rpartition(".")[2] in _SEEDS]
        if len(possible) > 1:
            possible = [key for key in possible if len({run.settings.get(key) for run in runs}) > 1] or possible[:1]
    how = "name the setting with --seed-column, or where it stands in the path, such as --seed-from 'seed-{seed}'"
    if len(possible) > 1:
        raise UserError(f"several settings may be the seed, {few(possible, 10)}; choose one with --seed-column")
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
