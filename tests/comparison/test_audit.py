"""Audits of comparisons: what passes, what fails and where, what is refused."""

import json
import shutil
import sys

import pytest

from comparisons import BACKBONE, Comparisons, WithoutPictures, pretend
from pictures import make_folder, picture
from whatwhere.base.errors import Stopped
from whatwhere.collect.result import class_figures
from whatwhere.comparison import audit as audits
from whatwhere.comparison import conditions
from whatwhere.comparison.arms import parse_arms
from whatwhere.comparison.audit import Asked, audit
from whatwhere.training.run_folder import RunFolder

SEEDS = 6
AUDITED = {"compare.json", "results.csv", "verdict.json", "cost.json", "run.json", "result.json", "metrics.jsonl"}
SPLITS = {"train": 6, "val": 4, "test": 334}  # images of each of 3 classes: one of 1,002 is 0.1 points


def committed(folder, target):
    """Copy a comparison without what is not committed: pictures, weights, lists of images."""
    shutil.copytree(
        folder, target, ignore=lambda _, names: [name for name in names if "." in name and name not in AUDITED]
    )
    return target


def edit(path, change):
    """Let `change` edit the JSON of a file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def figures(arm, seed):
    """Of 36 images."""
    return {"none": (22, 23, 24, 19, 23, 21)}.get(arm, (23, 22, 26, 20, 25, 24))[int(seed)] / 36


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images; of 240, each seed holds out 36 for the test."""
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=80)


@pytest.fixture
def begun(photos, monkeypatch):
    """Comparisons in a folder that only pretend to train."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(photos.parent / "cache"))

    def of(out):
        compared = Comparisons(photos, out)
        compared.figures, compared.num_images = figures, 12
        return compared

    return of


@pytest.fixture
def pretended(begun, photos, tmp_path, monkeypatch):
    """A comparison whose runs only pretend; so does their repetition, with the same figures."""
    if not (once := photos.parent / "compared").exists():
        begun(once)("none,se", seeds=SEEDS)
    compared = begun(committed(once, tmp_path / "out"))

    def train(data, given, *, out, screen, **others):
        compared.trained.append((out.parent.name, given["seed"]))
        return pretend(data, given, out, compared.figures(out.parent.name, given["seed"]), 12, screen)

    monkeypatch.setattr(audits, "run_training", train)
    return compared


@pytest.fixture
def on_that_machine(monkeypatch):
    """Pretended runs are of this machine."""
    here = dict.fromkeys(("device", "processor", "torch", "torchvision", "pillow", "python"), "pretended")
    monkeypatch.setattr(audits, "session", lambda config, team: here)


def audited(compared, **asked):
    return audit(
        compared.out, Asked(**asked), {"device": "cpu", "workers": 0}, command="whatwhere audit", screen=compared
    )


def nothing_trains(*arguments, **others):
    raise AssertionError("an audit trained")


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        compared = Comparisons(make_folder(folder / "photos", splits=SPLITS, size=16), folder / "out")
        compared("none,se", seeds=2, backbone="resnet8", given={"batch_size": 6})
        yield compared


@pytest.fixture
def trained(trained_once, tmp_path, monkeypatch):
    """A comparison that was really trained; the repetitions draw no pictures."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(trained_once.out.parent / "cache"))
    monkeypatch.setattr(RunFolder, "draw", WithoutPictures.draw)
    return Comparisons(trained_once.data, committed(trained_once.out, tmp_path / "out"))


def test_an_untouched_comparison_passes_to_the_last_bit(trained):
    outcome = audited(trained, arm="se")
    (run,) = outcome.runs
    assert outcome.passed
    assert outcome.sentences == [
        f"passed: se, seed {run.seed}, trained again, has the same weights to the last bit and the same figures to the "
        "last digit"
    ]
    assert run.weights_here == run.weights_there != ""
    assert {figure.name: figure.here for figure in run.figures} == {figure.name: figure.there for figure in run.figures}
    assert {(figure.name, figure.bound) for figure in run.figures} >= {("accuracy", None), ("loss", None)}


