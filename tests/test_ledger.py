"""docs/ledger.csv is sound, its page has its summary, and what is wrong in it is named."""

import csv
import io
import re

import pytest
from statsmodels.regression.linear_model import OLS

import ledger

ROWS = ledger.read((ledger.DOCS / "ledger.csv").read_text(encoding="utf-8"))


def changed(**cells):
    """Return the rows, with other cells in the first."""
    return [{**ROWS[0], **cells}, *ROWS[1:]]


def row(pair, baseline, difference, **cells):
    return {**ROWS[0], "pair": pair, "baseline": baseline, "difference": str(difference), "main": "yes", **cells}


def test_the_ledger_and_its_page_are_sound(capsys):
    assert ledger.main(write=False) == 0
    assert capsys.readouterr().out.strip() == "docs/ledger.csv: 0 faults"
    assert sum(map(ledger.counts, ledger.main_rows(ROWS))) >= 40


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        ({"difference": "-0.371"}, "line 2: difference is -0.371, but 80.012 - 80.382 = -0.370"),
        ({"difference": "0.370"}, "line 2: difference is 0.370, but 80.012 - 80.382 = -0.370"),
        ({"seeds": "five seeds"}, "line 2: seeds is 'five seeds', not one of paired, several, unpaired, single seed"),
        ({"read": "somewhere"}, "line 2: read is 'somewhere', not one of in a copy, in the source, second-hand"),
        ({"by": "me"}, "line 2: by is 'me', not one of authors of the attention, others"),
        ({"source": " "}, "line 2: source is empty"),
        ({"plain": "80,382"}, "line 2: plain is '80,382', not a number"),
        ({"plain": "inf"}, "line 2: plain is 'inf', not a number"),
        ({"epochs": "long"}, "line 2: epochs is 'long', not a number"),
        ({"with_attention": "", "difference": ""}, "line 2: difference is '', not a number"),
        ({"plain": "180.382", "difference": "-100.370"}, "line 2: a figure is not between 0 and 100"),
        ({"main": ""}, "pair timm-resnet50-a1-se: 0 main rows, not one"),
        ({"image_size": "288"}, "line 3: the same pair, test set and image size as in line 2"),
        ({"epochs": "300"}, "line 3: epochs differs from line 2, of the same pair"),
        ({"plain_params": "25.6"}, "line 3: plain_params differs from line 2, of the same baseline"),
    ],
)
def test_a_fault_is_named_with_its_line(cells, fault):
    assert fault in ledger.problems(changed(**cells))


def test_pairs_with_one_baseline_have_one_plain_figure():
    line = next(i for i, row in enumerate(ROWS) if row["pair"] == "timm-resnet33ts-ra2-eca")
    rows = [dict(row) for row in ROWS]
    rows[line] |= {"plain": "79.215", "difference": "0.877"}
    fault, *_ = ledger.problems(rows)
    assert re.fullmatch(
        rf"line {line + 2}: plain differs from line \d+, of the same baseline, test_set, image_size", fault
    )


def test_a_line_with_too_few_cells_is_named():
    text = (ledger.DOCS / "ledger.csv").read_text(encoding="utf-8") + "a,b,c\n"
    assert ledger.problems(ledger.read(text)) == [f"line {len(ROWS) + 2}: not {len(ledger.COLUMNS)} cells"]


def test_fewer_than_forty_pairs_are_too_few():
    assert ledger.problems(ROWS[:20]) == ["3 pairs count, fewer than 40"]


def test_another_column_ends_the_program():
    file = io.StringIO()
    csv.writer(file).writerow([*ledger.COLUMNS, "extra"])
    with pytest.raises(SystemExit, match="the columns must be pair,baseline,"):
        ledger.read(file.getvalue())


def test_a_baseline_counts_once_with_the_mean_of_its_pairs():
    rows = [row("a-se", "a", 1, source="x"), row("a-cbam", "a", 3, source="x")]
    rows += [row("b-se", "b", -1, source="y"), row("c-se", "c", 2, source="z")]
    assert ledger.means(rows) == [("x", 2), ("y", -1), ("z", 2)]
    # standard deviation sqrt(3), so that the error is sqrt(3) / sqrt(3); the 97.5 % quantile with 2 degrees is 4.303
    assert ledger.table_line("all", rows) == "| all | 3 | 3 | 4 | 2 | +2.00 | +1.00 | -3.30 to +5.30 |"


def test_what_is_not_counted():
    assert ledger.counts(row("a", "a", 1))
    assert not ledger.counts(row("a", "a", 1, also_differs="epochs"))
    assert not ledger.counts(row("a", "a", 1, read="second-hand"))


def test_a_page_with_another_summary_is_a_fault(tmp_path, monkeypatch, capsys):
    for name in ("ledger.csv", "ledger.md"):
        text = (ledger.DOCS / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("| all | 13 | 43 |", "| all | 13 | 44 |"), encoding="utf-8")
    monkeypatch.setattr(ledger, "DOCS", tmp_path)
    assert ledger.main(write=False) == 1
    assert "the summary is not that of docs/ledger.csv; run make ledger" in capsys.readouterr().out
    assert ledger.main(write=True) == 0
    assert ledger.main(write=False) == 0


def test_baselines_of_one_source_are_not_independent():
    of = [*(("a", value) for value in (0.1, 0.3, 0.2, 0.4)), *(("b", value) for value in (1.0, 1.2)), ("c", 0.7)]
    values, groups = [value for _, value in of], [name for name, _ in of]
    theirs = OLS(values, [1.0] * len(of)).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    assert ledger.interval(of) == pytest.approx(tuple(theirs.conf_int()[0]))
    assert ledger.interval(of[:6]) is None
    assert {ledger.publisher(row["source"]) for row in ROWS if "timm" in row["pair"]} == {
        "github.com/huggingface/pytorch-image-models"
    }
    assert ledger.publisher("arXiv 1709.01507, Table 4") == ledger.publisher("arXiv 1709.01507, Table 2")
