"""The table of the arms for a paper."""

import itertools
import re
import statistics

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from whatwhere.base.tables import Table
from whatwhere.base.words import printable
from whatwhere.comparison.content import Content, figures_content
from whatwhere.report import latex, markdown, paper_table
from whatwhere.statistics.results import Results
from whatwhere.statistics.verdict import judge

HOSTILE = "a_b%c&d#e${f}~g^h\\i|j*k`l<m>[n]"
SPECIAL = {
    "\\_": "_", "\\%": "%", "\\&": "&", "\\#": "#", "\\$": "$", "\\{": "{", "\\}": "}",
    "\\textasciitilde{}": "~", "\\^{}": "^", "\\textbackslash{}": "\\", "\\ensuremath{\\backslash}": "\\",
    "\\ensuremath{<}": "<", "\\ensuremath{>}": ">", "$-$": "-", "$\\pm$": "±",
}  # fmt: skip
TOKEN = re.compile("|".join(re.escape(token) for token in sorted(SPECIAL, key=len, reverse=True)))


def typeset(cell):
    """What LaTeX prints for a cell: fails where something of it would mean something to LaTeX."""
    assert re.search(r"[\\_%&#${}~^]", TOKEN.sub("", cell)) is None, cell
    return TOKEN.sub(lambda found: SPECIAL[found[0]], cell)


def cells_of_latex(text):
    """The cells that LaTeX would print, line by line."""
    lines = text.splitlines()
    body = [line for line in lines if line.endswith("\\\\")]
    assert [line for line in lines if line.lstrip()[:1] in ("[", "*")] == []  # an argument of the \\\\ before
    return [[typeset(cell.strip().removeprefix("{}")) for cell in re.split(r"(?<!\\)&", line[:-2])] for line in body]


def cells_of_markdown(text):
    """The cells that a renderer of Markdown shows, line by line; all is one table and a paragraph."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    assert [token.type for token in tokens if token.level == 0] == [
        "table_open", "table_close", "paragraph_open", "paragraph_close"
    ]  # fmt: skip
    rows = []
    for before, token in itertools.pairwise(tokens):
        if before.type == "tr_open":
            rows.append([])
        if before.type in ("th_open", "td_open"):
            assert {child.type for child in token.children} <= {"text", "text_special"}
            rows[-1].append("".join(child.content for child in token.children))
    return rows


def test_the_figures_of_each_arm(everything):
    content = Content.of(everything)
    table = paper_table(content)
    assert table.columns == (
        "arm", "verdict", "accuracy, %", "difference, points", "95 % interval, points", "interval that decides, points",
        "pairs", "parameters",
    )  # fmt: skip
    baseline, *arms = table.rows
    assert [row[0] for row in table.rows] == ["none", "se", "cbam", "wide", "my gate"]
    se = content.judgement.arms[0]
    of_none = f"{statistics.fmean(se.baseline):.2f} ± {statistics.stdev(se.baseline):.2f}"
    params = {row.arm: row.num_params for row in content.cost.rows}
    assert baseline == ("none", "baseline", of_none, "-", "-", "-", "-", f"{params['none']:,}")
    for row, arm in zip(arms, content.judgement.arms, strict=True):
        assert row[1] == arm.headline
        assert row[2] == f"{statistics.fmean(arm.treatment):.2f} ± {statistics.stdev(arm.treatment):.2f}"
        assert row[3] == f"{arm.mean_difference:+.2f}".replace("+0.00", "0.00").replace("-0.00", "0.00")
        for cell, (low, high) in ((row[4], arm.interval_95), (row[5], arm.deciding_interval)):
            assert cell == f"{low:+.2f} to {high:+.2f}"
        assert row[6] == "8"


def results_of(**accuracies):
    results = Results()
    for arm, figures in accuracies.items():
        for seed, accuracy in enumerate(figures):
            results.add(arm, seed, {"accuracy": accuracy})
    return figures_content(judge(results), results, "results.csv")


def test_arms_with_other_pairs_each_have_the_mean_of_the_baseline(figures_only):
    assert "parameters" not in paper_table(Content.of(figures_only)).columns
    none = [0.80, 0.82, 0.81, 0.84, 0.83, 0.80, 0.86, 0.84]
    more = [figure + 0.01 + 0.001 * (seed * 3 % 4) for seed, figure in enumerate(none)]
    table = paper_table(results_of(none=none, se=more, cbam=more[:6]))
    assert table.rows[0][2] == "-"
    assert table.note.endswith("the baseline's mean is 82.50 for se, 81.67 for cbam")
    # one pair has no standard deviation, and nothing to claim; without a pair there is no figure
    assert paper_table(results_of(none=none, se=more[:1])).rows[1] == (
        "se", "cannot tell yet", "-", "-", "-", "-", "0"
    )  # fmt: skip
    # pairs in doubt
    assert paper_table(results_of(none=none, se=none)).rows[1][4:6] == ("-", "-")


def test_latex_and_markdown(everything, snapshot):
    table = paper_table(Content.of(everything))
    assert latex(table) == snapshot
    assert markdown(table) == snapshot
    lines = latex(table).splitlines()
    assert [line for line in lines if line.startswith("%")] == lines[:2]
    assert lines[2:4] == ["\\begin{tabular}{llrrrrrr}", "\\toprule"]
    assert lines[-2:] == ["\\bottomrule", "\\end{tabular}"]


NAMES = st.text("aB1 -_%&#${}~^\\|*`<>[]().!+±é中\n\x1b", max_size=20)


@given(rows=st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=3))
def test_every_name_is_printed_as_it_is(rows):
    rows = [tuple(" ".join(f"{printable(cell)}x".split()) for cell in row) for row in rows]
    table = Table("title", (HOSTILE, "x"), rows, note=HOSTILE)
    expected = [[HOSTILE, "x"], *map(list, rows)]
    assert cells_of_latex(latex(table)) == expected
    assert cells_of_markdown(markdown(table)) == expected