def test_a_tenth_of_a_point_that_all_files_agree_on_fails(trained):
    def one_image_better(result):
        row = next(row for row in result["confusion"] if 0 < row[result["confusion"].index(row)] < sum(row))
        right = result["confusion"].index(row)
        wrong = next(column for column, count in enumerate(row) if count and column != right)
        row[right], row[wrong] = row[right] + 1, row[wrong] - 1
        rows = class_figures(result["classes"], result["confusion"])
        result["per_class"] = [
            {
                "class": row.name,
                "num_images": row.num_images,
                "precision": row.precision,
                "recall": row.recall,
                "f1": row.f1,
            }
            for row in rows
        ]
        total = sum(row.num_images for row in rows)
        result["test"]["accuracy"] = sum(row.num_images * row.recall for row in rows) / total
        result["test"]["balanced_accuracy"] = sum(row.recall for row in rows) / len(rows)
        result["test"]["macro_f1"] = sum(row.f1 for row in rows) / len(rows)

    before = trained.run("se", 1, "result.json")["test"]["accuracy"]
    edit(trained.out / "runs/se/seed-1/result.json", one_image_better)
    after = trained.run("se", 1, "result.json")["test"]["accuracy"]
    assert after - before == pytest.approx(0.001, abs=1e-5)
    (trained.out / "verdict.json").unlink()
    (trained.out / "results.csv").unlink()
    trained.collect()
    # the other runs are as they were
    assert audited(trained, arm="none", seed=1).passed
    outcome = audited(trained, arm="se", seed=1)
    assert not outcome.passed
    assert outcome.mismatches == ()
    assert outcome.sentences[0].startswith(
        "failed: se, seed 1, trained again, is the same network to the last bit, but has other figures: "
        f"runs/se/seed-1/result.json says {after!r} for test accuracy of se, seed 1, training it again gives {before!r}"
    )


