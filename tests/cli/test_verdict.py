"""`whatwhere verdict`: the verdict on figures from elsewhere."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from data_sets import EFFECTS, figures
from run_folders import ultralytics_run

HOSTILE = (
    "<script>alert(1)</script>",
    "[red]x[/red]",
    "[/]",
    "=cmd|' /C calc'!A0",
    'two\n"lines"',
    "\x1b[31mred\x1b[0m",
    "../../etc/passwd",
    "{{7*7}}",
    "a" * 300,
)
# differences to the baseline, pair by pair
CLEAR = (1.9, 2.2, 2.0, 1.8, 2.1, 2.3, 1.7, 2.0, 2.1)
UNCLEAR = (1.9, -2.2, 2.0, -1.8, 2.1, -2.3, 1.7, -2.0, 2.1)


@pytest.fixture
def table(tmp_path):
    """Return a CSV of as many pairs: arm cbam with these differences in points."""

    def write(num_pairs, differences=CLEAR, name="results.csv", arm="cbam", column="accuracy"):
        path = tmp_path / name
        with open(path, "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["arm", "seed", column])
            for seed in range(num_pairs):
                rows.writerow(["none", seed, 0.8 + seed / 1000])
                rows.writerow([arm, seed, 0.8 + seed / 1000 + differences[seed] / 100])
        return path

    return write


def verdict_of(content):
    (arm,) = content["judgement"]["arms"]
    return arm


def read(path):
    return json.loads(path.read_text())


def test_tables_and_a_page_and_a_record_beside_the_table(whatwhere, table, tmp_path):
    status, out, err = whatwhere("verdict", table(6))
    assert (status, err) == (0, "")
    assert "results.csv: accuracy minus that of none, points" in out
    assert "cbam   helps" in out
    assert out.endswith(f"The report: {tmp_path / 'results.verdict.html'}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "results.csv", "results.verdict.html", "results.verdict.json"
    ]  # fmt: skip
    assert "cbam" in (tmp_path / "results.verdict.html").read_text()
    record = read(tmp_path / "results.verdict.json")
    assert verdict_of(record)["verdict"] == "helps"
    status, out, _ = whatwhere("verdict", table(6), "--json")
    assert (status, json.loads(out)) == (0, record)


@pytest.mark.parametrize("form", ["latex", "markdown"])
def test_the_table_of_a_paper_alone_is_printed(whatwhere, table, tmp_path, form):
    _, shown, _ = whatwhere("verdict", table(6))
    status, out, err = whatwhere("verdict", table(6), f"--{form}")
    assert (status, err) == (0, shown)  # with what a reader must know
    lines = out.splitlines()
    assert [line for line in lines if "cbam" in line and "helps" in line] == [lines[7 if form == "latex" else 3]]
    assert (lines[-1] == "\\end{tabular}") is (form == "latex")
    assert lines[0].startswith("% results.csv" if form == "latex" else "| arm ")
    assert (tmp_path / "results.verdict.html").exists()


@pytest.mark.parametrize("forms", [("--json", "--latex"), ("--latex", "--markdown")])
def test_a_result_has_one_form(table, tmp_path, forms, refused_command):
    refused_command("verdict", table(6), *forms)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_the_first_look_is_kept_beside_the_table(whatwhere, table, tmp_path):
    whatwhere("verdict", table(6, UNCLEAR))
    first = verdict_of(read(tmp_path / "results.verdict.json"))
    for num_pairs, read_at in ((8, 6), (9, 9)):
        status, out, _ = whatwhere("verdict", table(num_pairs, UNCLEAR), "--json", "--margin", "1")
        arm = verdict_of(json.loads(out))
        assert (status, arm["plan"], arm["num_pairs"]) == (0, first["plan"], read_at)
    assert arm["level"] < first["level"]
    # without the record it must be said
    (tmp_path / "results.verdict.json").unlink()
    assert verdict_of(json.loads(whatwhere("verdict", table(9), "--json")[1]))["plan"]["first"] == 9
    (tmp_path / "results.verdict.json").unlink()
    arguments = ("--first-look", "6", "--json")
    assert verdict_of(json.loads(whatwhere("verdict", table(9, UNCLEAR), *arguments)[1]))["level"] == arm["level"]


def test_what_changes_after_a_look_is_told(whatwhere, table, tmp_path):
    whatwhere("verdict", table(6))
    status, out, _ = whatwhere("verdict", table(6), "--margin", "3", "--json")
    assert json.loads(out)["changes"] == ["after a verdict on 6 pairs: margin was 0.5, is 3.0"]
    assert verdict_of(json.loads(out))["verdict"] == "no practical difference"
    before = (tmp_path / "results.verdict.json").read_text()
    for option in (("--max-pairs", "24"), ("--first-look", "8")):
        status, out, err = whatwhere("verdict", table(6), *option)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "another would spend the error twice" in err
    assert (tmp_path / "results.verdict.json").read_text() == before


def test_a_plan_that_ends(whatwhere, table):
    _, out, _ = whatwhere("verdict", table(6, UNCLEAR), "--max-pairs", "6", "--json")
    assert verdict_of(json.loads(out))["plan"] == {"first": 6, "last": 6}
    assert verdict_of(json.loads(out))["level"] == 0.05


def test_lower_is_better_needs_a_margin_and_turns_the_verdict(whatwhere, table, tmp_path):
    path = table(6, [value / 10 for value in CLEAR], column="error")
    status, out, err = whatwhere("verdict", path)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "give --lower-is-better or --higher-is-better" in err
    status, out, err = whatwhere("verdict", path, "--lower-is-better", "--higher-is-better")
    assert (status, out, err.count("\n")) == (2, "", 1)
    status, out, err = whatwhere("verdict", path, "--lower-is-better")
    assert (status, out) == (2, "")
    assert "what difference in error matters is not known; give it" in err
    assert not (tmp_path / "results.verdict.json").exists()
    _, out, _ = whatwhere("verdict", path, "--lower-is-better", "--margin", "0.0001", "--json")
    assert verdict_of(json.loads(out))["verdict"] == "hurts"
    assert json.loads(out)["judgement"]["metric"]["unit"] == ""


def test_the_metric_and_the_baseline_are_chosen(whatwhere, tmp_path):
    path = tmp_path / "several.csv"
    rows = [f"{arm},{seed},{0.7 + seed / 100 + up},{0.5 + seed / 50}" for seed in range(6) for arm, up in
            (("plain", 0.03 + seed / 1000), ("mine", 0.0))]  # fmt: skip
    path.write_text("\n".join(["arm,seed,f1,mAP50", *rows]))
    status, out, err = whatwhere("verdict", path)
    assert (status, out) == (2, "")
    assert "there are several figures, f1, mAP50; choose the one to judge by with --metric" in err
    _, out, _ = whatwhere("verdict", path, "--metric", "f1", "--baseline", "mine", "--json")
    assert json.loads(out)["judgement"]["baseline"] == "mine"
    assert verdict_of(json.loads(out))["verdict"] == "helps"
    assert [other["metric"]["name"] for other in json.loads(out)["judgement"]["others"]] == ["mAP50"]


def test_the_page_goes_where_it_is_sent(whatwhere, table, tmp_path):
    (tmp_path / "pages").mkdir()
    status, out, _ = whatwhere("verdict", table(6), "--out", tmp_path / "pages" / "mine.htm")
    assert (status, out.splitlines()[-1]) == (0, f"The report: {tmp_path / 'pages' / 'mine.htm'}")
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == ["mine.htm", "mine.json"]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["results.csv"]


@pytest.mark.parametrize(
    "out",
    [
        "",
        "results.csv",
        "./pages/../results.csv",
        "link.csv",
        ".",
        "pages",
        "page.json",
    ],
)
def test_a_page_that_cannot_be_written_leaves_everything_as_it_was(table, tmp_path, monkeypatch, out, refused_command):
    monkeypatch.chdir(tmp_path)
    path = table(6)
    (tmp_path / "pages").mkdir()
    (tmp_path / "link.csv").symlink_to(path)
    before = path.read_bytes()
    refused_command("verdict", "results.csv", "--out", out)
    assert path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link.csv", "pages", "results.csv"]


@pytest.mark.parametrize("name", ["page.html", "page.json", "results.verdict.html"])
def test_what_is_no_report_of_ours_is_not_written_over(whatwhere, table, tmp_path, name):
    (tmp_path / name).write_text("<html><p>mine</p></html>")
    out = () if name.startswith("results") else ("--out", tmp_path / "page.html")
    status, printed, err = whatwhere("verdict", table(6), *out)
    assert (status, printed, err.count("\n")) == (2, "", 1)
    assert "is not a report of whatwhere; move it away" in err or "is not a verdict of whatwhere" in err
    assert (tmp_path / name).read_text() == "<html><p>mine</p></html>"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"results.csv", name})


def test_a_report_of_ours_and_an_empty_file_are_written_over(whatwhere, table, tmp_path):
    page = tmp_path / "page.html"
    page.touch()
    for _ in range(2):
        assert whatwhere("verdict", table(6), "--out", page)[0] == 0
    assert "helps" in page.read_text()


@pytest.mark.parametrize("special", ["device", "pipe", "loop"])
def test_what_is_no_file_is_not_replaced(whatwhere, table, tmp_path, special):
    page = tmp_path / "page.html"
    if special == "device":
        page.symlink_to(os.devnull)
    elif special == "pipe":
        os.mkfifo(page)
    else:
        page.symlink_to(page)
    before = page.lstat().st_ino, page.lstat().st_mode
    status, printed, err = whatwhere("verdict", table(6), "--out", page)
    assert (status, printed, err.count("\n")) == (2, "", 1)
    assert "page.html' cannot be overwritten" in err
    assert (page.lstat().st_ino, page.lstat().st_mode) == before
    assert not (tmp_path / "page.json").exists()


def test_a_link_is_written_through(whatwhere, table, tmp_path):
    (tmp_path / "pages").mkdir()
    (tmp_path / "page.html").symlink_to(tmp_path / "pages" / "real.html")
    (tmp_path / "page.json").symlink_to(tmp_path / "pages" / "record.json")
    for _ in range(2):
        assert whatwhere("verdict", table(6), "--out", tmp_path / "page.html")[0] == 0
    assert (tmp_path / "page.html").is_symlink()
    assert (tmp_path / "page.json").is_symlink()
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == ["real.html", "record.json"]


def test_missing_runs_are_a_caution_and_the_complete_pairs_are_judged(whatwhere, table):
    path = table(8)
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("cbam,3,")))
    arm = verdict_of(json.loads(whatwhere("verdict", path, "--json")[1]))
    assert (arm["verdict"], arm["num_pairs"]) == ("helps", 7)
    assert arm["cautions"] == [
        "cbam has no accuracy for 1 seed (3: no run): only complete pairs are judged, and if a run failed, leaving it "
        "out makes cbam look better than it is"
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--max-pairs", "5"),
        ("--first-look", "5"),
        ("--max-pairs", "10001"),
        ("--lower-is-better",),
        ("--margin", "1e308"),
        ("--metric", ""),
        ("--baseline", ""),
        ("--out", "a\0.html"),
    ],
)
def test_options_that_cannot_be_are_a_sentence(table, tmp_path, arguments, refused_command):
    refused_command("verdict", table(6), *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


@pytest.mark.parametrize("size", ["1e308", "-1e308", "1e160", "1e-200"])
def test_figures_beyond_all_sense_are_a_sentence(refused_command, table, tmp_path, size):
    path = table(6, column="score")
    path.write_text(path.read_text().replace("0.801\n", f"{size}\n", 1).replace("none,1,0.801", f"none,1,{size}"))
    refused_command("verdict", path)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_results_in_a_json_are_not_written_over(whatwhere, table):
    path = table(6, name="results.json")
    before = path.read_bytes()
    status, _, err = whatwhere("verdict", path, "--out", path.with_suffix(".html"))
    assert (status, path.read_bytes()) == (2, before)
    assert "would write over the results" in err
    assert whatwhere("verdict", path)[0] == 0


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "arm,seed,accuracy\nnone,0,0.5\n",
        "arm,accuracy\nnone,0.5\n",
        "arm,seed,accuracy\nnone,0,0.5\nnone,0,0.6\n",
        "arm,seed,accuracy\nnone,0,0.5\nse,0,good\n",
        "arm,seed,accuracy\nnone,0,0.5,7\n",
    ],
)
def test_a_table_that_is_none_is_a_sentence(whatwhere, tmp_path, text, refused_command):
    path = tmp_path / "results.csv"
    if text is not None:
        path.write_text(text)
    err = refused_command("verdict", path)
    assert whatwhere("verdict", path, "--json") == (2, "", err)
    assert [path.name for path in tmp_path.iterdir()] == ([] if text is None else ["results.csv"])


@pytest.mark.parametrize("command", ["verdict", "collect"])
@pytest.mark.parametrize("options", [(), ("--metric", "acc")], ids=["", "metric"])
@pytest.mark.parametrize("head", ["arm,seed,acc", "arm,seed,acc,epoch,folder,collect_notes"], ids=["own", "collected"])
def test_a_table_of_a_head_alone_is_a_sentence(tmp_path, monkeypatch, head, options, command, refused_command):
    """What a filter leaves of a table where no line fits."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "filtered.csv").write_text(f"{head}\n")
    refused_command(command, "filtered.csv", *options)
    assert [path.name for path in tmp_path.iterdir()] == ["filtered.csv"]


