import io
import statistics

import pytest
import rich.console

from whatwhere.base.tables import rich_tables
from whatwhere.report import tables


def printed(content, width=100):
    console = rich.console.Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    console.print(rich_tables(tables(content)))
    return console.file.getvalue()


def table(content, title):
    return next(table for table in tables(content) if table.title.startswith(title))


def test_verdicts_come_first_with_their_reasons(everything):
    first = tables(everything)[0]
    assert first.title == "sign-digits: resnext11_8x8d: accuracy minus that of none, points"
    assert first.columns == ("arm", "verdict", "mean", "95 % interval", "p", "p limit", "better in")
    assert [row[:2] for row in first.rows] == [
        ("se", "cannot tell yet"),
        ("cbam", "helps"),
        ("wide", "no practical difference"),
        ("my gate", "hurts"),
    ]
    cbam = everything["judgement"]["arms"][1]
    assert first.rows[1][2] == f"{cbam['mean_difference']:+.2f}"
    assert first.rows[1][5] == f"{cbam['level']:.2g}"
    assert first.rows[1][6] == "8 of 8"
    lines = first.note.splitlines()
    assert lines[lines.index(f"  {cbam['reason']}") - 1] == f"{cbam['conclusion']}."
    assert f"  {everything['judgement']['arms'][0]['advice']}" in lines
    assert lines[-2:] == [
        "the test images are the same for every seed",
        "changed after the start: after 8 pairs were seen: margin was 0.5, is 0.3",
    ]


def test_every_seed_with_its_differences(everything):
    seeds = table(everything, "Every seed")
    assert seeds.title == "Every seed: accuracy, %, in brackets the difference to none"
    assert seeds.columns == ("seed", "none", "se", "cbam", "wide", "my gate")
    for index, arm in enumerate(everything["judgement"]["arms"]):
        shown = [row[2 + index] for row in seeds.rows]
        each = zip(arm["treatment"], arm["differences"], strict=True)
        assert shown[:8] == [f"{after:.2f} ({difference:+.2f})" for after, difference in each]
        assert shown[8].endswith(f"({arm['mean_difference']:+.2f})".replace("-0.00", "0.00"))
        assert shown[9] == f"({arm['standard_deviation']:.2f})"


def test_nothing_but_verdict_and_seeds_of_figures_alone(figures_only, arm):
    assert [table.title for table in tables(figures_only)] == [
        "results.csv: map50 minus that of baseline, points",
        "Every seed: map50, %, in brackets the difference to baseline",
    ]
    figures_only["judgement"]["arms"] = [arm("mosaic", ())]
    assert [row[2:] for row in tables(figures_only)[0].rows] == [("-", "-", "-", "-", "-")]
    assert len(tables(figures_only)) == 1


def test_lower_is_better_is_said(everything):
    assert table(everything, "Other metrics").note.startswith("lower is better: log loss\n")
    everything["judgement"]["metric"] = {"name": "nll", "label": "nll", "higher_is_better": False}
    assert tables(everything)[0].title == "sign-digits: resnext11_8x8d: nll minus that of none, lower is better"


def test_costs_with_ratios(everything):
    cost, times = (table for table in tables(everything) if table.title.startswith("Cost"))
    assert [cell.split() for cell in cost.rows[2]] == [
        ["cbam"],
        ["434,400", "x1.200"],
        ["71.000", "x1.000"],
        ["12.00", "x1.200"],
    ]
    assert [cell.split() for cell in times.rows[0]] == [["none"], ["20.0"], ["80.0"], ["400"]]


def test_only_classes_that_differ_are_listed(everything):
    classes = table(everything, "Classes with a difference in recall: p after Holm at most 5 %")
    assert [row[:2] for row in classes.rows] == [("class 3", arm) for arm in ("se", "cbam", "wide", "my gate")]
    assert classes.note == "4 of 40"
    for row in everything["per_class"]["rows"]:
        row["p_t_holm"] = 1.0
    assert "classes: no clear difference in recall in any of 40 (p after Holm above 0.05)" in tables(everything)[0].note
    assert not any(table.title.startswith("Classes") for table in tables(everything))