@pytest.mark.parametrize(
    "name", ["results.csv", "verdict.json runs", "verdict.json judgement", "result.json", "result.json loss", "epochs"]
)
def test_a_tenth_of_a_point_in_one_file_fails_before_anything_is_trained(pretended, monkeypatch, name):
    monkeypatch.setattr(audits, "run_training", nothing_trains)
    was = figures("se", 3)
    said, of = was + 0.001, {"arm": "se", "seed": 3, "said": pytest.approx(was + 0.001), "found": pytest.approx(was)}
    run = pretended.out / "runs/se/seed-3"
    if name == "results.csv":
        text = (pretended.out / "results.csv").read_text()
        (pretended.out / "results.csv").write_text(text.replace(f"se,3,{was!r}", f"se,3,{said!r}"))
        expected = {"file": "results.csv", "figure": "accuracy", "by": "result.json", **of, "seed": "3"}
    elif name == "verdict.json runs":
        edit(pretended.out / "verdict.json", lambda verdict: next(
            row for row in verdict["runs"] if (row["arm"], row["seed"]) == ("se", 3)
        )["figures"].update(accuracy=said))  # fmt: skip
        expected = {"file": "verdict.json", "figure": "runs figures accuracy", **of}
    elif name == "verdict.json judgement":
        edit(pretended.out / "verdict.json", lambda verdict: verdict["judgement"]["arms"][0]["treatment"].__setitem__(
            3, 100 * said
        ))  # fmt: skip
        of |= {"said": pytest.approx(100 * said), "found": pytest.approx(100 * was)}
        expected = {"file": "verdict.json", "figure": "judgement arms treatment", **of}
    elif name == "result.json":  # its classes say otherwise
        edit(run / "result.json", lambda result: result["test"].update(accuracy=said))
        expected = {"file": "runs/se/seed-3", "arm": "se", "seed": 3}
    elif name == "result.json loss":  # nothing else in it does
        edit(run / "result.json", lambda result: result["test"].update(loss=result["test"]["loss"] + 0.001))
        expected = {"file": "results.csv", "figure": "loss", "arm": "se", "seed": "3", "by": "result.json"}
    else:
        text = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(text.replace(f'"val_accuracy": {was!r}', f'"val_accuracy": {was - 0.2!r}'))
        expected = {"file": "runs/se/seed-3", "arm": "se", "seed": 3}
    outcome = audited(pretended)
    assert not outcome.passed
    assert outcome.runs == ()
    assert outcome.sentences[0].startswith("failed: the files of ")
    found = outcome.mismatches[0]
    assert {field: getattr(found, field) for field in expected} == expected
    assert "se, seed 3" in found.sentence


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("verdict.json", lambda verdict: verdict["judgement"]["arms"][0].update(verdict="helps"), "'helps'"),
        ("verdict.json", lambda verdict: verdict["judgement"]["arms"][0].update(interval_95=[1.0, 2.0]), "[1.0, 2.0]"),
        ("verdict.json", lambda verdict: verdict["judgement"]["arms"][0].update(mean_difference=None), "nothing"),
        ("verdict.json", lambda verdict: verdict["judgement"].update(margin=5.0), "5.0"),
        ("verdict.json", lambda verdict: verdict["judgement"].update(arms=[]), "damaged"),
        ("verdict.json", lambda verdict: verdict["runs"].pop(3), "nothing"),
        ("verdict.json", lambda verdict: verdict["per_class"]["rows"][0].update(mean_difference=9.5), "9.5"),
        ("verdict.json", lambda verdict: verdict["cost"]["rows"][0].update(num_params=7), "7"),
        ("compare.json", lambda design: design["verdicts"].update(se=["helps", 6]), "helps at 6 pairs"),
        ("compare.json", lambda design: design["verdicts"].clear(), "nothing"),
        ("compare.json", lambda design: design["options"].update(epochs=3), "epochs 1, the comparison 3"),
        ("compare.json", lambda design: design.update(data_fingerprint="0:1"), "content_fingerprint"),
        ("compare.json", lambda design: design.update(margin=1.5), "0.5"),
        ("runs/se/seed-2/run.json", lambda run: run["config"].update(lr=0.5), "lr 0.5"),
        ("runs/se/seed-2/run.json", lambda run: run.update(data_fingerprint="0" * 64), "data_fingerprint"),
        ("runs/se/seed-2/run.json", lambda run: run["num_images"].update(test=13), "test num_images"),
    ],
)  # fmt: skip
def test_files_that_do_not_agree_are_named(pretended, monkeypatch, file, change, said):
    monkeypatch.setattr(audits, "run_training", nothing_trains)
    edit(pretended.out / file, change)
    outcome = audited(pretended)
    assert not outcome.passed
    assert any(said in found.sentence for found in outcome.mismatches), outcome.mismatches


def test_runs_and_lines_that_are_missing_or_too_many_are_named(pretended, monkeypatch):
    monkeypatch.setattr(audits, "run_training", nothing_trains)
    shutil.rmtree(pretended.out / "runs/se/seed-1")
    table = pretended.out / "results.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*(line for line in lines if not line.startswith("none,4,")), lines[1]]))
    assert [found.sentence for found in audited(pretended).mismatches] == [
        "results.csv (se, seed 1): line 8 has no finished run in runs/se/seed-1, or is there twice",
        "results.csv (none, seed 0): line 13 has no finished run in runs/none/seed-0, or is there twice",
        "results.csv (none, seed 4): it lacks this finished run, or was not written since",
    ]
    table.write_text("")
    assert len(audited(pretended).mismatches) == 2 * SEEDS - 1


def test_rounding_and_sentences_of_another_version_are_no_mismatch(pretended, on_that_machine):
    def reworded(verdict):
        arm = verdict["judgement"]["arms"][0]
        arm["reason"], arm["mean_difference"] = "in other words", arm["mean_difference"] * (1 + 1e-12)
        del verdict["per_class"], arm["skewness"]

    edit(pretended.out / "verdict.json", reworded)
    assert audited(pretended).passed


