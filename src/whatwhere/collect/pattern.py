"""The arm and the seed in the path of a run or a table, by patterns such as `{arm}-{seed}`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..base.errors import UserError
from ..base.words import brief, few, spelling
from ..statistics.columns import Reading

_MOST_STARS = 2  # in a name: the time to match grows with a power of their number
_NUMBERED = re.compile(r"(.*?)[-_ .]([0-9]+)")


class Pattern:
    """Where the names of arm and seed stand in a path: `{arm}-{seed}`, `{arm}/version_{seed}`, `seed{seed}/*`.

    A pattern is compared with the last names of a path. `{arm}` is any text, `{seed}` a whole number, `*` anything
    within a name.

    Raises:
        UserError: `what` ("arm" or "seed") is not in the pattern, something else is in braces, or a name has more than
            two `*`.
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
        if any(name.count("*") > _MOST_STARS for name in self.names):
            raise UserError(f"{option} {brief(text)} has a name with more than {_MOST_STARS} *; one * is any text")

    def match(self, path: Path) -> dict[str, str]:
        """Return the arm and the seed in a path, by these names.

        Raises:
            UserError: The path has another form, or fits the pattern in two ways.
        """
        parts = path.absolute().parts[-len(self.names) :]
        end = "/".join(parts)
        names, other = self._read(parts, ""), self._read(parts, "?")
        if names is None or other is None:
            raise UserError(
                f"{end!r} is not of the form {brief(self.text)}; {{arm}} is any text, {{seed}} a whole number, * "
                "anything; leave that run out, or give another pattern with --arm-from or --seed-from"
            )
        if names != other:
            ways = [" ".join(f"{what} {brief(name)}" for what, name in way.items()) for way in (names, other)]
            raise UserError(
                f"{end!r} fits {brief(self.text)} in two ways, {' or '.join(ways)}; put a text that stands there once "
                "between the fields, or write that part of the name instead of *"
            )
        return names

    def _read(self, parts: Sequence[str], shortest: str) -> dict[str, str] | None:
        """Return the fields of a path, the first ones as long as can be, or with "?" as short; None if it differs."""
        number = "(?<![0-9])(?P<seed>[0-9]+)(?![0-9])"
        known = {"*": f".*{shortest}", "{arm}": f"(?P<arm>.+{shortest})", "{seed}": number}
        fields: dict[str, str] = {}
        for name, part in zip(self.names, parts, strict=False):
            pieces = re.split(r"(\*|\{arm\}|\{seed\})", name)
            found = re.fullmatch("".join(known.get(piece) or re.escape(piece) for piece in pieces), part, re.DOTALL)
            if found is None:
                return None
            fields |= found.groupdict()
        if "seed" in fields:
            fields["seed"] = str(int(fields["seed"]))
        return fields if len(parts) == len(self.names) else None


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


def check_spelling(arms: Iterable[tuple[str, Path]]) -> None:
    """Raise UserError if two arms are spellings of one name; each comes with the path of a run."""
    spellings: dict[str, tuple[str, Path]] = {}
    for arm, path in arms:
        before, other = spellings.setdefault(spelling(arm).strip("-"), (arm, path))
        if before != arm:
            raise UserError(
                f"the arms {brief(before)} in {str(other)!r} and {brief(arm)} in {str(path)!r} differ only in spaces, "
                "case, dashes or zeros; spell them alike, or so that they differ more"
            )


def check_arms(names: Sequence[tuple[Path, dict[str, str]]]) -> None:
    """Check the arms that patterns found in paths.

    Raises:
        UserError: Arms end in their seeds, such as none-0 and none-1; or a path has another one's name with a number
            behind it, as programs add where a folder is there already.
    """
    numbers = defaultdict[str, set[str]](set)
    for _, fields in names:
        if "arm" not in fields:
            return
        if "seed" not in fields and (numbered := _NUMBERED.fullmatch(fields["arm"])):
            numbers[numbered[1]].add(numbered[2])
    first, *others = sorted(numbers, key=lambda stem: -len(numbers[stem])) or [""]
    if any(len(numbers[first] & numbers[stem]) > 1 for stem in others):
        arms = list(dict.fromkeys(fields["arm"] for _, fields in names))
        raise UserError(
            f"the path gives {len(arms)} arms, {few(arms, 4)}, which seem to end in their seeds; is "
            "--arm-from '{arm}-{seed}' meant?"
        )
    given = {path for path, _ in names}
    for path, fields in names:
        again = re.fullmatch(r"(.*[0-9])-([0-9]+)", path.name)
        if again and "seed" in fields and (first_path := path.with_name(again[1])) in given:
            raise UserError(
                f"{str(path)!r} seems to be {str(first_path)!r} trained again: Ultralytics adds -{again[2]} to a name "
                "that is taken. Leave out, or move away, the one that is not finished or not meant; if they are two "
                "runs, rename one"
            )
