import dataclasses
import io

import pytest
import rich.console

from data_sets import EFFECTS, compared, several
from pages import read, words
from whatwhere.base.tables import rich_tables
from whatwhere.experiment import across
from whatwhere.report import (
    across_page,
    across_paper_table,
    across_tables,
    is_page,
    latex,
    write_across_page,
)

TITLE = "cifar10, digits and 6 more"


@pytest.fixture
def verdict():
    """Six comparisons that count, two that do not, and three arms: one depends, one is open, one occurs once."""
    comparisons = {
        f"{name}: resnext11_8x8d": compared(seed, deviation=1.0, cbam=effect, se=effect - 1.2)
        for seed, (name, effect) in enumerate(EFFECTS.items())
    }
    comparisons["stars: resnet18"] = compared(40, deviation=0.8, cbam=-2.5, se=0.2)
    comparisons["few"] = compared(41, num_pairs=5, cbam=2.0)
    comparisons["copied"] = compared(42, deviation=0.0, cbam=2.0, eca=1.5)
    return across(comparisons, {"few": "pets"})


def printed(verdict, width=80):
    console = rich.console.Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    console.print(rich_tables(across_tables(verdict, TITLE)))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def test_the_terminal(verdict, snapshot):
    assert printed(verdict) == snapshot


def test_the_text_of_the_page(verdict, snapshot):
    assert words(across_page(verdict, TITLE)) == snapshot


def test_a_plot_has_its_marks_where_the_axis_has_them(verdict):
    cbam = next(table for table in across_tables(verdict, TITLE) if table.title == "cbam: every comparison")
    plots = {row[0]: row[1].replace("\N{NO-BREAK SPACE}", " ") for row in cbam.rows}
    assert {len(plot) for plot in plots.values()} == {21}
    zero = plots["copied"].index("|")
    assert plots["stars: resnet18"].index("o") < zero < plots["digits: ...t11_8x8d"].index("o")
    assert plots["few"].count("x") == plots["copied"].count("x") == 1  # not counted
    assert plots["mean of 6 data sets"].count("#") == 1
    # without an interval, the mean alone
    assert plots["copied"].strip(" :|") == "x"


def test_an_interval_beyond_the_plot_has_an_arrow():
    wide = across({**several(), "noisy": compared(9, num_pairs=6, deviation=12.0, cbam=1.0)})
    plot = across_tables(wide, TITLE)[1].rows[-3][1]
    assert plot[-1] == ">"
    assert "continues beyond the axis" in words(across_page(wide, TITLE))


def test_lower_is_better_turns_the_sides(verdict):
    turned = dataclasses.replace(verdict, metric=dataclasses.replace(verdict.metric, higher_is_better=False))
    assert across_tables(turned, TITLE)[1].columns[1] == "better | worse"
    assert across_tables(turned, TITLE)[0].title.endswith("minus that of the baseline, points, lower is better")
    assert "\N{LEFTWARDS ARROW} better" in words(across_page(turned, TITLE))


def test_the_page_is_well_formed_and_ours(verdict, tmp_path):
    for one in (verdict, across(several()), across(dict(list(several().items())[:3]))):
        parser = read(across_page(one, TITLE))
        assert len(parser.ids) == len(set(parser.ids))
        assert set(parser.references) <= set(parser.ids)
        assert parser.headings[:2] == [1, 2]
        assert parser.tags.isdisjoint({"script", "link", "img"})
    write_across_page(tmp_path / "across.html", verdict, TITLE)
    assert is_page(tmp_path / "across.html")
    assert across_page(verdict, TITLE) == (tmp_path / "across.html").read_text(encoding="utf-8")


def test_names_are_escaped():
    names = ["<script>alert(1)</script>", "{{ 7 * 7 }}", "a\x1b[31m\udc80", '"><img src=x>', "无尾熊"]
    comparisons = {name: compared(seed, cbam=1.0, **{names[0]: 1.0}) for seed, name in enumerate(names)}
    verdict = across(comparisons)
    html = across_page(verdict, names[0])
    assert read(html).tags.isdisjoint({"script", "img"})
    assert "\x1b" not in html
    assert "\x1b" not in printed(verdict)
    html.encode()


def test_arms_that_share_the_error_are_told():
    comparisons = {name: compared(seed, cbam=1.0, se=0.2) for seed, name in enumerate(EFFECTS)}
    assert "the error of 5 % is shared by all arms" in printed(across(comparisons))
    assert "the error of 5 % is shared by all arms" not in printed(across(several()))


def test_the_table_of_a_paper(verdict, snapshot):
    table = across_paper_table(verdict, TITLE)
    assert table.columns[2:-4] == tuple(verdict.baselines)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    cbam = next(arm for arm in verdict.arms if arm.arm == "cbam")
    for one in cbam.comparisons:
        if one.standard_error is not None:
            figure = f"{one.mean_difference:+.2f} ± {one.standard_error:.2f}"
            assert rows["cbam"][one.comparison] == (f"({figure})" if one.left_out else figure)
    assert rows["cbam"]["few"].startswith("(+")  # five pairs do not count
    assert (rows["se"]["few"], rows["eca"]["digits: resnext11_8x8d"]) == ("-", "-")  # not in it
    assert rows["cbam"]["mean"] == f"{cbam.mean_difference:+.2f}"
    low, high = cbam.prediction_interval
    assert rows["cbam"]["next data set"] == f"{low:+.2f} to {high:+.2f}"
    assert rows["eca"]["mean"] == rows["eca"]["next data set"] == "-"  # one comparison has no mean
    assert latex(table) == snapshot