def test_of_many_classes_those_with_the_smallest_p(everything):
    row = everything["per_class"]["rows"][0]
    everything["per_class"]["rows"] = [{**row, "class": str(n), "p_t_holm": 0.04 - 0.001 * n} for n in range(20)]
    classes = table(everything, "Classes")
    assert [row[0] for row in classes.rows] == [str(n) for n in range(19, 7, -1)]
    assert classes.note == "20 of 20; 8 more are not shown"


def test_seeds_after_the_look_are_marked(everything):
    everything["judgement"]["arms"][0]["num_pairs"] = 6
    seeds = table(everything, "Every seed")
    assert [row[2].endswith("*)") for row in seeds.rows] == [False] * 6 + [True] * 2 + [False] * 2
    assert seeds.note.splitlines()[1].startswith("* after the look")


def test_the_row_of_means_is_over_the_pairs_judged(everything):
    seeds = table(everything, "Every seed")
    arms = everything["judgement"]["arms"]
    assert seeds.note == "mean and st. dev. are over the judged pairs"
    assert seeds.rows[8][:2] == ("mean", f"{statistics.fmean(arms[0]['baseline']):.2f}")
    # where a run is missing, the arm has its pairs and the baseline's mean over them
    for name in ("seeds", "baseline", "treatment", "differences"):
        arms[0][name] = arms[0][name][:6]
    arms[0] |= {"num_pairs": 6, "mean_difference": statistics.fmean(arms[0]["differences"])}
    seeds = table(everything, "Every seed")
    assert seeds.rows[8][1] == "-"
    before, after = (statistics.fmean(arms[0][name]) for name in ("baseline", "treatment"))
    assert seeds.rows[8][2] == f"{after:.2f} ({after - before:+.2f})"
    assert seeds.note.endswith(
        f"the arms have different pairs: the baseline's mean is {before:.2f} for se, "
        f"{statistics.fmean(arms[1]['baseline']):.2f} for cbam, 90.70 for wide, 90.70 for my gate"
    )
    # pairs after the look are in no mean
    for arm in arms:
        arm["num_pairs"] = 6
    seeds = table(everything, "Every seed")
    assert seeds.rows[8][1] == f"{before:.2f}"


def test_networks_that_have_hardly_learned_are_told_before_the_verdict(everything):
    everything["first"] = [["none", "6 of 8 runs are no better than guessing one of 10 classes"], ["se", "\x1b[1m"]]
    first, verdicts = tables(everything)[:2]
    assert first.title == "Before the verdict: train longer"
    assert first.rows[0] == ("none", "6 of 8 runs are no better than guessing one of 10 classes")
    assert first.note.startswith("train for more epochs, or with another learning rate, before you add pairs: ")
    assert verdicts.title.startswith("sign-digits: ")
    assert "\x1b" not in printed(everything)
    assert max(map(len, printed(everything).splitlines())) <= 100


@pytest.mark.parametrize("num_arms", [1, 4, 100])
def test_a_hundred_columns_are_enough(everything, num_arms):
    arms = everything["judgement"]["arms"]
    long = "resnext50_32x4d_with_a_very_long_name_" + "x" * 60
    everything["judgement"]["arms"] = [
        {**arms[n % 4], "arm": f"{long}_{n}" if n < 2 else str(n)} for n in range(num_arms)
    ]
    lines = printed(everything).splitlines()
    assert max(map(len, lines)) <= 100
    for arm in everything["judgement"]["arms"]:
        each = zip(arm["treatment"], arm["differences"], strict=True)
        for after, difference in each:
            assert any(f"{after:.2f} ({difference:+.2f})" in line for line in lines)


def test_escape_sequences_do_not_reach_the_terminal(everything):
    arm = everything["judgement"]["arms"][0]
    arm["arm"], arm["seeds"] = "a\x1b[31m", ["\x1b[2J", *arm["seeds"][1:]]
    everything["cautions"] = everything["changes"] = ["\x1b]0;title\x07"]
    everything["title"] = "\x1b[0m"
    everything["per_class"]["rows"][3]["class"] = "\x1b[1m"
    assert "\x1b" not in printed(everything)
