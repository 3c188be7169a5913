import json
from pathlib import Path

import pytest

from comparisons import design_of
from data_sets import EFFECTS, figures
from run_folders import ultralytics_run
from whatwhere import UserError
from whatwhere.base.files import write_json
from whatwhere.comparison.across import read_comparisons
from whatwhere.comparison.arms import parse_arms
from whatwhere.comparison.content import figures_content
from whatwhere.experiment import Reading, across, judge

GUIDE = Path(__file__).parents[2] / "docs" / "sign-digits"


@pytest.fixture
def compared(tmp_path):
    """A function that writes the folder of a comparison, as `whatwhere compare` leaves it."""

    def write(name, seed, effect=1.0, num_pairs=8, images="a", first_look=6, **changes):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        results = figures(seed, num_pairs, cbam=effect)
        design = design_of(**{"data": f"data/{name}", "data_fingerprint": f"split{seed}:{images}", **changes})
        design.write(folder)
        (folder / "results.csv").write_text(results.to_csv(with_notes=True))
        judgement = judge(results, first_look=first_look, margin=design.margin)
        write_json(folder / "verdict.json", figures_content(judgement, results, name).to_dict())
        return folder

    return write


@pytest.fixture
def table(tmp_path):
    """A function that writes a table."""

    def write(name, seed, **options):
        path = tmp_path / f"{name}.csv"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(figures(seed, **{"cbam": 1.0, **options}).to_csv())
        return path

    return write


def test_tables(table):
    paths = [table(name, seed, cbam=effect) for seed, (name, effect) in enumerate(EFFECTS.items())]
    judgements, data_sets = read_comparisons(paths)
    assert (list(judgements), data_sets) == (list(EFFECTS), {})
    assert across(judgements, data_sets).arms[0].verdict == "helps on average"
    _, data_sets = read_comparisons(paths, data_sets=["a", "b", "c", "d", "d"])
    assert data_sets == dict(zip(EFFECTS, "abcdd", strict=True))


def test_tables_of_one_name_have_their_paths(table, tmp_path):
    paths = [table("a/results", 0), table("b/results", 1)]
    assert list(read_comparisons(paths)[0]) == [f"results ({path})" for path in paths]


def test_folders_of_compare_know_their_data_and_looks(compared):
    wide = compared("digits", 0, num_pairs=8, images="digits", margin=0.3)
    deep = compared("again", 1, images="digits", data="elsewhere/digits", backbone="resnet50", margin=0.3)
    other = compared("flowers", 2, images="flowers", margin=0.3)
    judgements, data_sets = read_comparisons([wide, deep, other / "results.csv"])
    assert data_sets == {
        "digits: resnet18": "digits",
        "digits: resnet50": "digits",
        "flowers: resnet18": "flowers",
    }
    first = judgements["digits: resnet18"]
    # of 8 pairs the look at 6 counts, as in its own verdict
    assert (first.margin, first.arms[0].num_pairs, first.arms[0].plan.first) == (0.3, 6, 6)
    assert read_comparisons([wide, deep], margin=1.0)[0]["digits: resnet18"].margin == 1.0
    assert across(judgements, data_sets).cautions == ()


def test_other_images_of_one_name_are_two_data_sets(compared):
    folders = [compared(name, seed, images=name, data="photos") for seed, name in enumerate(("a", "b"))]
    judgements, data_sets = read_comparisons(folders)
    assert list(data_sets.values()) == ["photos", "photos (2)"]
    assert list(judgements) == [f"photos: resnet18 ({folder})" for folder in folders]


def test_a_folder_that_holds_several(compared, tmp_path):
    for seed, name in enumerate(EFFECTS):
        compared(f"all/{name}", seed, images=name)
    judgements, data_sets = read_comparisons([tmp_path / "all"])
    assert list(data_sets.values()) == list(EFFECTS)
    assert len(across(judgements, data_sets).arms[0].data_sets) == 5


def test_folders_of_runs(tmp_path):
    for number in range(6):
        for arm in ("none", "cbam"):
            ultralytics_run(tmp_path / "detect" / f"{arm}-{number}", arm, number)
    judgements, data_sets = read_comparisons([tmp_path / "detect"], Reading(metric="metrics/mAP50(B)"))
    assert (list(judgements), data_sets) == (["detect"], {})