@pytest.mark.parametrize("name", [".", ".."])
def test_a_folder_without_runs_is_a_sentence(whatwhere, tmp_path, monkeypatch, name):
    folder = tmp_path / "own" / "folder"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    status, out, err = whatwhere("verdict", name)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"no run in '{name}'" in err


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"judgement": {}}', "[" * 100_000], ids=lambda text: text[:20])
def test_a_file_in_the_records_place_is_not_written_over(whatwhere, table, tmp_path, text):
    (tmp_path / "results.verdict.json").write_text(text)
    status, out, err = whatwhere("verdict", table(6))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "results.verdict.json' is not a verdict of whatwhere" in err
    assert (tmp_path / "results.verdict.json").read_text() == text


@pytest.mark.parametrize(
    "damage",
    [
        *({"baseline": value} for value in (None, [], "")),
        *({"arms": value} for value in ([], None, [5])),
        *({"margin": value} for value in (None, "x", 1e308)),
        *({"max_pairs": value} for value in ("x", -1, 10**12)),
        {"metric": None},
    ],
    ids=str,
)
def test_a_damaged_record_is_a_sentence(whatwhere, table, tmp_path, damage):
    whatwhere("verdict", table(6))
    path = tmp_path / "results.verdict.json"
    content = read(path)
    path.write_text(json.dumps({**content, "judgement": {**content["judgement"], **damage}}))
    status, out, err = whatwhere("verdict", table(6))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "is not a verdict of whatwhere" in err
    assert "--first-look" in err


