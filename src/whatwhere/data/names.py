"""Names of files, classes and splits."""

from __future__ import annotations

import unicodedata

SPLITS = ("train", "val", "test")
_SPELLINGS = {
    "train": ("train", "training", "trn", "train_set", "trainset", "training_set", "train_data", "train_images"),
    "val": ("val", "valid", "validation", "validate", "dev", "val_set", "valset", "validation_set", "val_images"),
    "test": ("test", "testing", "tst", "test_set", "testset", "testing_set", "test_data", "test_images"),
}
_SPLIT_OF = {spelling: split for split, spellings in _SPELLINGS.items() for spelling in spellings}
# control characters, lone surrogates (bytes that are not UTF-8), line and paragraph separators
_UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}
# which turn the direction of the text after them
_TURNING = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def split_of(name: str) -> str | None:
    """Return "train", "val" or "test" if `name` is a spelling of it, else None."""
    return _SPLIT_OF.get(name.strip().lower().replace("-", "_").replace(" ", "_"))


def printable(text: str) -> str:
    r"""Return a file name as something that can be printed and stored: what is not UTF-8 or a control as `\x..`."""
    if text.isprintable():
        return text
    return "".join(_escaped(c) if c in _TURNING or unicodedata.category(c) in _UNPRINTABLE else c for c in text)


def class_name(name: str) -> str:
    """Return the class that a folder or a cell names; an accent may be stored in two ways, which are one class."""
    return unicodedata.normalize("NFC", printable(name))


def few(paths: tuple[str, ...] | list[str], at_most: int = 3) -> str:
    """Return the first `at_most` paths, printable, and how many more there are."""
    shown = ", ".join(printable(path) for path in paths[:at_most])
    return shown if len(paths) <= at_most else f"{shown} and {len(paths) - at_most:,} more"


def counted(count: int, noun: str) -> str:
    """Return "1 image", "2,000 images"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _escaped(character: str) -> str:
    code = ord(character)
    # Python keeps a byte of a file name that is not UTF-8 as such a surrogate
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()
