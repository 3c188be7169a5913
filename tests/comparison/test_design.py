import json
import re
import shutil
from pathlib import Path

import msgspec
import pytest

from comparisons import design_of
from whatwhere import UserError
from whatwhere.base.screen import Silent
from whatwhere.comparison.arms import Arm, parse_arms
from whatwhere.comparison.design import read_design
from whatwhere.comparison.planning import Request, continued
from whatwhere.comparison.run import collect
from whatwhere.training.config import ADDED

OPTIONS = design_of().options


@pytest.fixture
def design():
    return design_of()


def with_plan(design, last=24, **verdicts):
    """The design with a schedule that ends, after a look at 8 pairs."""
    told = {arm: (verdict, 8) for arm, verdict in verdicts.items()}
    return msgspec.structs.replace(design, max_seeds=last, first_look=8 if told else None, verdicts=told)


def test_it_survives_its_file(tmp_path, design):
    looked = msgspec.structs.replace(with_plan(design, se="helps"), lr_search=(0.1, 0.2), changes=("x",))
    looked.write(tmp_path)
    assert read_design(tmp_path) == looked
    assert read_design(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 1}', '{"format": 2}', '{"format": 1, "arms": [{"name": 1}]}']
)
def test_a_damaged_file_is_refused(tmp_path, content, refused):
    (tmp_path / "compare.json").write_text(content)
    with refused():
        read_design(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        *({"num_seeds": value} for value in ("6", None, True, 10**12, 1, 8.0)),
        *({"max_seeds": value} for value in ("6", True, 10**12, 5, [])),
        *({"metric": value} for value in ([], "", "kappa", None)),
        *({"margin": value} for value in (None, 1e308, -1, "1", True, float("nan"))),
        *({"lr_search": value} for value in (["a"], 5, [0.1], [0.1, 0.1], [0.1, -1], [True, 0.2], "ab")),
        *({"arms": value} for value in ([], None, [{"name": "none", "spec": "none"}], [{"name": "none"}], "ab")),
        {"arms": [{"name": name, "spec": name, "surprise": 1} for name in ("none", "se", "cbam")]},
        *({"options": value} for value in ({}, [], 5, {**OPTIONS, "epochs": "3"}, {**OPTIONS, "pretrained": 5})),
        {"options": {**OPTIONS, "epochs": -1}},
        *({"arm_options": value} for value in (5, [], {"none": 5}, {"none": {}}, {"other": {"model": "resnet18"}})),
        {"arm_options": {"none": {"model": 5}}},
        {"arm_options": {"none": {"model": "resnet18", "lr": "fast"}}},
        *({"changes": value} for value in ([5], 5, "ab")),
        *({"left_out": value} for value in (["x"], [-1], [True], 5, [10**12])),
        *({"contents": value} for value in (5, [], {"x": 5})),
        *({name: value} for name in ("data", "began", "backbone", "data_fingerprint") for value in (5, None, "")),
        *({"verdicts": value} for value in (5, {"se": 5}, {"se": ["helps", "8"]}, {"se": ["so", 8]})),
        {"verdicts": {"x": ["helps", 8]}},
        {"verdicts": {"se": ["helps", 9]}, "first_look": 8},
        *({"first_look": value} for value in ("8", True, 10**12, 5)),
        {"first_look": 30, "max_seeds": 24},
        {"baseline": None},
        {"baseline": "wide"},
    ],
    ids=str,
)  # fmt: skip
def test_damaged_values_are_refused(tmp_path, design, damage, refused):
    design.write(tmp_path)
    path = tmp_path / "compare.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with refused():
        read_design(tmp_path)


def test_a_file_nested_too_deeply_is_refused(tmp_path, refused):
    (tmp_path / "compare.json").write_text("[" * 100_000)
    with refused():
        read_design(tmp_path)


def test_a_file_from_before_there_were_left_out_seeds_is_read(tmp_path, design):
    design.write(tmp_path)
    path = tmp_path / "compare.json"
    content = json.loads(path.read_text())
    del content["left_out"], content["contents"]
    path.write_text(json.dumps(content))
    assert read_design(tmp_path) == design


def test_another_version_of_the_file_is_refused(tmp_path, design, refused):
    design.write(tmp_path)
    content = json.loads((tmp_path / "compare.json").read_text())
    (tmp_path / "compare.json").write_text(json.dumps({**content, "surprise": 1}))
    with refused():
        read_design(tmp_path)