@pytest.mark.parametrize(
    "damage",
    [{"arm": None}, {"verdict": 5}, {"num_pairs": 99}, {"baseline": ["x"] * 6}, {"plan": {"first": 5}}],
    ids=str,
)
def test_a_damaged_arm_of_a_record_is_a_sentence(whatwhere, table, tmp_path, damage):
    whatwhere("verdict", table(6))
    path = tmp_path / "results.verdict.json"
    content = read(path)
    content["judgement"]["arms"][0] |= damage
    path.write_text(json.dumps(content))
    status, out, err = whatwhere("verdict", table(6))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "is not a verdict of whatwhere" in err


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_shown_as_they_are(whatwhere, table, tmp_path, name):
    path = table(6, arm=name, column=name.replace("\n", " "))
    status, out, err = whatwhere("verdict", path, "--higher-is-better", "--margin", "0.005")
    assert (status, err) == (0, "")
    assert "\x1b" not in out
    shown = name.replace("\x1b", "\\x1b").replace("\n", "\\n")
    assert shown[:20] in out
    page = (tmp_path / "results.verdict.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "\x1b" not in page
    assert verdict_of(read(tmp_path / "results.verdict.json"))["arm"] == shown


CASES = Path(__file__).parents[1] / "statistics" / "cases"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("derived-rows", r"line 12 of .*: seed 'mean' is no number"),
        ("two-scales", "mAP50 has two scales, shares such as"),
    ],
)
def test_rows_that_are_no_runs_and_two_scales_are_refused(whatwhere, tmp_path, name, message):
    shutil.copy(CASES / f"{name}.csv", tmp_path)
    status, out, err = whatwhere("verdict", tmp_path / f"{name}.csv", "--baseline", "none")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.csv"]


