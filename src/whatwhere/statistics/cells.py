"""The numbers in the cells of a table: a decimal comma, separators of thousands, percent signs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from ..base.words import number_in
from .direction import is_at_most_all

Line = tuple[int, list[str]]  # its number, and its cells

NOT_SET = "none"  # a setting that is not set; also what null is written as
MISSING = {"", "-", "na", "n/a", "nan", "none", "null", "failed"}  # instead of a figure
_ARRANGED = re.compile(r"[+-]?(?!0[.,])\d{1,3}([.,])\d{3}", re.ASCII)  # 1,200: with thousands, or with three decimals
_DECIMAL = re.compile(r"[+-]?\d+([.,])\d+(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_AROUND = re.compile(r"(?:tensor\(|\W)*[0-9]+([.,][0-9]+)?\W*")
_SEPARATED = re.compile(r"[+-]?\d[\d.,]*\d", re.ASCII)
_PERCENT = re.compile(r"([+-]?\d+([.,]\d+)?)\s*%", re.ASCII)
_NUMBER = re.compile(r"[+-]?[\d.,]+(e[+-]?\d+)?\s*%?", re.ASCII | re.IGNORECASE)
_EPOCH = re.compile(r"(?:(?:epoch|step)[ _-]?)?(\d+)(?:\s*(?:/|of)\s*\d+)?", re.ASCII | re.IGNORECASE)
_SPREAD = re.compile(r"[+-]?\d+([.,]\d+)?\s*%?\s*(±|\+/-|\+-|\(±?)\s*\d+([.,]\d+)?\s*%?\)?", re.ASCII)


def is_like_a_number(cell: str) -> bool:
    """Return whether a cell looks like a number, if perhaps with a percent sign or separators of thousands."""
    return _NUMBER.fullmatch(cell) is not None


def mending(cell: str, signs: set[str]) -> str:
    """Return how to correct a cell that is nearly a number; "" where it is not."""
    if found := _PERCENT.fullmatch(cell):
        return f"write {found[1]}, without the percent sign"
    if _SPREAD.fullmatch(cell):
        return "give the figure of each seed in a line of its own, not their mean and spread"
    if _is_ambiguous(cell, signs) or ("," in cell and _SEPARATED.fullmatch(cell) and number_of(cell, signs) is None):
        return "write it without separators of thousands, and with a decimal point"
    return ""


def holds_a_figure(cell: str) -> bool:
    """Return whether a cell is a number with signs around it, such as **77.01**, 77.01*, [77.01] or tensor(77.01)."""
    return _AROUND.fullmatch(cell) is not None or bool(mending(cell, set()))


def holds_decimals(cell: str) -> bool:
    """Return whether a number with decimals stands anywhere in a cell, as in "0.74 @ep80"."""
    return re.search(r"\d[.,]\d", cell) is not None


def setting_of(cell: str, signs: set[str]) -> str:
    """Return a setting as text, a number in one spelling: 0.1 for 1e-1 and 0,10."""
    number = number_of(cell, signs)
    return (cell or NOT_SET) if number is None else f"{number:.12g}"


def decimal_signs(head: Sequence[str], lines: Sequence[Line], delimiter: str) -> set[str]:
    """Return the signs that stand before decimals in a table; none where no cell tells.

    A cell tells in which no sign can separate thousands. Else a share does: no accuracy is 76,553. Between commas a
    point stands before decimals; between tabs, which programs write, where no column has numbers with and without one:
    1.150 beside 980 may be a thousand.
    """
    columns = list(itertools.zip_longest(*(map(str.strip, row) for _, row in lines), fillvalue=""))
    cells = [cell for column in columns for cell in column]
    shares = [cell for name, column in zip(head, columns, strict=False) if is_at_most_all(name) for cell in column]
    signs = _signs(cell for cell in cells if not _ARRANGED.fullmatch(cell)) | ({"."} if delimiter == "," else set())
    if not signs:
        signs = _signs(shares)
    return signs or ({"."} if delimiter == "\t" and not any(map(_is_mixed, columns)) else set())


def _signs(cells: Iterable[str]) -> set[str]:
    return {found[1] for found in map(_DECIMAL.fullmatch, cells) if found}


def _is_mixed(cells: Iterable[str]) -> bool:
    """Return whether a column has numbers such as 1.150 or 1,150 beside other numbers, or such with a comma at all."""
    numbers = list(filter(is_like_a_number, cells))
    found = [_ARRANGED.fullmatch(cell) for cell in numbers]
    return any(found) and not all(one is not None and one[1] == "." for one in found)


def _is_ambiguous(cell: str, signs: set[str]) -> bool:
    """Return whether the sign in a cell such as 1,200 may separate thousands, where such are the signs of decimals."""
    arranged = _ARRANGED.fullmatch(cell)
    return arranged is not None and (not signs or (arranged[1] == ",") is not (signs == {","}))


def epoch_of(cell: str, signs: set[str]) -> float | None:
    """Return the number of the epoch in a cell such as 45, 45/90 or "epoch 45"; None where it is empty.

    Raises:
        ValueError: It holds something else.
    """
    cell = cell.strip()
    found = _EPOCH.fullmatch(cell)
    number = number_of(found[1] if found else cell, signs)
    if number is None and cell.lower() not in MISSING:
        raise ValueError(cell)
    return number


def number_of(cell: str, signs: set[str]) -> float | None:
    """Return the number in a cell, also with a decimal comma; None where its sign may separate thousands."""
    cell = cell.strip()
    if _is_ambiguous(cell, signs):
        return None
    try:
        return number_in(cell.replace(",", ".", 1))
    except ValueError:
        return None