def test_files_agree_after_looks_searches_and_changes(begun, pretended, tmp_path):
    compared = begun(tmp_path / "long")
    pretended.figures = compared.figures = lambda arm, seed: (20 + 7 * int(float(seed) * 10 + len(arm)) % 11) / 36
    for number, asked in enumerate(
        [
            {"arms": "none,se", "seeds": 6, "max_seeds": 12, "lr_search": (0.1, 0.2)},
            {"arms": "none,se,short", "seeds": 7, "margin": 0.7},
            {"arms": "none,se,short", "seeds": 9, "metric": "loss", "margin": 0.1, "baseline": "se", "leave_out": (3,)},
        ]
    ):
        compared(**asked, given={"epochs": 4})
        outcome = audited(begun(committed(compared.out, tmp_path / f"copy {number}")), arm="se")
        assert outcome.mismatches == ()
        # that of the first start
        assert f"SHA-256 of the design: {outcome.design}" in compared.lines[:5]
    noted = " ".join(outcome.changes)
    for change in ("--seeds was 6", "--margin was 0.5", "short added", "seed 3 is left out", "--metric was"):
        assert change in noted


def test_every_finished_run_may_be_drawn_and_none_twice(pretended, on_that_machine):
    assert audited(pretended, num_runs=2 * SEEDS).passed
    assert sorted(pretended.trained) == [(arm, seed) for arm in ("none", "se") for seed in range(SEEDS)]
    pretended.trained.clear()
    assert audited(pretended, num_runs=2, seed=4).passed
    assert sorted(pretended.trained) == [("none", 4), ("se", 4)]
    assert "drawn: se, seed 4" in pretended.lines


def test_a_run_that_comes_out_otherwise_fails_by_its_least_digit(pretended, on_that_machine):
    pretended.figures = lambda arm, seed: figures(arm, seed) + (arm == "se") * 1e-15
    assert audited(pretended, arm="none").passed
    outcome = audited(pretended, arm="se")
    assert not outcome.passed
    assert "trained again, came out otherwise" in outcome.sentences[0]


def test_elsewhere_the_spread_of_the_other_runs_is_the_bound(pretended, on_that_machine):
    for seed in (2, 3):
        edit(pretended.out / f"runs/se/seed-{seed}/run.json", lambda run: run["sessions"][0].update(torch="2.10.0"))
    outcome = audited(pretended, arm="se", seed=3)
    (run,) = outcome.runs
    assert outcome.passed
    assert run.differing == ("torch differs, 2.10.0 and pretended",)
    # of seeds 0, 1, 2, 4 and 5: 23, 22, 26, 25 and 24 of 36 images; t(4) at 0.1 % is 8.610
    bound = 8.6103 * 2**0.5 * 1.581139 / 36
    accuracy = run.figures[0]
    assert (accuracy.name, accuracy.bound) == ("accuracy", pytest.approx(bound, rel=1e-4))
    assert outcome.sentences[0].startswith("passed, weakly: se, seed 3, ")
    assert outcome.sentences[0].endswith("accuracy changed by less than 53.48 points may pass")
    pretended.figures = lambda arm, seed: 0.0
    (found,) = [
        found for found in audited(pretended, arm="se", seed=2).runs[0].mismatches if found.figure == "accuracy"
    ]
    assert found.bound < found.said - found.found
    assert "further away than the 0.65" in found.sentence