@pytest.mark.parametrize(
    ("name", "left_out"), [("pandas-index", "counts the rows"), ("text-column", "commit holds text")]
)
def test_columns_that_are_left_out_are_told_in_terminal_and_page(whatwhere, tmp_path, name, left_out):
    shutil.copy(CASES / f"{name}.csv", tmp_path)
    status, out, _ = whatwhere("verdict", tmp_path / f"{name}.csv")
    assert status == 0
    assert left_out in out
    assert left_out in (tmp_path / f"{name}.verdict.html").read_text()
    assert read(tmp_path / f"{name}.verdict.json")["judgement"]["others"] == []


@pytest.mark.parametrize(("idle", "is_told"), [(range(6), True), ((0, 1, 2), True), ((0, 1), False)])
def test_the_headline_says_that_the_attention_was_hardly_used(whatwhere, tmp_path, idle, is_told):
    """From the runs and from their table alike, whatever order its columns have."""
    for seed in range(6):
        ultralytics_run(tmp_path / "runs" / f"none-{seed}", "none", seed)
        ultralytics_run(tmp_path / "runs" / f"cbam-{seed}", "cbam", seed)
        path = tmp_path / "runs" / f"cbam-{seed}" / "attention.json"
        mix = 0.01 if seed in idle else 0.4
        path.write_text(json.dumps({**json.loads(path.read_text()), "largest_mix": mix}))
    whatwhere("collect", tmp_path / "runs", "--out", tmp_path / "results.csv")
    with open(tmp_path / "results.csv", newline="") as file:
        rows = [row[::-1][1:] for row in csv.reader(file)]  # turned round, without the notes
    with open(tmp_path / "turned.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    for results in ("runs", "results.csv", "turned.csv"):
        options = ("--metric", "metrics/mAP50-95(B)", "--margin", "5")
        status, out, err = whatwhere("verdict", tmp_path / results, *options)
        assert (status, err) == (0, "")
        assert ("(attention hardly used)" in " ".join(out.split())) is is_told, results
        conclusion = verdict_of(read(tmp_path / f"{Path(results).stem}.verdict.json"))["conclusion"]
        assert ("The attention of cbam was hardly used: train for more steps" in conclusion) is is_told
        assert ("(attention hardly used)</span>" in (tmp_path / f"{Path(results).stem}.verdict.html").read_text()) is (
            is_told
        )


def test_a_folder_and_a_table_of_one_name_do_not_share_a_record(whatwhere, table, tmp_path, refused_command):
    path = table(6, name="nz.csv")
    whatwhere("verdict", path)
    before = [(tmp_path / name).read_bytes() for name in ("nz.verdict.json", "nz.verdict.html")]
    for seed in range(6):
        ultralytics_run(tmp_path / "nz" / f"none-{seed}", "none", seed)
        ultralytics_run(tmp_path / "nz" / f"se-{seed}", "se", seed)
    options = ("--metric", "metrics/mAP50(B)", "--margin", "1")
    refused_command("verdict", tmp_path / "nz", *options)
    (tmp_path / "nz.tsv").write_text(path.read_text().replace(",", "\t"))
    refused_command("verdict", tmp_path / "nz.tsv")
    assert [(tmp_path / name).read_bytes() for name in ("nz.verdict.json", "nz.verdict.html")] == before
    assert whatwhere("verdict", tmp_path / "nz", *options, "--out", tmp_path / "other.html")[0] == 0


def test_tables_of_one_name_do_not_share_a_record(whatwhere, table, tmp_path, refused_command):
    """The second one took the place of the first, and its look counted as one at the first."""
    for name in ("a", "b", "moved"):
        (tmp_path / name).mkdir()
    out = ("--out", tmp_path / "page.html")
    assert whatwhere("verdict", table(6, name="a/results.csv"), *out)[0] == 0
    before = [(tmp_path / name).read_bytes() for name in ("page.json", "page.html")]
    assert read(tmp_path / "page.json")["source"] == ["a/results.csv"]
    refused_command("verdict", table(6, UNCLEAR, name="b/results.csv"), *out)
    assert [(tmp_path / name).read_bytes() for name in ("page.json", "page.html")] == before
    # the same table grows, and may be moved
    assert whatwhere("verdict", table(8, name="a/results.csv"), *out)[0] == 0
    shutil.move(tmp_path / "a" / "results.csv", tmp_path / "moved" / "results.csv")
    assert whatwhere("verdict", tmp_path / "moved" / "results.csv", *out)[0] == 0
    found = read(tmp_path / "page.json")
    assert (verdict_of(found)["plan"]["first"], found["source"]) == (6, ["moved/results.csv"])
    # a record of an old version does not tell
    del found["source"]
    (tmp_path / "page.json").write_text(json.dumps(found))
    assert whatwhere("verdict", tmp_path / "moved" / "results.csv", *out)[0] == 0


def test_where_the_page_cannot_go_is_found_before_the_runs_are_read(whatwhere, table, tmp_path, refused_command):
    assert whatwhere("verdict", table(6), "--out", tmp_path / "page.html")[0] == 0
    other = tmp_path / "other.csv"
    other.write_text("no runs")
    for out in (tmp_path / "page.html", "/proc/self/page.html"):
        refused_command("verdict", other, "--out", out)


def test_the_folder_of_the_page_is_made(whatwhere, table, tmp_path):
    assert whatwhere("verdict", table(6), "--out", tmp_path / "new" / "pages" / "x.html")[0] == 0
    assert (tmp_path / "new" / "pages" / "x.json").is_file()


def test_runs_on_two_drives_need_a_place_for_the_page(table, tmp_path, monkeypatch, refused_command):
    def two_drives(paths):
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr("os.path.commonpath", two_drives)
    first, second = table(6, name="a.csv"), table(6, name="b.csv", arm="se")
    second.write_text("\n".join(line for line in second.read_text().splitlines() if not line.startswith("none")))
    refused_command("verdict", first, second)


def test_the_interval_of_the_verdict_is_told_from_that_of_the_table(whatwhere, table):
    whatwhere("verdict", table(6, UNCLEAR))
    note = "the verdict is read at the interval in its sentence"
    assert note in " ".join(whatwhere("verdict", table(6, UNCLEAR))[1].split())
    (_, only, _) = whatwhere("verdict", table(6, UNCLEAR, "only.csv"), "--max-pairs", "6")
    assert note not in " ".join(only.split())


@pytest.fixture
def five(tmp_path):
    """Five tables of five data sets, in each of which cbam helps by about one point."""
    paths = []
    for seed, name in enumerate(EFFECTS):
        paths.append(tmp_path / f"{name}.csv")
        paths[-1].write_text(figures(seed, cbam=1.0).to_csv())
    return paths


def test_one_verdict_across_tables(whatwhere, five, tmp_path):
    status, out, err = whatwhere("verdict", "--across", *five)
    assert (status, err) == (0, "")
    assert out.startswith("cifar10, digits, flowers, pets and 1 more: accuracy minus that of the baseline, points\n")
    assert " cbam   helps on average " in out
    assert "taken for data sets of their own" in out
    assert out.endswith(f"The report: {tmp_path / 'across.html'}\n")
    record = read(tmp_path / "across.json")
    assert "helps on average" in (tmp_path / "across.html").read_text()
    # again over its own files
    status, out, _ = whatwhere("verdict", "--across", *five, "--json")
    assert (status, json.loads(out)) == (0, record)
    assert record["across"]["arms"][0]["verdict"] == "helps on average"
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [*[".csv"] * 5, ".html", ".json"]


@pytest.mark.parametrize("form", ["latex", "markdown"])
def test_the_table_of_a_paper_across_tables(whatwhere, five, form):
    _, shown, _ = whatwhere("verdict", "--across", *five)
    status, out, err = whatwhere("verdict", "--across", *five, f"--{form}")
    assert (status, err) == (0, shown)
    assert ("\\begin{tabular}" in out, "|:---" in out) == (form == "latex", form == "markdown")
    assert sum("helps on average" in line for line in out.splitlines()) == 1


def test_data_sets_across_tables(whatwhere, five):
    _, out, _ = whatwhere("verdict", "--across", *five, "--data-sets", "a, b,c,d,d", "--json")
    arm = json.loads(out)["across"]["arms"][0]
    assert [one["name"] for one in arm["data_sets"]] == ["a", "b", "c", "d"]
    _, out, _ = whatwhere("verdict", "--across", *five, "--data-sets", "a,a,c,d,d", "--margin", "2")
    assert "3 data sets count, and a verdict needs 4" in out
    assert "taken for data sets of their own" not in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--first-look", "6"], "--first-look is for one comparison: leave it out with --across, or judge each alone"),
        (["--max-pairs", "12"], "--max-pairs is for one comparison"),
        (["--test-images", "12"], "--test-images is for one comparison"),
        (["--data-sets", "a,b"], "there are 5 comparisons and 2 data sets; give one for each, in this order: cifar10"),
        (["--out", ""], "--out is empty"),
    ],
)
def test_refused_across_tables(whatwhere, five, tmp_path, options, message):
    status, out, err = whatwhere("verdict", "--across", *five, *options)
    assert (status, out) == (2, "")
    assert message in err
    assert len(list(tmp_path.iterdir())) == 5


def test_across_takes_no_place_of_other_files(whatwhere, five, tmp_path):
    (tmp_path / "across.json").write_text('{"mine": 1}')
    status, _, err = whatwhere("verdict", "--across", *five)
    assert status == 2
    assert "across.json' is no verdict across comparisons; move it away, or give another --out" in err
    (tmp_path / "across.json").unlink()
    status, _, err = whatwhere("verdict", *five[:1], "--data-sets", "a")
    assert (status, "--data-sets names those of several comparisons; give --across too" in err) == (2, True)
    status, _, err = whatwhere("verdict", "--across", five[0])
    assert (status, "a verdict across comparisons needs two or more, got 1" in err) == (2, True)
