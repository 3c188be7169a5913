import copy
import json
import pathlib
import re

import pytest

from pages import read, words
from whatwhere.comparison.content import Content, figures_content
from whatwhere.experiment import judge, read_results
from whatwhere.report import is_page, page, tables, write_page
from whatwhere.statistics.epochs import LAST

DOCS = pathlib.Path(__file__).parents[2] / "docs"
SIGN_DIGITS, YOLO_SHAPES = DOCS / "sign-digits", DOCS / "yolo-shapes"
HARD_NAMES = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=y>',
    "无尾熊",
    "a & b",
    "{{ 7 * 7 }}",
    "a\x1b[31m\udc80",
]


def sections(html):
    return re.findall(r"<h2>(.*?)</h2>", html)


def hard(content):
    """Put every hard name wherever a name may stand."""
    content = copy.deepcopy(content)
    judgement = content["judgement"]
    content["title"] = content["subtitle"] = judgement["baseline"] = judgement["metric"]["label"] = HARD_NAMES[0]
    renamed = dict(zip((arm["arm"] for arm in judgement["arms"]), HARD_NAMES[1:], strict=False))
    for arm in judgement["arms"]:
        arm["arm"] = renamed[arm["arm"]]
        arm["seeds"] = [HARD_NAMES[0], *arm["seeds"][1:]]
        arm["cautions"] = HARD_NAMES
    for other in judgement["others"]:
        other["arm"], other["metric"]["label"] = renamed[other["arm"]], HARD_NAMES[0]
    for section in ("per_class", "cost"):
        for row in content[section]["rows"]:
            row["arm"] = renamed.get(row["arm"], row["arm"])
    for index, row in enumerate(content["per_class"]["rows"]):
        row["class"] = HARD_NAMES[index % len(HARD_NAMES)]
    content["curves"]["arms"] = {renamed.get(name, name): value for name, value in content["curves"]["arms"].items()}
    content["arms"] = dict.fromkeys([HARD_NAMES[0], *renamed.values()], HARD_NAMES[0])
    content["cautions"] = content["changes"] = HARD_NAMES
    content["settings"] = [[HARD_NAMES[0], [[name, name] for name in HARD_NAMES]]]
    content["environment"] = [[name, name] for name in HARD_NAMES]
    content["cost"]["device"] = content["curves"]["y"] = HARD_NAMES[0]
    for run in content["runs"]:
        run["seed"] = HARD_NAMES[0]
    return content


def test_pages_are_well_formed(everything, figures_only):
    for content in (everything, figures_only, hard(everything)):
        parser = read(page(content))
        assert len(parser.ids) == len(set(parser.ids))
        assert set(parser.references) <= set(parser.ids)
        assert parser.headings[0] == 1
        assert parser.headings.count(1) == 1
        assert all(after <= before + 1 for before, after in zip(parser.headings, parser.headings[1:], strict=False))


def test_all_sections_in_order(everything):
    assert sections(page(everything)) == [
        "Verdict",
        "All pairs",
        "Every seed",
        "How likely an arm wins",
        "Tests",
        "Other metrics",
        "Learning curves",
        "Cost",
        "Classes",
        "How the verdict is made",
        "Settings",
        "Changes after the start",
        "Environment",
        "Runs",
    ]


def test_the_size_and_the_shape_of_the_images_are_told(everything, figures_only):
    assert "accuracy on the test images. Images: 96 px, letterbox<" in page(everything)
    assert "Images:" not in page(figures_only)
    assert "images: 96 px, letterbox" in tables(everything)[0].note.splitlines()
    assert not any("images:" in (table.note or "") for table in tables(figures_only))


def test_sections_without_data_are_left_out(figures_only, arm):
    # of fewer than 6 pairs there are no tests
    present = ["Verdict", "All pairs", "Every seed", "How likely an arm wins", "How the verdict is made"]
    assert sections(page(figures_only)) == present
    figures_only["judgement"]["arms"] = [arm("mosaic", ())]
    assert sections(page(figures_only)) == ["Verdict", "How the verdict is made"]


def test_verdicts_stand_first_in_words(everything):
    text = words(page(everything))
    verdicts = [
        ("se", "? se : cannot tell yet"),
        ("cbam", "✓ cbam helps"),
        ("wide", "= wide : no practical difference"),
        ("my gate", "✕ my gate hurts"),
    ]
    for arm, verdict in verdicts:
        assert verdict in text
        assert f"{arm}_resnext11_8x8d" in text
    assert text.index("cbam helps") < text.index("All pairs")
    assert "points on average" in text
    assert all(f"{arm['conclusion']}." in text for arm in everything["judgement"]["arms"])
    assert "pairs may not tell; the next look is at" in text
    assert "Changed after the start after 8 pairs were seen: margin was 0.5, is 0.3" in text
    assert "looks at 8, 16 and, at the end, 24 pairs" in text


