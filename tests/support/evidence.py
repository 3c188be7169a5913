"""Checks the tables of evidence/README.md: `make check`. `make evidence-page` writes them anew from the files there."""

import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from scipy import stats

from ledger import page_with
from whatwhere.comparison.design import read_design
from whatwhere.experiment import Across, Judgement, across, judge, read_comparisons, read_results
from whatwhere.statistics.across import LEAST_DATA_SETS

EVIDENCE = Path(__file__).parents[2] / "evidence"
BEGIN, END = "<!-- tables: written by make evidence-page -->", "<!-- end of the tables -->"
SETS = ["lite0", "hands", "cifar10", "fashion", "mnist", "digits"]
MAP = ["map-10-off", "map-10-on", "map-40-off", "map-40-on"]
PLACEBO, CBAM = "static-cbam", "cbam"
NAMES = {
    PLACEBO: "placebo of cbam",
    "cbam-paper": "cbam, the paper's start",
    "cbam-identity": "cbam, starting as the identity",
}
SAME_ARMS = {"cbam": "cbam-identity", "cbam-paper": "cbam"}  # of networks with weights, and from the beginning
COLUMNS = ["pairs", "mean difference, points", "95 % interval", "interval that decides", "verdict"]


def differing(judgement: Judgement) -> Iterable[list[str]]:
    """Return one line for each arm: pairs, mean difference, intervals, verdict."""
    for arm in judgement.arms:
        cells = [NAMES.get(arm.arm, arm.arm), str(arm.num_pairs)]
        if arm.mean_difference is None:
            yield [*cells, "", "", "", arm.headline]
            continue
        yield [*cells, f"{arm.mean_difference:+.2f}", span(arm.interval_95), span(arm.deciding_interval), arm.headline]


def span(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:+.2f} to {bounds[1]:+.2f}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]], num_texts: int = 1) -> str:
    """Return a table; all columns between the first `num_texts` and the last are figures."""
    marks = ["---"] * num_texts + ["---:"] * (len(head) - num_texts - 1) + ["---"]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, marks, *lines])


def looking(name: str, judgement: Judgement) -> list[str]:
    """Return cbam against its placebo, which has the same parameters and does not look, at the planned looks."""
    table_of = read_results(EVIDENCE / name / "results.csv")
    results = table_of.only([PLACEBO, CBAM], table_of.seeds)
    plan = next(arm.plan for arm in judgement.arms if arm.arm == CBAM)
    looks = {} if plan is None else {"first_look": plan.first, "max_pairs": plan.last}
    (line,) = differing(judge(results, metric="accuracy", baseline=PLACEBO, **looks))
    return [name, *line[1:]]


def num_runs(name: str) -> int:
    """Return how many runs a set has."""
    results = read_results(EVIDENCE / name / "results.csv")
    return sum(len(results.runs(arm)) for arm in results.arms)


def effects(name: str, arm: str) -> dict[int, float]:
    """Return the difference of an arm to `none`, in points, by seed."""
    paired = read_results(EVIDENCE / name / "results.csv").paired("none", arm, "accuracy", 100)
    assert paired is not None
    return dict(zip(map(int, paired.seeds), paired.differences, strict=True))


def recipes(arm: str) -> Iterable[list[str]]:
    """Return how much the recipe changes the effect of an arm: means and t intervals of contrasts within a seed."""
    cells = [effects(name, arm) for name in MAP]
    by_seed = [[cell[seed] for cell in cells] for seed in sorted(set.intersection(*map(set, cells)))]
    contrasts = {
        "40 epochs instead of 10": [-0.5, -0.5, 0.5, 0.5],
        "augmentation instead of none": [-0.5, 0.5, -0.5, 0.5],
        "augmentation at 40 epochs more than at 10": [1, -1, -1, 1],
    }
    for what, signs in contrasts.items():
        values = [sum(sign * effect for sign, effect in zip(signs, of, strict=True)) for of in by_seed]
        bounds = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        yield [NAMES.get(arm, arm), what, str(len(values)), f"{statistics.fmean(values):+.2f}", span((*bounds,))]


def with_same_starts(comparisons: dict[str, Judgement]) -> dict[str, Judgement]:
    """Return the comparisons with one name for one start of cbam: it starts as the identity where there are weights."""
    found = {}
    for name, judgement in comparisons.items():
        has_both = {arm.arm for arm in judgement.arms} >= {*SAME_ARMS}
        renamed = [replace(arm, arm=SAME_ARMS.get(arm.arm, arm.arm)) for arm in judgement.arms]
        found[name] = replace(judgement, arms=tuple(renamed)) if has_both else judgement
    return found


def averages(verdict: Across) -> Iterable[list[str]]:
    """Return one line for each arm over all data sets."""
    for arm in verdict.arms:
        mean = "" if arm.mean_difference is None else f"{arm.mean_difference:+.2f}"
        intervals = [span(bounds) for bounds in (arm.interval_95, arm.deciding_interval, arm.prediction_interval)]
        yield [NAMES.get(arm.arm, arm.arm), str(len(arm.data_sets)), mean, *intervals, arm.headline]


def one_set(name: str, judgement: Judgement) -> str:
    """Return the part about one comparison."""
    first = judgement.arms[0]
    accuracy = statistics.fmean(first.baseline[: first.num_pairs])
    links = f"[Page]({name}/report.html), [figures]({name}/results.csv)"
    head = f"### {name}\n\n{links}. `none` classifies {accuracy:.1f} % of the test images correctly. Differences to it:"
    return f"{head}\n\n{table(['arm', *COLUMNS], differing(judgement))}"


def tables() -> str:
    """Return all tables of the page."""
    judged = {name: EVIDENCE / name for name in [*SETS, *MAP] if (EVIDENCE / name / "results.csv").is_file()}
    found = {name: next(iter(read_comparisons([path])[0].values())) for name, path in judged.items()}
    parts = []
    comparisons, data_sets = read_comparisons(list(judged.values()))
    if len({*data_sets.values()}) >= LEAST_DATA_SETS:
        head = ["arm", "data sets", "mean", "95 % interval", "interval that decides", "next data set", "verdict"]
        parts += [
            "### Over all data sets",
            "One verdict on each arm; the interval that decides shares the error of 5 % among the arms.",
            table(head, averages(across(with_same_starts(comparisons), data_sets))),
        ]
    parts += [
        "### cbam minus its placebo",
        "Does it help because it looks at the image? The interval that decides is corrected for the looks.",
        table(["set", *COLUMNS], [looking(*one) for one in found.items()]),
    ]
    if set(MAP) <= found.keys():
        head = ["arm", "recipe", "pairs", "changes the effect by", "95 % interval"]
        parts += [
            "### What the recipe changes",
            "By how much the difference to `none` changes with the recipe, within a seed.",
            table(head, [*recipes(CBAM), *recipes(PLACEBO)], 2),
        ]
    parts += [one_set(*one) for one in found.items()]
    designs = {name: read_design(path) for name, path in judged.items()}
    lines = [
        [name, str(num_runs(name)), f"`{design.digest()}`"] for name, design in designs.items() if design is not None
    ]
    parts += ["### Designs", table(["set", "runs", "SHA-256 of the design"], lines)]
    return "\n\n".join(parts)


def main(write: bool) -> int:
    path = EVIDENCE / "README.md"
    page = path.read_text(encoding="utf-8")
    wanted = page_with(page, tables(), BEGIN, END)
    if write:
        path.write_text(wanted, encoding="utf-8")
    elif page != wanted:
        print("evidence/README.md: the tables are not those of the files beside it; run make evidence-page")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] == ["--write"]))
