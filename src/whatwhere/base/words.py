"""Text for messages: printable names, short values, lists, counts, spelling hints."""

from __future__ import annotations

import difflib
import math
import re
import shlex
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

# control characters, lone surrogates (bytes that are not UTF-8), line and paragraph separators
_UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}
# characters that change the direction of the text after them
_TURNING = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|[nrt])")
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_DECIMAL = re.compile(r"([+-]?)(\d*)(?:\.(\d*))?")
_LONGEST_LIST, _LONGEST_NAME, _LONGEST_IN_SENTENCE = 300, 120, 80  # letters
# letters that what is wrong, a word in it, and a quoted name keep
_LEAST_SAID, _LEAST_PIECE, _LEAST_QUOTED = 100, 50, 20
# what a sentence quotes, from the left, as `repr` writes it; an apostrophe in or behind a word is no quote
_QUOTED = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(?!\w)""")
# that, and words without a blank
_PIECE = re.compile(rf"""{_QUOTED.pattern}|(?:[^\s'"]|(?<=\w)['"])+|['"]\S*""")


def printable(text: str) -> str:
    r"""Return `text` with control characters, and bytes that are not UTF-8, as `\x..`: safe to print and to store."""
    if text.isprintable():
        return text
    return "".join(_escaped(c) if c in _TURNING or unicodedata.category(c) in _UNPRINTABLE else c for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    # in a file name, Python keeps a byte that is not UTF-8 as a surrogate
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()


def unescaped(text: str) -> str:
    r"""Return the file name that `printable` wrote as `text`; from `\x80` on, they are bytes that are not UTF-8."""

    def meant(escape: re.Match[str]) -> str:
        character = escape[0].encode().decode("unicode_escape")
        return chr(ord(character) + 0xDC00) if "\x80" <= character <= "\xff" else character

    return _ESCAPE.sub(meant, text)


def command_line(words: Iterable[str]) -> str:
    r"""Return the words of a command as a line to copy into a shell such as bash or zsh.

    Control characters, and bytes that are not UTF-8, stand in it as numbers: $'caf\351.png'.
    """
    return " ".join(shlex.quote(word) if printable(word) == word else f"$'{_in_ansi_c(word)}'" for word in words)


def _in_ansi_c(word: str) -> str:
    return "".join(f"\\{c}" if c in "\\'" else c if printable(c) == c else _in_octal(c) for c in word)


def _in_octal(character: str) -> str:
    is_byte = "\udc80" <= character <= "\udcff"
    encoded = character.encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
    return "".join(f"\\{byte:03o}" for byte in encoded)


def short(text: str, most: int = 80) -> str:
    """Return `text` as one printable line; of more than `most` letters keep the two ends, with "..." between."""
    text = printable(text)
    end = (most - 3) // 2
    return text if len(text) <= most else f"{text[: most - 3 - end]}...{text[-end:]}"


def shortened(sentence: str, most: int) -> str:
    """Return a sentence as one printable line of at most `most` letters, a few hundred.

    Where it is longer, the longest quoted texts and words, such as paths, lose their middles: first those before its
    last semicolon, then those of the advice behind it. Other words are lost only where that is not enough, as in a long
    message of another library: whole words, and those of the advice last.
    """
    text = printable(sentence)
    if len(text) <= most:
        return text
    # a name may hold one too
    found = _QUOTED.sub(lambda name: "_" * len(name[0]), text).rfind("; ")
    said, semicolon, advice = (text[:found], "; ", text[found + 2 :]) if found > 0 else ("", "", text)
    said = _with_shorter_names(said, most - len(semicolon) - len(advice))
    advice = _with_shorter_names(advice, most - len(semicolon) - min(len(said), most))
    advice = _without_middle(advice, most - len(semicolon) - min(len(said), _LEAST_SAID))
    return _without_middle(said, most - len(semicolon) - len(advice)) + semicolon + advice


def _with_shorter_names(text: str, most: int) -> str:
    """Return `text` with the longest pieces shortened until it has `most` letters or none is left to shorten."""
    pieces = [found[0] for found in _PIECE.finditer(text)]
    parts = [part for pair in zip(_PIECE.split(text), [*pieces, ""], strict=True) for part in pair]
    words = range(1, len(parts) - 1, 2)
    quoted = [index for index in words if _QUOTED.fullmatch(parts[index])]
    for candidates, least in ((words, _LEAST_PIECE), (quoted, _LEAST_QUOTED)):
        while (excess := sum(map(len, parts)) - most) > 0:
            longest = max(candidates, key=lambda index: len(parts[index]), default=0)
            if len(parts[longest]) <= least:
                break
            parts[longest] = short(parts[longest], max(least, len(parts[longest]) - excess))
    return "".join(parts)


def _without_middle(text: str, most: int) -> str:
    """Return `text` without words in its middle, so that it has at most `most` letters."""
    if len(text) <= most:
        return text
    gap, pieces = " ... ", list(_PIECE.finditer(text))
    ends = [piece.end() for piece in pieces if piece.end() <= (most - len(gap)) // 2 and text[piece.end()] == " "]
    end = ends[-1] if ends else 0
    starts = (piece.start() for piece in pieces if text[piece.start() - 1] == " ")
    start = next((start for start in starts if end + len(gap) + len(text) - start <= most), None)
    return short(text, most) if not ends or start is None else text[:end] + gap + text[start:]


def few(names: Sequence[str], at_most: int = 3, between: str = ", ", letters: int = _LONGEST_LIST) -> str:
    """Return the first names and how many more there are: "a, b and 3 more"; at most `at_most`, and about `letters`."""
    shown: list[str] = []
    for name in (short(name, min(letters, _LONGEST_NAME)) for name in names[:at_most]):
        if shown and len(between.join((*shown, name))) > letters:
            break
        shown.append(name)
    left = len(names) - len(shown)
    return between.join(shown) + (f" and {left:,} more" if left else "")


def listed(names: Sequence[str]) -> str:
    """Return the first names for a sentence that says more, and how many more there are; at most 10, of 80 letters."""
    return few(names, 10, letters=_LONGEST_IN_SENTENCE)


def unsteady(names: Sequence[str], spread: float) -> str:
    """Return the beginning of a sentence that doubts times which differ by a factor of up to `spread`."""
    return f"other programs ran: the times of {few(names)} differ by up to x{spread:,.1f} between measurements"


def option(name: str) -> str:
    """Return an option as it is typed: --batch-size for batch_size."""
    return f"--{name.replace('_', '-')}"


def named(name: str) -> str:
    """Return the name of an arm, a seed or a metric for a sentence that says more, of at most 40 letters."""
    return short(name, _LONGEST_IN_SENTENCE // 2)


def brief(value: object, most: int = 80) -> str:
    """Describe any value for a message, in one line of about `most` letters.

    The result is the value's `repr` if that is short; the beginning of a long text; "a tensor of shape (1, 3, 224,
    224)"; "a dict of 10,000"; or the name of its type, if `repr` is long, has several lines or raises.
    """
    kind = short(type(value).__name__, most)
    as_type = f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
    try:
        return _brief(value, most, as_type)
    except Exception:  # the methods of an unknown class may raise anything
        return as_type


def _brief(value: Any, most: int, as_type: str) -> str:
    if isinstance(value, (str, bytes)):
        text = repr(value[:most])
        return text if max(len(value), len(text) - 3) <= most else f"{text[: most - 3]}...{text[-1]}"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and (shape or hasattr(value, "requires_grad")):
        return f"{'a tensor' if hasattr(value, 'requires_grad') else 'an array'} of shape {tuple(shape)}"
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return _listed(value, most) or f"{as_type} of {len(value):,}"
    text = repr(value)
    return text if len(text) <= most and text.isprintable() else as_type


def _listed(values: Collection[Any], most: int) -> str:
    """Return the first values in brackets, as many as fit, and how many more there are; "" if none fits."""
    if most < 10:  # deeply nested
        return ""
    texts: list[str] = []
    for value in values:
        text = brief(value, most // 2) + (f": {brief(values[value], most // 2)}" if isinstance(values, Mapping) else "")
        if sum(map(len, texts)) + len(text) > most:
            if not texts:
                return ""
            texts.append(f"... {len(values) - len(texts):,} more")
            break
        texts.append(text)
    before, after = ("[]" if isinstance(values, list) else "()") if isinstance(values, (list, tuple)) else "{}"
    only = "," if isinstance(values, tuple) and len(values) == 1 else ""
    return f"{before}{', '.join(texts)}{only}{after}"


def cause(error: BaseException | None, most: int = 200) -> str:
    """Return the message of an exception as one line of at most `most` letters; its type if the message is empty.

    Without a full stop at its end: the sentence that quotes it goes on.
    """
    text = " ".join(str(error).split())
    return short((text if text.endswith("..") else text.removesuffix(".")) or type(error).__name__, most)


def suggest(word: object, candidates: list[str], before: str = "") -> str:
    """Return "; did you mean a, b?" for the candidates closest to `word`, case apart; "" if none is close.

    `before`, such as the folder of a file, stands before each of them.
    """
    if not isinstance(word, str) or len(word) > 200:
        return ""
    word = word.lower()
    spelt = {name.lower(): name for name in candidates}
    beginning = sorted((name for name in spelt if name.startswith(word)), key=len) if word else []
    similar = difflib.get_close_matches(word, spelt, n=3, cutoff=0.6)
    matches = [printable(before) + short(spelt[match]) for match in dict.fromkeys([*beginning, *similar])][:3]
    return f"; did you mean {', '.join(matches)}?" if matches else ""


def spelling(name: str) -> str:
    """Return what `name` has in common with its other spellings: the key by which `spelt_alike` finds them.

    Case, spaces, dashes for underscores, invisible characters, full-width letters and the zeros around a number do not
    count: "Cat " and "cat", "hot dog" and "hot_dog", "00" and "0.0" are equal.
    """
    seen = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf").casefold()
    text = re.sub(r"[\s_-]+", "-", seen.strip(" _\t\r\n"))
    number = _DECIMAL.fullmatch(text)
    if number is None or not any(map(str.isdecimal, text)):
        return unicodedata.normalize("NFKC", text)
    sign, whole, part = number[1], number[2].lstrip("0"), (number[3] or "").rstrip("0")
    digits = f"{whole or 0}{f'.{part}' if part else ''}"
    return f"-{digits}" if sign == "-" and digits != "0" else digits


def spelt_alike(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of different names that are spellings of one, each sorted."""
    groups: dict[str, set[str]] = defaultdict(set)
    for name in names:
        groups[spelling(name)].add(name)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def number_in(text: str) -> float:
    """Return the number that a text spells with ASCII digits, a decimal point and an exponent; also nan and inf.

    Python's own `float` takes 0.5_123 and the digits of all scripts too.

    Raises:
        ValueError: The text spells no number, or one too large for a float.
    """
    number = float(text) if _NUMBER.fullmatch(text) else None
    if number is None or (math.isinf(number) and text[-1].isdecimal()):
        raise ValueError(f"{brief(text)} is not a number")
    return number


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return "1 image", "2,000 images"; the plural is the noun with an s unless it is given."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