def test_bits_are_compared_where_all_that_decides_them_is_equal():
    here = {"host": "a", "device": "cpu (2 threads)", "num_threads": 2, "num_processes": 1, "instructions": "AVX512"}
    here |= {"torch": "2.10.0", "torchvision": "0.25.0", "pillow": "12.0", "python": "3.12.1", "processor": "A 6 1 2"}
    here |= {"whatwhere": "0.2.0", "passes": "C++ AVX2"}

    def differing(*others, is_random=False):
        return conditions.Conditions.of([here, *others], is_random).differing

    assert differing() == differing(here, {**here, "host": "b", "workers": 4}) == ()
    for name in conditions._NEEDED:
        # in one of two sessions of a run
        (why,) = differing(here, {**here, name: "other"})
        assert why.endswith(("and other", f"other and {here[name]}"))
    assert differing(is_random=True) == ("a GPU repeats no bits without --deterministic",)
    old = {name: value for name, value in here.items() if name != "instructions"}
    assert differing(old) == ()
    assert differing({**old, "host": "b"}) == ("the instruction set differs, AVX512 and unknown",)
    # before there were others, all passes were in Python
    early = {name: value for name, value in here.items() if name != "passes"}
    assert differing(early) == ("the backend differs, C++ AVX2 and Python",)
    assert differing({**here, "passes": "Python"}, early) == differing(early)
    # virtual machines of one name have different processors
    older = {name: value for name, value in here.items() if name != "processor"}
    processors = [{**here, "processor": "B 6 1 3"}, older, {**here, "host": "b"}]
    told = [conditions.Conditions.of([here, other], False) for other in processors]
    assert [conditions.differing for conditions in told] == [(), (), ()]
    assert [conditions.processor for conditions in told] == [
        "the processor differs, A 6 1 2 and B 6 1 3",
        "the processor is not recorded",
        "",
    ]


def other_processor(run):
    run["sessions"][0]["processor"] = "another"


def test_on_another_processor_equal_weights_ask_for_equal_figures(trained):
    for seed in (0, 1):
        edit(trained.out / f"runs/se/seed-{seed}/run.json", other_processor)
    (run,) = audited(trained, arm="se", seed=1).runs
    assert run.differing == run.mismatches == ()
    assert run.weights_here == run.weights_there != ""
    assert any("to the last bit if its weights are equal, as the processor differs" in line for line in trained.lines)


def test_on_another_processor_other_weights_ask_for_a_bound(pretended, on_that_machine):
    edit(pretended.out / "runs/se/seed-3/run.json", other_processor)
    outcome = audited(pretended, arm="se", seed=3)
    assert outcome.passed
    assert outcome.runs[0].differing == ("the processor differs, another and pretended",)
    assert outcome.sentences[0].startswith("passed, weakly")


def test_without_enough_runs_for_a_bound_nothing_is_trained(begun, pretended, monkeypatch, refused):
    monkeypatch.setattr(audits, "run_training", nothing_trains)
    few = begun(pretended.out.with_name("few"))
    few("none,se", seeds=2)
    with refused(hiding=r"(?<=here \().*(?=\), and)"):
        audited(few, arm="se", seed=1)


def test_an_audit_that_was_interrupted_goes_on_with_what_was_drawn(pretended, on_that_machine, monkeypatch, refused):
    train, out = audits.run_training, pretended.out.with_name("kept")

    def stopped(*arguments, **others):
        raise Stopped("stopped after step 3", 15)

    monkeypatch.setattr(audits, "run_training", stopped)
    with pytest.raises(Stopped, match="with --out it could go on"):
        audited(pretended)
    with pytest.raises(Stopped, match="after step 3"):
        audited(pretended, num_runs=3, out=out)
    drawn = json.loads((out / "audit.json").read_text())["drawn"]
    monkeypatch.setattr(audits, "run_training", train)
    assert [[run.arm, run.seed] for run in audited(pretended, num_runs=3, out=out).runs] == drawn
    with refused():
        audited(pretended, out=out)
    (out / "audit.json").write_text("{}")
    with refused():
        audited(pretended, num_runs=3, out=out)


def test_other_images_are_refused(pretended, tmp_path, refused):
    moved = shutil.copytree(pretended.data, tmp_path / "moved")
    assert audited(pretended, data=str(moved)).passed
    picture("bars", 99).save(next((moved / "bars").iterdir()))
    with refused():
        audited(pretended, data=str(moved))
    edit(pretended.out / "compare.json", lambda design: design.update(data=str(tmp_path / "gone")))
    with refused():
        audited(pretended)