def test_networks_that_have_hardly_learned_are_told_before_the_verdict(everything):
    assert "train longer" not in page(everything)
    everything["first"] = [["none", "still improving"], [HARD_NAMES[0], HARD_NAMES[0]]]
    text = words(page(everything))
    assert "Before the verdict: train longer none : still improving" in text
    assert text.index("train longer") < text.index("Changed after the start") < text.index("cbam helps")
    assert not read(page(everything)).tags & {"script"}


def test_the_row_of_means_says_which_pairs_it_is_of(everything):
    assert "Mean and st. dev. are over the judged pairs." in words(page(everything))


def test_every_figure_and_difference_is_there(everything):
    html = page(everything)
    text = words(html)
    for arm in everything["judgement"]["arms"]:
        each = zip(arm["seeds"], arm["baseline"], arm["treatment"], arm["differences"], strict=True)
        for seed, before, after, difference in each:
            shown = f"{difference:+.2f}".replace("-", "\N{MINUS SIGN}")
            assert f"{after:.2f} {shown}" in text
            assert (
                f"seed {seed}: none {before:.2f} points, {arm['arm']} {after:.2f} points, difference {shown} points"
                in html
            )
        for bound in (*arm["interval_95"], arm["mean_difference"]):
            assert f"{bound:+.2f}".replace("-", "\N{MINUS SIGN}") in text


def test_marks_are_where_they_belong(figures_only, arm):
    only = arm("a", (-1.0, 3.0), verdict="helps", interval_95=(0.0, 2.0), deciding_interval=(-0.5, 2.5))
    figures_only["judgement"] |= {"arms": [only], "margin": 1.0}
    html = page(figures_only)
    assert '<rect class="band" x="3.70%" width="46.30%" height="100%"/>' in html
    assert '<circle class="dot" cx="96.30%" cy="12" r="4"><title>seed 1: ' in html
    assert '<line class="interval" x1="26.85%" x2="73.15%" y1="30" y2="30"/>' in html
    assert '<line class="whisker" x1="15.28%" x2="84.72%" y1="30" y2="30"/>' in html
    assert '<line class="whisker" x1="84.72%" x2="84.72%" y1="23" y2="37"/>' in html
    assert '<svg x="50.00%" y="30" overflow="visible"><path class="mean"' in html
    assert "better →" in html


def test_costs_with_their_ratios(everything):
    text = words(page(everything)).replace("\N{MULTIPLICATION SIGN}", "x")
    assert "cbam 434,400 x1.200 71.000 x1.000 12.00 x1.200 22.0 x1.100 90.0 x1.125 360 x0.900" in text
    assert "a batch of 32 images of 64 px on cpu (2 threads)" in text


def test_costs_that_nobody_measured(everything):
    for row in everything["cost"]["rows"]:
        row["forward_ms"] = None
    everything["cost"]["rows"][1]["training_step_ms"] = None
    text = words(page(everything)).replace("\N{MULTIPLICATION SIGN}", "x")
    assert "forward, ms" not in text
    assert "se 398,200 x1.100 71.000 x1.000 11.00 x1.100 - 380 x0.950" in text


def test_many_classes_are_folded(everything):
    row = everything["per_class"]["rows"][3]
    html = page(everything)
    assert "1 of 10 classes marked" in words(html)
    assert html.count("<details>") == 1
    everything["per_class"]["rows"] = [{**row, "class": str(number)} for number in range(21)]
    assert "se : 21 classes, 21 marked" in words(page(everything))
    assert page(everything).count("<details>") == 2


def test_pairs_after_the_look_are_marked(everything):
    assert "after the look that" not in page(everything)
    everything["judgement"]["arms"][1]["num_pairs"] = 6
    html = page(everything)
    assert html.count('<circle class="dot late" cx="') == 3  # one of them in the legend
    assert "* after the look that gave the verdict" in html


def test_everything_is_escaped(everything):
    html = page(hard(everything))
    parser = read(html)
    assert not parser.tags & {"script", "img", "i", "b"} - {"b"}
    assert not any(name.startswith("on") for name in parser.attributes)
    assert "{{ 7 * 7 }}" in html
    assert "无尾熊" in html
    assert "\x1b" not in html
    html.encode()


