"""Checks the tables of evidence/README.md: `make check`. `make evidence-page` writes them anew from the files there."""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scipy import stats

from ledger import page_with
from whatwhere.comparison.design import Design, read_design
from whatwhere.experiment import ArmVerdict, Judgement, Results, across, judge, read_comparisons, read_results
from whatwhere.statistics.across import LEAST_DATA_SETS, case_of
from whatwhere.statistics.decide import decide
from whatwhere.statistics.metric import DEFAULT_MARGIN

EVIDENCE = Path(__file__).parents[2] / "evidence"
BEGIN, END = "<!-- tables: written by make evidence-page -->", "<!-- end of the tables -->"
SETS = ["lite0", "hands", "cifar10", "fashion", "mnist", "digits"]
MAP = ["map-10-off", "map-10-on", "map-40-off", "map-40-on"]
PLACEBO, CBAM = "static-cbam", "cbam"
DIRECT = {
    "Does cbam do better because it looks at the image?": [(CBAM, PLACEBO), ("cbam-identity", "static-cbam-identity")],
    "Does the start matter?": [(CBAM, "cbam-paper"), ("cbam-identity", CBAM), ("se-identity", "se")],
}
OVER_ALL = ["data sets", "mean", "95 % interval", "interval that decides", "next data set", "verdict"]
COLUMNS = ["pairs", "mean difference, points", "95 % interval", "interval that decides", "verdict"]


def named(arm: str, design: Design) -> str:
    """Return the name of an arm, with the start of its attention: the identity, as with weights, or its paper's."""
    if arm.startswith(("short", "wide")):
        return arm
    for start in ("identity", "paper"):
        if arm.endswith(f"-{start}"):
            break
    else:
        start = "identity" if design.options["pretrained"] else "paper"
    name = arm.removesuffix(f"-{start}")
    return f"{'placebo of cbam' if name == PLACEBO else name}, {start} start"


def line_of(arm: ArmVerdict) -> list[str]:
    """Return pairs, mean difference, intervals and verdict of an arm."""
    mean = "" if arm.mean_difference is None else f"{arm.mean_difference:+.2f}"
    return [str(arm.num_pairs), mean, span(arm.interval_95), span(arm.deciding_interval), arm.headline]


def span(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:+.2f} to {bounds[1]:+.2f}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]], num_texts: int = 1) -> str:
    """Return a table; all columns between the first `num_texts` and the last are figures."""
    marks = ["---"] * num_texts + ["---:"] * (len(head) - num_texts - 1) + ["---"]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, marks, *lines])


@dataclass
class Set:
    """A comparison of the evidence."""

    name: str
    design: Design
    judgement: Judgement
    results: Results

    @classmethod
    def read(cls, name: str) -> Set | None:
        """Return the comparison of this name; None before its first look."""
        folder = EVIDENCE / name
        design = read_design(folder)
        if design is None or not (folder / "results.csv").is_file():
            return None
        (judgement,) = read_comparisons([folder])[0].values()
        return cls(name, design, judgement, read_results(folder / "results.csv"))

    def section(self) -> str:
        """Return the part of the page about it."""
        means = [statistics.fmean(arm.baseline[: arm.num_pairs]) for arm in self.judgement.arms if arm.num_pairs]
        low, high = (f"{end(means):.1f}" for end in (min, max))
        accuracy = low if low == high else f"{low} to {high}"
        lines = [[named(arm.arm, self.design), *line_of(arm)] for arm in self.judgement.arms]
        links = f"[Page]({self.name}/report.html), [figures]({self.name}/results.csv)."
        text = f"{links} `none` classifies {accuracy} % of the test images correctly, in the pairs of each row."
        skewed = [
            named(one.arm, self.design) for one in self.judgement.arms if any("skewed" in c for c in one.cautions)
        ]
        note = [f"The differences look skewed, so the interval may be off: {'; '.join(skewed)}."] if skewed else []
        return "\n\n".join([f"### {self.name}", text, table(["arm", *COLUMNS], lines), *note])

    def direct(self, arm: str, other: str) -> Judgement | None:
        """Return the verdict on an arm with another as its baseline, at the planned looks; None without both."""
        if not {arm, other} <= {*self.results.arms}:
            return None
        plan = next(one.plan for one in self.judgement.arms if one.arm == CBAM)
        looks = {} if plan is None else {"first_look": plan.first, "max_pairs": plan.last}
        results = self.results.only([other, arm], self.results.seeds)
        found = judge(results, metric="accuracy", baseline=other, **looks)
        name = f"{named(arm, self.design)} minus {named(other, self.design)}"
        return replace(found, arms=(replace(found.arms[0], arm=name),))

    def design_line(self) -> list[str]:
        num_runs = sum(len(self.results.runs(arm)) for arm in self.results.arms)
        return [self.name, str(num_runs), f"`{self.design.digest()}`"]

    def effects(self, arm: str) -> dict[int, float]:
        """Return the difference of an arm to `none`, in points, by seed."""
        paired = self.results.paired("none", arm, "accuracy", 100)
        assert paired is not None
        return dict(zip(map(int, paired.seeds), paired.differences, strict=True))