def test_the_looks_of_a_table_are_those_of_the_verdict_beside_it(table, tmp_path):
    path = table("digits", 3, num_pairs=8)
    results = figures(3, num_pairs=8, cbam=1.0)
    record = figures_content(judge(results, first_look=6), results, "digits.csv")
    write_json(tmp_path / "digits.verdict.json", record.to_dict())
    assert read_comparisons([path])[0]["digits"].arms[0].num_pairs == 6
    write_json(tmp_path / "digits.verdict.json", {**record.to_dict(), "title": "other.csv"})
    with pytest.raises(UserError, match=r"is the verdict on other results than .*; move it away"):
        read_comparisons([path])


def test_what_a_comparison_says_is_kept(compared):
    folder = compared("digits", 0)
    text = (folder / "results.csv").read_text().splitlines()
    lines = [
        f"{line},{'more_epochs' if not number else 'still improving' if 'cbam' in line else ''}"
        for number, line in enumerate(text)
    ]
    head = [line.split(",") for line in lines]
    # the notes stay the last column
    (folder / "results.csv").write_text("\n".join(",".join([*row[:3], row[4], row[3]]) for row in head) + "\n")
    judgement = read_comparisons([folder])[0]["digits: resnet18"]
    assert judgement.cautions[0] == "cbam: still improving"


def test_one_name_for_two_arms_is_told(compared):
    one, other = compared("digits", 0, images="a"), compared("flowers", 1, images="b", arms=parse_arms("none,cbam=eca"))
    judgements, data_sets = read_comparisons([one, other])
    told = "flowers: resnet18: the arm cbam is eca here and cbam in digits: resnet18: the mean is over both"
    assert across(judgements, data_sets).cautions == (told,)


def test_attention_that_starts_otherwise_is_told(compared):
    options = {**design_of().options, "pretrained": "imagenet"}
    one, other = compared("digits", 0, images="a"), compared("flowers", 1, images="b", options=options)
    judgements, data_sets = read_comparisons([one, other])
    (caution,) = across(judgements, data_sets).cautions
    assert caution.startswith("flowers: resnet18: its networks start from weights, so attention starts as the identity")
    judgements, data_sets = read_comparisons([other, compared("pets", 2, images="c", options=options)])
    assert across(judgements, data_sets).cautions == ()


def test_the_folder_of_the_guide():
    judgements, data_sets = read_comparisons([GUIDE])
    assert data_sets == {"sign-digits: resnext11_8x8d": "sign-digits"}
    (judgement,) = judgements.values()
    content = json.loads((GUIDE / "verdict.json").read_text())
    for arm, expected in zip(judgement.arms, content["judgement"]["arms"], strict=True):
        assert (arm.arm, arm.verdict, arm.num_pairs) == (expected["arm"], expected["verdict"], expected["num_pairs"])
        assert arm.mean_difference == pytest.approx(expected["mean_difference"])
        assert arm.level == pytest.approx(expected["level"])


def test_test_images_come_from_the_verdict(compared):
    folder = compared("digits", 0)
    content = json.loads((folder / "verdict.json").read_text())
    write_json(folder / "verdict.json", {**content, "terms": {"test_images": 7}})
    with pytest.raises(UserError, match=r"digits.*: with 7 test images no accuracy is"):
        read_comparisons([folder])


def test_one_comparison_twice(compared, table):
    folder = compared("digits", 0)
    with pytest.raises(UserError, match=r"digits' is there twice; give each comparison once"):
        read_comparisons([folder, folder / "results.csv"])


def test_too_few_data_sets(compared, table):
    order = "give one for each, in this order: digits: resnet18, signs"
    with pytest.raises(UserError, match=f"there are 2 comparisons and 1 data set; {order}"):
        read_comparisons([compared("digits", 0), table("signs", 1)], data_sets=["digits", ""])


def test_errors_name_the_comparison(compared, table):
    with pytest.raises(UserError, match=r"signs.csv' has no column 'f1'"):
        read_comparisons([table("signs", 1)], Reading(metric="f1"))
    with pytest.raises(UserError, match=r"signs.csv': no arm is called 'plain'"):
        read_comparisons([table("signs", 1)], baseline="plain")
    with pytest.raises(UserError, match="there is no 'nowhere'"):
        read_comparisons([Path("nowhere")])


def test_a_comparison_that_is_not_whole(compared):
    folder = compared("digits", 0)
    (folder / "results.csv").unlink()
    with pytest.raises(UserError, match=r"digits' has no results.csv yet; finish its runs first"):
        read_comparisons([folder])
    (folder / "compare.json").write_text("{")
    with pytest.raises(
        UserError, match=r"compare.json' is damaged \(it is not JSON.*\); restore it, or give the table"
    ):
        read_comparisons([folder])