def test_nothing_is_asked_of_the_network_and_nothing_runs(everything):
    html = page(everything)
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'\"" in html
    assert not re.search(r"https?:|url\(|@import|<script|javascript:|<link|<img|\bsrc=", html, re.IGNORECASE)
    assert all(name.startswith("#") for name in re.findall(r'href="([^"]*)"', html))


def test_the_same_content_gives_the_same_page(everything):
    assert page(everything) == page(copy.deepcopy(everything))


def test_a_page_is_written(tmp_path, figures_only, refused):
    path = tmp_path / "report.html"
    write_page(path, figures_only)
    assert path.read_text(encoding="utf-8") == page(figures_only)
    with refused():
        write_page(tmp_path / "missing" / "report.html", figures_only)


def test_a_page_is_known_by_its_mark(tmp_path, figures_only):
    write_page(tmp_path / "page.html", figures_only)
    assert is_page(tmp_path / "page.html")
    (tmp_path / "other.html").write_text("<!DOCTYPE html>\n<title>whatwhere</title>")
    assert not is_page(tmp_path / "other.html")
    # a name cannot bear the mark
    figures_only["title"] = '<meta name="generator" content="whatwhere">'
    assert page(figures_only).count('<meta name="generator"') == 1


def test_verdicts_of_old_versions_can_be_drawn():
    # written before `first`, `cautions` of the judgement, and `num_pairs` of a class
    old = json.loads(pathlib.Path(__file__).with_name("old_verdict.json").read_text())
    assert "first" not in old
    assert sections(page(old))[:3] == ["Verdict", "All pairs", "Every seed"]
    assert "3 against none" in words(page(old))


def test_the_report_of_the_guide_has_the_words_of_today():
    content = json.loads((SIGN_DIGITS / "verdict.json").read_text())
    judgement = judge(read_results(SIGN_DIGITS / "results.csv"), metric="accuracy", baseline="none", test_images=1443)
    for found, expected in zip(content["judgement"]["arms"], judgement.arms, strict=True):
        for name in ("verdict", "conclusion", "reason", "advice", "mean_difference", "p_t", "p_sign_flip"):
            assert found[name] == getattr(expected, name)
        assert found["cautions"] == list(expected.cautions)
    # where a template changed, write the page anew: write_page(SIGN_DIGITS / "report.html", content)
    assert (SIGN_DIGITS / "report.html").read_text() == page(content)


def test_the_report_of_the_yolo_guide_has_the_words_of_today():
    """Its runs are not kept, but their table, and what `collect` told of them."""
    results = read_results(YOLO_SHAPES / "results.csv", "metrics/mAP50-95(B)")
    results.notes = [
        "18 runs of Ultralytics",
        "the arm is taken from the path, the seed from the path",
        "settings that name, store or place a run were not compared: name, save_dir",
        LAST,
    ]
    judgement = judge(results, metric="metrics/mAP50-95(B)", baseline="none")
    content = figures_content(judgement, results, "shapes-runs")
    # where a template or the words changed, write the page anew: write_page(YOLO_SHAPES / "report.html", content)
    assert (YOLO_SHAPES / "report.html").read_text() == page(content)


def test_content_becomes_the_same_json_again(everything, figures_only):
    for content in (everything, figures_only):
        found = Content.of(content).to_dict()
        assert Content.of(found) == Content.of(content)
        assert {key: found[key] for key in content if key not in ("judgement", "per_class", "cost", "runs")} == {
            key: value for key, value in content.items() if key not in ("judgement", "per_class", "cost", "runs")
        }
        assert found["judgement"] == content["judgement"]


@pytest.mark.parametrize(
    "damage",
    [
        {"title": 5},
        {"judgement": None},
        {"runs": [{"arm": "none"}]},
        {"first": [["none"]]},
    ],
    ids=str,
)
def test_what_is_no_content_is_a_sentence(everything, damage, refused):
    with refused():
        page({**everything, **damage})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda judgement: judgement["arms"][0].update(verdict="splendid"),
        lambda judgement: judgement["metric"].update(higher_is_better=None),
        lambda judgement: judgement["others"][0].pop("metric"),
        lambda judgement: judgement["others"][0].update(arm=5),
        lambda judgement: judgement["others"].__setitem__(0, 5),
    ],
)
def test_a_damaged_judgement_is_a_sentence(everything, spoil, refused):
    spoil(everything["judgement"])
    with refused():
        page(everything)


def test_an_option_that_is_empty_is_shown_as_none(everything):
    everything["settings"] = [["recipe", [["pretrained", ""]]]]
    assert "<td><bdi>none</bdi></td>" in page(everything)