def recipes(sets: Sequence[Set], arm: str) -> Iterable[list[str]]:
    """Return how much the recipe changes the effect of an arm: means and t intervals of contrasts within a seed."""
    cells = [one.effects(arm) for one in sets]
    by_seed = [[cell[seed] for cell in cells] for seed in sorted(set.intersection(*map(set, cells)))]
    contrasts = {
        "40 epochs instead of 10": [-0.5, -0.5, 0.5, 0.5],
        "augmentation instead of none": [-0.5, 0.5, -0.5, 0.5],
        "augmentation at 40 epochs more than at 10": [1, -1, -1, 1],
    }
    for what, signs in contrasts.items():
        values = [sum(sign * effect for sign, effect in zip(signs, of, strict=True)) for of in by_seed]
        test = stats.ttest_1samp(values, 0)
        bounds = [span((*test.confidence_interval(1 - level),)) for level in (0.05, 0.05 / (2 * len(contrasts)))]
        name = named(arm, sets[0].design)
        yield [name, what, str(len(values)), f"{statistics.fmean(values):+.2f}", *bounds]


def over_all(sets: Sequence[Set]) -> str:
    """Return the table of one verdict over all data sets."""
    # an attention with another start is another arm
    comparisons = {
        one.name: replace(
            one.judgement, arms=tuple(replace(arm, arm=named(arm.arm, one.design)) for arm in one.judgement.arms)
        )
        for one in sets
    }
    lines, cautions = lines_over_all(comparisons)
    text = (
        f"One verdict on each arm; a mean needs {LEAST_DATA_SETS} data sets. The interval that decides shares the "
        "error of 5 % among the arms that have one."
    )
    return "\n\n".join(["### Over all data sets", text, table(["arm", *OVER_ALL], lines), "\n".join(cautions)])


def lines_over_all(comparisons: Mapping[str, Judgement]) -> tuple[list[list[str]], list[str]]:
    """Return the line of each arm over all data sets, and what each verdict hangs on."""
    names = list(comparisons)
    _, known = read_comparisons([EVIDENCE / name for name in names])
    data_sets = dict(zip(names, known.values(), strict=True))
    lines, cautions = [], []
    for arm in across(comparisons, data_sets).arms:
        cautions += [f"- {arm.arm}: {caution}." for caution in arm.cautions if "would not stand" in caution]
        mean = "" if arm.mean_difference is None else f"{arm.mean_difference:+.2f}"
        intervals = [span(bounds) for bounds in (arm.interval_95, arm.deciding_interval, arm.prediction_interval)]
        counting = {one.data_set for one in arm.comparisons if not one.left_out}
        lines.append([arm.arm, str(len(counting)), mean, *intervals, arm.headline])
    return lines, cautions


def directly(sets: Sequence[Set], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return two tables of arms against each other: over all data sets, and in each set with the error shared."""
    merged: dict[str, Judgement] = {}
    cases = []
    for pair in pairs:
        for one in sets:
            if (of := one.direct(*pair)) is not None:
                before = merged.get(one.name, replace(of, arms=()))
                merged[one.name] = replace(before, arms=(*before.arms, *of.arms))
                cases.append((one.name, case_of(of.arms[0])))
    lines = []
    for (name, _), case in zip(cases, decide([case for _, case in cases], DEFAULT_MARGIN), strict=True):
        assert case.paired is not None
        assert case.level is not None
        bounds = [span(case.paired.interval(1 - level)) for level in (0.05, case.level)]
        lines.append([name, case.arm, str(len(case.paired)), f"{case.paired.mean:+.2f}", *bounds, case.verdict])
    over, cautions = lines_over_all(merged)
    return [table(["arms", *OVER_ALL], over), "\n".join(cautions), table(["set", "arms", *COLUMNS], lines, 2)]


def tables() -> str:
    """Return all tables of the page."""
    sets = {name: one for name in [*SETS, *MAP] if (one := Set.read(name)) is not None}
    parts = [
        over_all(list(sets.values())),
        "### Two arms against each other",
        "The lines of one table share the error of 5 %.",
    ]
    for question, pairs in DIRECT.items():
        parts += [f"**{question}**", *directly(list(sets.values()), pairs)]
    if sets.keys() >= {*MAP}:
        map_of = [sets[name] for name in MAP]
        parts += [
            "### What the recipe changes",
            "By how much the difference to `none` changes with the recipe, within a seed. The last interval shares 5 % "
            "among the six lines.",
            table(
                ["arm", "recipe", "pairs", "changes the difference by", "95 % interval", "interval that decides"],
                [*recipes(map_of, CBAM), *recipes(map_of, PLACEBO)],
                2,
            ),
        ]
    parts += [one.section() for one in sets.values()]
    lines = [one.design_line() for one in sets.values()]
    parts += ["### Designs", table(["set", "runs", "SHA-256 of the design"], lines)]
    return "\n\n".join(filter(None, parts))


def main(write: bool) -> int:
    path = EVIDENCE / "README.md"
    page = path.read_text(encoding="utf-8")
    wanted = page_with(page, tables(), BEGIN, END)
    if write:
        path.write_text(wanted, encoding="utf-8")
    elif page != wanted:
        print("evidence/README.md: the tables are not those of the files beside it; run make evidence-page")
        return 1
    written, _, prose = wanted.partition(END)
    if stale := [quoted for quoted in re.findall(r"[-+]\d+\.\d\d to [-+]\d+\.\d\d", prose) if quoted not in written]:
        print(f"evidence/README.md: no table has the interval {stale[0]} that the text quotes; correct the text")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] == ["--write"]))
