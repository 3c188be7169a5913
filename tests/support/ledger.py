"""Checks docs/ledger.csv and the summary of docs/ledger.md: `make check`. `make ledger` writes the summary anew.

A pair is one trained network with attention beside one without. A pair has a row for each test set and image size; one
of them, the main row, is counted. Pairs with the same plain training share a baseline, and a baseline counts once.
"""

import csv
import math
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path

from scipy.special import stdtrit

DOCS = Path(__file__).parents[2] / "docs"
LEAST_PAIRS = 40
MARKS = {
    "main": {"yes", ""},
    "seeds": {"single seed", "several, unpaired", "paired"},
    "by": {"authors of the attention", "others"},
    "read": {"in the source", "in a copy", "second-hand"},
}
FILLED = ["pair", "baseline", "attention", "plain_network", "attention_network", "test_set", "source"]
NUMBERS = {"plain": True, "with_attention": True, "difference": True}  # must a number stand there?
NUMBERS |= dict.fromkeys(["plain_params", "attention_params", "image_size", "epochs"], False)
PUBLISHER = re.compile(r"arXiv [\d.]+|github\.com/[^/ ]+/[^/ )]+")
NUMBER = re.compile(r"-?\d+(\.\d+)?")
COLUMNS = ["pair", "baseline", "attention", "plain_network", "attention_network", "plain_params", "attention_params"]
COLUMNS += ["test_set", "main", "image_size", "epochs", "recipe", "plain", "with_attention", "difference"]
COLUMNS += ["seeds", "by", "read", "also_differs", "source", "note"]
SAME = {  # what the rows of a pair share, and those of a baseline
    ("pair",): ["baseline", "attention", "attention_network", "epochs", "recipe", "seeds", "by", "also_differs"],
    ("baseline",): ["plain_network", "plain_params"],
    ("baseline", "test_set", "image_size"): ["plain"],
}
BEGIN, END = "<!-- summary: written by make ledger -->", "<!-- end of the summary -->"
NOT_STATED = "not stated"

Row = dict[str, str]


def read(text: str) -> list[Row]:
    """Return the rows; a table with other columns ends the program."""
    reader = csv.DictReader(text.splitlines(), strict=True)
    if reader.fieldnames != COLUMNS:
        sys.exit(f"docs/ledger.csv: the columns must be {','.join(COLUMNS)}")
    return list(reader)


def counts(row: Row) -> bool:
    """Whether a row enters the summary: nothing but the attention differs, and the figures are not second-hand."""
    return not row["also_differs"] and row["read"] != "second-hand"


def problems(rows: list[Row]) -> list[str]:
    """Return one sentence for each fault, with its line in the file."""
    found: list[str] = []
    seen: dict[tuple[str, ...], int] = {}
    same: dict[tuple[str, ...], tuple[str, int]] = {}
    main: dict[str, int] = defaultdict(int)
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            found.append(f"line {line}: not {len(COLUMNS)} cells")
            continue
        found += [f"line {line}: {name} is empty" for name in FILLED if not row[name].strip()]
        for name, allowed in MARKS.items():
            if row[name] not in allowed:
                found.append(f"line {line}: {name} is {row[name]!r}, not one of {', '.join(sorted(allowed - {''}))}")
        wrong = [name for name, needed in NUMBERS.items() if (row[name] or needed) and not NUMBER.fullmatch(row[name])]
        found += [f"line {line}: {name} is {row[name]!r}, not a number" for name in wrong]
        if not wrong:
            plain, attention, difference = (Decimal(row[n]) for n in ("plain", "with_attention", "difference"))
            if not (0 < plain < 100 and 0 < attention < 100):
                found.append(f"line {line}: a figure is not between 0 and 100")
            if (right := attention - plain) != difference:
                found.append(f"line {line}: difference is {difference}, but {attention} - {plain} = {right}")
        key = (row["pair"], row["test_set"], row["image_size"])
        if key in seen:
            found.append(f"line {line}: the same pair, test set and image size as in line {seen[key]}")
        seen.setdefault(key, line)
        for group, names in SAME.items():
            for name in names:
                value, first = same.setdefault((*(row[n] for n in group), name), (row[name], line))
                if value != row[name]:
                    found.append(f"line {line}: {name} differs from line {first}, of the same {', '.join(group)}")
        main[row["pair"]] += row["main"] == "yes"
    found += [f"pair {pair}: {number} main rows, not one" for pair, number in main.items() if number != 1]
    if not found and (number := sum(map(counts, main_rows(rows)))) < LEAST_PAIRS:
        found.append(f"{number} pairs count, fewer than {LEAST_PAIRS}")
    return found


def main_rows(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["main"] == "yes"]


def publisher(source: str) -> str:
    """Return the paper or the repository that a source belongs to: what one group trained with its recipes."""
    found = PUBLISHER.search(source)
    return source if found is None else found[0]


def means(rows: Iterable[Row]) -> list[tuple[str, float]]:
    """Return the publisher and the mean difference of each baseline."""
    of: dict[str, list[float]] = defaultdict(list)
    publishers = {}
    for row in rows:
        of[row["baseline"]].append(float(row["difference"]))
        publishers[row["baseline"]] = publisher(row["source"])
    return [(publishers[name], statistics.fmean(values)) for name, values in of.items()]