def test_only_undecided_arms_go_on_to_the_next_look(design):
    assert {arm: len(seeds) for arm, seeds in design.seeds().items()} == {"none": 8, "se": 8, "cbam": 8}
    looked = with_plan(design, se="helps", cbam="cannot tell yet")
    assert {arm: len(seeds) for arm, seeds in looked.seeds().items()} == {"none": 16, "se": 8, "cbam": 16}
    decided = with_plan(design, se="helps", cbam="hurts")
    assert {arm: len(seeds) for arm, seeds in decided.seeds().items()} == {"none": 8, "se": 8, "cbam": 8}
    ended = with_plan(design, last=8, se="helps", cbam="cannot tell yet")
    assert set(map(len, ended.seeds().values())) == {8}
    few = msgspec.structs.replace(design, num_seeds=3, max_seeds=12)
    assert set(map(len, few.seeds().values())) == {6}


def test_more_seeds_and_arms_are_added_and_noted(tmp_path, design):
    request = Request(num_seeds=16, arms=parse_arms("none,x=se,wide"), margin=0.3)
    later = continued(msgspec.structs.replace(design, first_look=8, verdicts={"se": ("helps", 8)}), request, tmp_path)
    assert [arm.name for arm in later.arms] == ["none", "se", "cbam", "x", "wide"]
    assert (later.num_seeds, later.margin) == (16, 0.3)
    notes = [change.partition(": ")[2] for change in later.changes]
    assert notes == ["--seeds was 8, is 16", "--margin was 0.5, is 0.3", "arm x added", "arm wide added"]
    assert all("after a look at 8 pairs" in change for change in later.changes)


def test_asking_for_the_same_or_less_changes_nothing(tmp_path, design):
    for request in (
        Request(),
        Request(num_seeds=4, arms=parse_arms("none,cbam"), backbone="resnet18", margin=0.5, metric="accuracy"),
    ):
        assert continued(design, request, tmp_path) == design


@pytest.mark.parametrize(
    "request_",
    [
        Request(backbone="resnet50"),
        Request(lr_search=(0.1, 0.2)),
        Request(arms=(Arm("se", "cbam"),)),
        Request(max_seeds=24),
        Request(baseline="wide"),
    ],
)
def test_what_would_mix_two_comparisons_is_refused(tmp_path, design, request_, refused):
    looked = msgspec.structs.replace(design, first_look=8, verdicts={"se": ("helps", 8)})
    with refused():
        continued(looked, request_, tmp_path)


def test_a_plan_can_be_made_before_the_first_look(tmp_path, design, refused):
    planned = continued(design, Request(max_seeds=24), tmp_path)
    assert planned.max_seeds == 24
    assert "before the first look: --max-seeds was not set, is 24" in planned.changes[0]
    with refused():
        continued(design, Request(max_seeds=7), tmp_path)


def test_other_options_of_the_runs_are_refused_but_where_they_run_is_free(tmp_path, design, refused):
    given = {"epochs": 30, "device": "cuda", "workers": 4}
    assert continued(design, Request(), tmp_path, given) == design
    with refused():
        continued(design, Request(), tmp_path, {"epochs": 40})


def test_auto_is_a_number_yet_unknown_only_where_an_option_takes_a_number(tmp_path, design):
    assert continued(design, Request(), tmp_path, {"max_value": "auto"}) == design
    # a module, and a pattern in paths, that are called so
    for name in ("at", "group_from"):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} was '', is 'auto'"):
            continued(design, Request(), tmp_path, {name: "auto"})


@pytest.mark.parametrize("numbers", [{"num_seeds": 1}, {"num_seeds": 2.5}, {"max_seeds": 5}])
def test_impossible_numbers_are_refused(numbers, refused):
    with refused():
        Request(**numbers)


def test_a_comparison_of_an_earlier_version_is_read_and_judged_as_then(tmp_path):
    old = Path(__file__).with_name("old")
    shutil.copytree(old, tmp_path / "out")
    content = collect("digits", tmp_path / "out", Request(), Silent()).to_dict()
    assert content["images"] == f"{read_design(old).options['image_size']} px, crop"
    judged = json.loads((old / "verdict.json").read_text())["judgement"]["arms"]
    for arm, before in zip(content["judgement"]["arms"], judged, strict=True):
        assert {name: arm[name] for name in ("arm", "verdict", "seeds", "differences", "baseline", "treatment")} == {
            name: before[name] for name in ("arm", "verdict", "seeds", "differences", "baseline", "treatment")
        }
    before, after = (json.loads((folder / "compare.json").read_text()) for folder in (old, tmp_path / "out"))
    # options of later versions are added, with what the earlier one did
    assert after == {**before, "options": {**ADDED, **before["options"]}}


