"""The numbers in the cells of a table: a decimal comma, separators of thousands, percent signs."""

from __future__ import annotations

import re

from ..base.words import number_in
from .columns import Line
from .within_pairs import NOT_SET

_ARRANGED = re.compile(r"[+-]?(?!0[.,])\d{1,3}([.,])\d{3}", re.ASCII)  # 1,200: with thousands, or with three decimals
_DECIMAL = re.compile(r"[+-]?\d+([.,])\d+(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_SEPARATED = re.compile(r"[+-]?\d[\d.,]*\d", re.ASCII)
_PERCENT = re.compile(r"([+-]?\d+([.,]\d+)?)\s*%", re.ASCII)
_SPREAD = re.compile(r"[+-]?\d+([.,]\d+)?\s*%?\s*(±|\+/-|\+-|\(±?)\s*\d+([.,]\d+)?\s*%?\)?", re.ASCII)


def mending(cell: str, signs: set[str]) -> str:
    """Return how to correct a cell that is nearly a number; "" where it is not."""
    if found := _PERCENT.fullmatch(cell):
        return f"write {found[1]}, without the percent sign"
    if _SPREAD.fullmatch(cell):
        return "give the figure of each seed in a line of its own, not their mean and spread"
    if _is_ambiguous(cell, signs) or ("," in cell and _SEPARATED.fullmatch(cell) and number_of(cell, signs) is None):
        return "write it without separators of thousands, and with a decimal point"
    return ""


def setting_of(cell: str, signs: set[str]) -> str:
    """Return a setting as text, a number in one spelling: 0.1 for 1e-1 and 0,10."""
    number = number_of(cell, signs)
    return (cell or NOT_SET) if number is None else f"{number:.12g}"


def decimal_signs(lines: list[Line], delimiter: str) -> set[str]:
    """Return the signs that stand before decimals in a table, by the cells in which no sign separates thousands."""
    cells = (cell.strip() for _, row in lines for cell in row)
    found = (_DECIMAL.fullmatch(cell) for cell in cells if not _ARRANGED.fullmatch(cell))
    # a comma between columns is hardly one before decimals
    return {sign[1] for sign in found if sign} | ({"."} if delimiter == "," else set())


def _is_ambiguous(cell: str, signs: set[str]) -> bool:
    """Return whether the sign in a cell such as 1,200 may separate thousands, where such are the signs of decimals."""
    arranged = _ARRANGED.fullmatch(cell)
    return arranged is not None and (arranged[1] == ",") is not (signs == {","})


def number_of(cell: str, signs: set[str]) -> float | None:
    """Return the number in a cell, also with a decimal comma; None where its sign may separate thousands."""
    cell = cell.strip()
    if _is_ambiguous(cell, signs):
        return None
    try:
        return number_in(cell.replace(",", ".", 1))
    except ValueError:
        return None
