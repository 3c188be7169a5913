"""Tables with a column for each arm: no column of an arm is dropped, and no other column becomes one."""

import pytest

from whatwhere import UserError
from whatwhere.experiment import read_results
from whatwhere.statistics.columns import Reading


@pytest.fixture
def read(tmp_path):
    def run(text, metric="accuracy"):
        path = tmp_path / "results.csv"
        path.write_text(text)
        return read_results(path, reading=Reading(metric=metric))

    return run


def test_arms_with_words_of_costs_in_their_names_are_arms(read):
    names = ["none", "MS-CAM", "TimeSformer", "MBConv", "se_best"]
    assert read(f"seed,{','.join(names)}\n0,80.1,80.2,80.3,80.4,80.5\n1,80.3,80.5,80.1,80.2,80.3\n").arms == names


@pytest.mark.parametrize("cell", ["80.06 ± 0.3", "80.06 (0.3)", "80.1%", "**80.1**", "80.1*", "tensor(80.1)"])
@pytest.mark.parametrize("head", ["seed,none,cbam,se", "seed,se,cbam,none"])
def test_figures_of_an_arm_that_need_correction_are_refused(read, head, cell):
    with pytest.raises(UserError, match=f"line 2 of .*: {head.split(',')[-1]} is .*, not a number; "):
        read(f"{head}\n0,80.1,80.2,{cell}\n1,80.3,80.5,{cell}\n")


@pytest.mark.parametrize(
    ("cell", "why"), [("", "no figure"), ("nan", "nan"), ("failed", "no figure"), ("-", "no figure")]
)
def test_an_arm_of_failed_runs_has_missing_runs(read, cell, why):
    for head in ("seed,none,cbam,se", "seed,se,cbam,none"):
        results = read(f"{head}\n0,80.1,80.2,{cell}\n1,80.3,80.5,{cell}\n")
        arm = head.split(",")[-1]
        assert results.arms == head.split(",")[1:]
        assert results.missing("cbam", arm, "accuracy") == {arm: dict.fromkeys("01", why)}


def test_text_in_the_column_of_the_baseline_is_refused(read):
    with pytest.raises(UserError, match=r"line 2 of .*: none is 'OOM', not a number"):
        read("seed,cbam,se,none\n0,80.1,80.2,OOM\n1,80.3,80.5,OOM\n")


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("host", ("gpu1", "gpu2")),
        ("se", ("OOM", "OOM")),
        ("hours", ("1.5", "1.6")),
        ("date", ("20241128", "20241129")),
        ("gpu_memory_mb", ("8000", "8100")),
        ("delta", ("0.1", "0.2")),
        ("rel. gain (%)", ("0.1", "0.2")),
        ("cbam vs none", ("0.1", "0.2")),
        ("mean", ("80.15", "80.4")),
        ("best", ("80.2", "80.5")),
        ("run", ("1", "2")),
        ("n_images", ("5000", "5000")),
        ("pretrained", ("80.3", "80.4")),
    ],
)
def test_what_is_taken_for_no_arm_is_said(read, name, cells):
    results = read(f"seed,none,cbam,{name}\n0,80.1,80.2,{cells[0]}\n1,80.3,80.5,{cells[1]}\n")
    assert results.arms == ["none", "cbam"]
    assert f"the column {name} is left out: it is taken for no arm" in results.notes


def test_a_time_beside_the_arms_does_not_make_them_metrics(read):
    results = read("seed,none,cbam,train_time\n0,80.1,80.2,1.5\n1,80.3,80.5,1.6\n", metric=None)
    assert (results.arms, results.metrics) == (["none", "cbam"], ["figure"])


def test_settings_beside_arms_are_no_arms(read):
    results = read("seed,bs,epochs,dataset,none,cbam\n0,64,90,a,80.1,80.2\n1,64,90,b,80.3,80.5\n")
    assert results.arms == ["none", "cbam"]
    assert any(note.startswith("the pairs are of 2 data sets (dataset: a, b): ") for note in results.notes)
    # an arm may be called as a setting is, but its figures vary
    assert read("seed,none,mixup\n0,80.1,80.2\n1,80.3,80.5\n").arms == ["none", "mixup"]


def test_columns_without_a_name(read):
    assert read(",seed,none,cbam\n0,4,80.1,80.2\n1,5,80.3,80.5\n").arms == ["none", "cbam"]
    assert read("Unnamed: 0,seed,none,cbam\n0,4,80.1,80.2\n1,5,80.3,80.5\n").arms == ["none", "cbam"]
    with pytest.raises(UserError, match=r"column 3 of .* has no name; name it, or take it out"):
        read("seed,none,,cbam\n0,80.1,80.2,80.4\n1,80.3,80.5,80.2\n")


def test_seeds_without_a_name_are_to_be_named(read):
    for name in ("", "Unnamed: 0"):
        with pytest.raises(UserError, match="if its first column, which has no name, holds the seeds, call it seed"):
            read(f"{name},none,cbam\n0,80.1,80.2\n1,80.3,80.5\n")


@pytest.mark.parametrize("names", ["none_acc,cbam_acc", "\"('acc', 'none')\",\"('acc', 'cbam')\""])
def test_names_of_arms_and_figures_in_one_ask_for_the_names_of_the_arms(read, names):
    with pytest.raises(UserError, match="write the names of the arms alone above them, one of them none or baseline"):
        read(f"seed,{names}\n0,80.1,80.2\n1,80.3,80.5\n")


@pytest.mark.parametrize(
    "head", ["arm,0.0,1.0,2.0", "arm,0,1,2", "model,seed_0,seed_1,seed_2", "arm,fold1,fold2,fold3", "name,s1,s2,s3"]
)
def test_a_column_for_each_seed_is_to_be_turned(read, head):
    with pytest.raises(UserError, match="has a column for each seed; turn it, so that it has a line for each seed"):
        read(f"{head}\nnone,80.1,80.2,80.3\ncbam,80.4,80.5,80.6\n")
