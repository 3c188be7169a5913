"""The settings of runs: which differ within pairs, and whether they may."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Protocol

from ..base.errors import UserError
from ..base.words import few, listed, short
from .cells import NOT_SET
from .columns import DATA, Reading, may_differ_note

ATTENTION = "attention"
# the name of an attention and its options are one setting; tables write params. and the like before it
_ATTENTION = re.compile(r"((params|config|hparams)[./])?attention(_kwargs)?(\..*)?")


class HasSettings(Protocol):
    """A run, or a line of a table."""

    @property
    def arm(self) -> str:
        """The arm."""

    @property
    def seed(self) -> str:
        """The seed."""

    @property
    def settings(self) -> dict[str, str]:
        """The settings by name, as texts."""


def all_settings(runs: Sequence[HasSettings]) -> list[str]:
    """Return the names of all settings, in order."""
    return list(dict.fromkeys(key for run in runs for key in run.settings))


def _pairs(runs: Sequence[HasSettings]) -> list[list[dict[str, str]]]:
    """Return the settings of the runs with each seed; all runs as one group where no two have one seed."""
    groups = defaultdict(list)
    for run in runs:
        groups[run.seed].append(run.settings)
    return [group for group in groups.values() if len(group) > 1] or [[run.settings for run in runs]]


def differing_settings(runs: Sequence[HasSettings]) -> list[str]:
    """Return the settings that differ between runs with one seed."""
    pairs = _pairs(runs)
    return [
        key for key in all_settings(runs) if any(len({one.get(key, NOT_SET) for one in group}) > 1 for group in pairs)
    ]


def group_of(key: str) -> str:
    """Return "attention" for the name of an attention and for its options, else the setting itself."""
    return ATTENTION if _ATTENTION.fullmatch(key) else key


def attention_of_arms(runs: Sequence[HasSettings], differing: list[str]) -> list[str]:
    """Return the settings of the attention, if each arm has one attention: then they belong to the arm."""
    keys = [key for key in differing if group_of(key) == ATTENTION]
    attentions = {(run.arm, *(run.settings.get(key, NOT_SET) for key in keys)) for run in runs}
    return keys if len(attentions) == len({run.arm for run in runs}) else []


def is_named(key: str, names: Collection[str]) -> bool:
    """Return whether a setting, the group it is in, or what it is nested in, is among `names`."""
    parts = key.split(".")
    return group_of(key) in names or any(".".join(parts[:end]) in names for end in range(1, len(parts) + 1))


def values_of(runs: Sequence[HasSettings], key: str) -> str:
    """Return the values of a setting in runs with one seed."""
    pairs = (dict.fromkeys(one.get(key, NOT_SET) for one in group) for group in _pairs(runs))
    return few([short(value, 30) or NOT_SET for value in next(values for values in pairs if len(values) > 1)], 3)


def check_pairs(runs: Sequence[HasSettings], differing: list[str], reading: Reading, notes: list[str]) -> None:
    """Raise UserError if settings differ within a pair besides the arm, unless they may; a note names those."""
    refused = {group_of(key): key for key in reversed(differing) if not is_named(key, reading.may_differ)}
    if refused:
        names = list(reversed(refused))
        differing_values = [f"{name} ({values_of(runs, refused[name])})" for name in names]
        raise UserError(
            f"besides the arm, these settings differ between runs with one seed: {listed(differing_values)}; compare "
            f"runs that share them, or, if that is meant, give --may-differ {','.join(names[:8])}"
        )
    allowed = [key for key in differing if is_named(key, reading.may_differ)]
    if allowed:
        notes.append(may_differ_note(allowed))


def check_data(runs: Sequence[HasSettings], differing: Collection[str], notes: list[str]) -> None:
    """Note that the pairs are of several data sets: the verdict is on their mix, and tells nothing of a next one.

    `differing` are the settings that differ within pairs.
    """
    for key in all_settings(runs):
        values = list(dict.fromkeys(short(run.settings.get(key, NOT_SET), 30) for run in runs))
        if DATA.fullmatch(re.split("[./]", key)[-1]) and key not in differing and len(values) > 1:
            notes.append(
                f"the pairs are of {len(values)} data sets ({key}: {few(values)}): the verdict is on this mix of them"
                "; for one on each give a table of its own, and for one over all `whatwhere verdict --across`"
            )