def test_what_is_no_judged_comparison_is_refused(begun, pretended, tmp_path, refused):
    with refused():
        audited(begun(tmp_path / "none"))
    for name in ("verdict.json", "runs"):
        shutil.move(pretended.out / name, tmp_path / name)
        with refused():
            audited(pretended)
        shutil.move(tmp_path / name, pretended.out / name)
    for asked in ({"arm": "cbam"}, {"seed": 99}, {"arm": "se", "num_runs": 9}, {"pretrained": "some.pth"}):
        with refused():
            audited(pretended, **asked)
    with refused():
        Asked(num_runs=0)


def test_code_is_imported_only_where_the_caller_names_it(begun, pretended, tmp_path, monkeypatch, refused):
    monkeypatch.syspath_prepend(tmp_path)
    own = "from torch import nn\n\ndef gate(channels):\n    return nn.Conv2d(channels, channels, 1)\n"
    (tmp_path / "own_gate.py").write_text(own)
    mine = begun(tmp_path / "mine")
    mine("none,mine=own_gate:gate", seeds=SEEDS)
    sys.modules.pop("own_gate")
    with refused():
        audited(mine)
    with refused():
        audited(mine, arms=parse_arms("mine=evil_module:Gate"))
    assert audited(mine, arm="none").passed
    assert "own_gate" not in sys.modules
    assert audited(mine, arm="mine", arms=parse_arms("mine=own_gate:gate")).passed
    sys.modules.pop("own_gate")
    (tmp_path / "own_gate.py").write_text(f"{own}\n# changed\n")
    with refused():
        audited(mine, arm="mine", arms=parse_arms("mine=own_gate:gate"))
    sys.modules.pop("own_gate")


def test_code_that_a_file_puts_into_another_arm_is_refused(pretended, refused):
    edit(
        pretended.out / "compare.json", lambda design: design["arm_options"]["se"].update(attention="evil_module:Gate")
    )
    with refused():
        audited(pretended)


def test_weights_to_start_from_are_known_by_their_content(begun, pretended, tmp_path, refused):
    from safetensors.torch import save_file

    from whatwhere import create_model

    weights = tmp_path / "weights.safetensors"
    save_file(create_model(BACKBONE, num_classes=3, seed=1).state_dict(), weights)
    compared = begun(tmp_path / "pretrained")
    compared("none,se", seeds=SEEDS, given={"pretrained": str(weights)})
    assert audited(compared).passed
    elsewhere = weights.rename(tmp_path / "elsewhere.safetensors")
    with refused():
        audited(compared)
    assert audited(compared, pretrained=str(elsewhere)).passed
    save_file(create_model(BACKBONE, num_classes=3, seed=2).state_dict(), elsewhere)
    with refused():
        audited(compared, pretrained=str(elsewhere))


def test_an_audit_changes_nothing_in_the_comparison(pretended):
    before = {path: path.read_bytes() for path in pretended.out.rglob("*") if path.is_file()}
    audited(pretended)
    assert before == {path: path.read_bytes() for path in pretended.out.rglob("*") if path.is_file()}


def test_torch_computes_in_as_many_threads_as_there(pretended, monkeypatch):
    import torch

    seen, train = [], audits.run_training

    def counting(*arguments, **others):
        seen.append(torch.get_num_threads())
        return train(*arguments, **others)

    monkeypatch.setattr(audits, "run_training", counting)
    for number in (3, 10**9, "many"):
        threads = {"num_threads": number}
        edit(pretended.out / "runs/se/seed-1/run.json", lambda run, threads=threads: run["sessions"][0].update(threads))
        audited(pretended, arm="se", seed=1)
    assert seen == [3, 1, 1]
    assert torch.get_num_threads() == 1