def test_a_version_that_a_run_does_not_name_is_unknown(tmp_path):
    shutil.copytree(Path(__file__).with_name("old"), tmp_path / "out")
    file = tmp_path / "out" / "runs" / "cbam" / "seed-1" / "run.json"
    content = json.loads(file.read_text())
    del content["sessions"][-1]["python"]
    file.write_text(json.dumps(content))
    collected = collect("digits", tmp_path / "out", Request(), Silent()).to_dict()
    assert any("unknown" in caution for caution in collected["cautions"])


def test_the_hash_of_the_design_is_that_of_its_beginning(tmp_path, design):
    first, replace = design.digest(), msgspec.structs.replace
    assert re.fullmatch("[0-9a-f]{64}", first)
    # what happens while it runs
    looked = replace(design, began="later", first_look=8, verdicts={"se": ("helps", 8)}, left_out=(3,), changes=("so",))
    assert looked.digest() == first
    # where things lie
    assert replace(design, data="/elsewhere/photos").digest() == first
    weights = [
        replace(design, options={**design.options, "pretrained": path}, contents={"the file of weights": digest})
        for path, digest in (("a.pth", "0" * 64), ("b/a.pth", "0" * 64), ("a.pth", "1" * 64))
    ]
    assert weights[0].digest() == weights[1].digest() != weights[2].digest()
    # what is changed later, twice, and changed back, with an arm more and its code
    request = Request(num_seeds=16, arms=parse_arms("none,x=own:Gate"), margin=0.3, metric="auroc", baseline="se")
    later = continued(design, request, tmp_path)
    options = {**later.arm_options, "x": {"model": "resnet18", "attention": "own:Gate"}}
    later = replace(later, arm_options=options, contents={"the code of x": "0" * 64})
    again = continued(continued(later, Request(margin=0.7), tmp_path), Request(margin=0.5, baseline="none"), tmp_path)
    for changed in (later, again):
        changed.write(tmp_path)
        assert changed.digest() == read_design(tmp_path).digest() == first
    # rates that are searched are no part of it, those that are given are
    searched = replace(design, lr_search=(0.1, 0.2))
    rated = replace(searched, arm_options={arm: {**own, "lr": 0.1} for arm, own in design.arm_options.items()})
    assert searched.digest() == rated.digest() != first
    timed = replace(design, arms=(*design.arms[:2], Arm("cbam", "wide:time")))
    measured = [
        replace(timed, arm_options={**timed.arm_options, "cbam": {"model": "resnet18", "width_factor": factor}})
        for factor in (1.5, 1.6)
    ]
    assert measured[0].digest() == measured[1].digest() != first
    # options of later versions, where they do what was done before
    lacking = {name: value for name, value in design.options.items() if name not in ADDED}
    assert replace(design, options=lacking).digest() == first
    assert replace(design, margin=1).digest() == replace(design, margin=1.0).digest()
    others = [
        {"data_fingerprint": "1" * 64},
        {"backbone": "resnet34"},
        {"arms": design.arms[:2]},
        {"arms": (*design.arms[:2], Arm("cbam", "se"))},
        {"baseline": "se"},
        {"num_seeds": 9},
        {"max_seeds": 16},
        {"metric": "auroc"},
        {"margin": 0.6},
        {"lr_search": (0.1, 0.2)},
        {"options": {**design.options, "epochs": 31}},
        {"options": {**design.options, "resize": "squash"}},
        {"arm_options": {**design.arm_options, "se": {"model": "se_resnet18", "width_factor": 2.0}}},
        {"contents": {"the code of se": "0" * 64}},
    ]
    assert len({first, *(replace(design, **other).digest() for other in others)}) == len(others) + 1


def test_the_hash_of_a_design_stays_from_version_to_version():
    """It may have been published: a change of this number breaks that."""
    design = read_design(Path(__file__).parents[2] / "docs" / "sign-digits")
    assert design.digest() == "edd60dd7474fccfd590586f443ab6cc4f5e66feb6889147b5257d0ad7c9ac262"


@pytest.mark.parametrize("first", [{"arms": 2}, {"num_arms": 9}, {"num_arms": True}, {"margin": [1]}], ids=str)
def test_a_beginning_that_no_comparison_had_is_refused(tmp_path, design, first, refused):
    msgspec.structs.replace(design, at_first=first).write(tmp_path)
    with refused():
        read_design(tmp_path)