def interval(of_baselines: list[tuple[str, float]]) -> tuple[float, float] | None:
    """Return mean -+ t(G - 1) * error of the plain mean over baselines; None with fewer than 3 publishers.

    Baselines of one publisher are not independent: error**2 = G / (G - 1) * sum of (sum of (y - mean))**2 / n**2, the
    inner sum over the baselines of each of the G publishers (Liang and Zeger, Biometrika 73, 1986).
    """
    mean = statistics.fmean(value for _, value in of_baselines)
    sums: dict[str, float] = defaultdict(float)
    for name, value in of_baselines:
        sums[name] += value - mean
    num = len(sums)
    if num < 3:
        return None
    error = math.sqrt(num / (num - 1) * sum(one**2 for one in sums.values())) / len(of_baselines)
    half = float(stdtrit(num - 1, 0.975)) * error
    return mean - half, mean + half


def table_line(name: str, rows: list[Row]) -> str:
    """Return one line of a table: how many, how many above 0, median, mean and its 95 % interval."""
    of_baselines = means(rows)
    values = [value for _, value in of_baselines]
    cells = [
        name,
        str(len({name for name, _ in of_baselines})),
        str(len(values)),
        str(len({row["pair"] for row in rows})),
    ]
    cells += [str(sum(value > 0 for value in values))]
    cells += [f"{statistics.median(values):+.2f}", f"{statistics.fmean(values):+.2f}"]
    bounds = interval(of_baselines)
    cells += ["" if bounds is None else f"{bounds[0]:+.2f} to {bounds[1]:+.2f}"]
    return f"| {' | '.join(cells)} |"


def table(title: str, rows: list[Row], group: Callable[[Row], str], order: list[str] | None = None) -> str:
    """Return a table with a line for each group of rows, in the given order or by number of baselines."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[group(row)].append(row)
    names = order or sorted(groups, key=lambda name: (-len(means(groups[name])), name))
    head = ["sources", "baselines", "pairs", "above 0", "median", "mean", "95 % interval of the mean"]
    lines = [f"| {' | '.join([title, *head])} |", f"| --- |{' ---: |' * len(head)}"]
    return "\n".join([*lines, *(table_line(name, groups[name]) for name in names if name in groups)])


def within(limits: dict[float, str], above: str) -> Callable[[str], str]:
    """Return a function that names the group of a cell: the first limit that is not below it."""

    def name(cell: str) -> str:
        if not cell:
            return NOT_STATED
        return next((name for limit, name in limits.items() if float(cell) <= limit), above)

    return name


LENGTHS = within({120: "up to 120", 300: "121 to 300"}, "more than 300")
SIZES = within({10: "up to 10 million", 30: "10 to 30 million"}, "more than 30 million")


def left_out(row: Row) -> str:
    if row["read"] == "second-hand":
        return "read second-hand"
    return "recipe not stated" if row["also_differs"] == "recipe not stated" else "something else differs"


def summary(rows: list[Row]) -> str:
    """Return the tables of the page."""
    first = main_rows(rows)
    counted = [row for row in first if counts(row)]
    timm = [row for row in rows if counts(row) and row["pair"].startswith("timm-")]
    seeds = [f"{sum(row['seeds'] == mark for row in counted)} {mark}" for mark in sorted(MARKS["seeds"])]
    sizes = ["up to 10 million", "10 to 30 million", "more than 30 million", NOT_STATED]
    return "\n\n".join(
        [
            f"{len(rows)} rows, {len(first)} pairs. {len(counted)} pairs are counted, on {len(means(counted))} "
            f"baselines: {'; '.join(seeds)}.",
            table("all counted pairs", counted, lambda row: "all"),
            table(
                "epochs",
                counted,
                lambda row: LENGTHS(row["epochs"]),
                ["up to 120", "121 to 300", "more than 300", NOT_STATED],
            ),
            table("parameters of the plain network", counted, lambda row: SIZES(row["plain_params"]), sizes),
            table("attention", counted, lambda row: row["attention"]),
            table("published by", counted, lambda row: row["by"]),
            table("trained on", counted, lambda row: row["test_set"]),
            table("timm's test sets", timm, lambda row: row["test_set"]),
            table("not counted above", [row for row in first if not counts(row)], left_out),
        ]
    )


def page_with(page: str, text: str, begin: str, end: str) -> str:
    """Return the page with this text between two marks."""
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}"


def main(write: bool) -> int:
    rows = read((DOCS / "ledger.csv").read_text(encoding="utf-8"))
    found = problems(rows)
    path = DOCS / "ledger.md"
    if not found:
        page = path.read_text(encoding="utf-8")
        wanted = page_with(page, summary(rows), BEGIN, END)
        if write:
            path.write_text(wanted, encoding="utf-8")
        elif page != wanted:
            found.append("docs/ledger.md: the summary is not that of docs/ledger.csv; run make ledger")
    print(*found, f"docs/ledger.csv: {len(found)} faults", sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] == ["--write"]))
