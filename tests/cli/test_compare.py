"""`whatwhere compare` and `whatwhere verdict`: options, screen, sentences. See tests/comparison."""

import json
import random
import shlex

import pytest

from comparisons import BACKBONE, OPTIONS, Comparisons
from pictures import make_folder
from whatwhere import UserError
from whatwhere.comparison.arms import Arm

SMALL = [text for name, value in OPTIONS.items() for text in (f"--{name.replace('_', '-')}", value)]


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def patterns(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data") / "patterns")


@pytest.fixture
def asked(whatwhere):
    """Return what a call of `whatwhere compare` asks for, which is then not done."""
    seen = {}

    def run_comparison(data, given, request, share, **others):
        seen.update(data=data, given=given, request=request, share=share, **others)

    def call(*arguments):
        assert whatwhere("compare", *arguments, run_comparison=run_comparison) == (0, "", "")
        return seen

    return call


@pytest.fixture
def compare(patterns, tmp_path, whatwhere):
    """The command on images; training is pretended, se helps by two points."""
    compared = Comparisons(patterns, tmp_path / "out")
    compared.num_images = 500  # of each of the two classes
    compared.figures = lambda arm, seed: (800 + 7 * (3 * int(seed) % 7) + (arm == "se") * (20 + int(seed))) / 1000

    def call(*arguments):
        given = ("--backbone", BACKBONE, *SMALL, "--out", compared.out, *arguments)
        return whatwhere("compare", patterns, *given, run_comparison=compared.run_comparison)

    call.compared = compared
    return call


def test_what_is_not_given_is_left_open(asked):
    seen = asked("photos")
    assert (seen["data"], seen["given"]) == ("photos", {})
    assert set(vars(seen["request"]).values()) == {None, ()}
    assert (seen["share"].out.as_posix(), seen["share"].shard, seen["share"].spread) == (
        "runs/photos/compare-default", None, None
    )  # fmt: skip
    assert seen["command"] == "whatwhere compare photos"
    assert asked("a/photos.csv", "--backbone", "resnet18")["share"].out.as_posix() == "runs/photos/compare-resnet18"


def test_every_option_is_taken(asked):
    line = "photos --backbone resnet18 --attention none,x=se,wide:se --seeds 12 --max-seeds 24 --margin 1 --metric loss"
    line += " --baseline x --lr-search 0.1,2e-1 --out there --shard 2/8 --epochs 3 --no-channels-last --lr 0.3"
    seen = asked(*shlex.split(line))
    assert vars(seen["request"]) == {
        "backbone": "resnet18",
        "arms": (Arm("none", "none"), Arm("x", "se"), Arm("wide-se", "wide:se")),
        "num_seeds": 12,
        "max_seeds": 24,
        "margin": 1.0,
        "metric": "loss",
        "baseline": "x",
        "lr_search": (0.1, 0.2),
        "leave_out": (),
    }
    assert (seen["share"].out.as_posix(), seen["share"].shard) == ("there", (2, 8))
    assert seen["given"] == {"epochs": 3, "channels_last": False, "lr": 0.3}
    assert seen["command"] == f"whatwhere compare {line}"


def test_a_budget_is_a_time(asked):
    assert asked("photos")["budget"] is None
    assert asked("photos", "--budget", "1h30min")["budget"] == 5400


def test_the_command_line_wins_over_the_file(asked, tmp_path):
    (tmp_path / "my.yaml").write_text("epochs: 7\nlr: 1e-3\n")
    assert asked("photos", "--config", "my.yaml", "--epochs", "9")["given"] == {"epochs": 9, "lr": 0.001}


def test_processes_get_the_same_options_and_a_share_each(asked, monkeypatch):
    called = []
    monkeypatch.setattr("whatwhere.comparison.shards.run_shards", lambda *given, **named: called.append((given, named)))
    line = "photos --shard 2/3 --processes=2 --seeds 4 --json"
    asked(*line.split())["share"].spread(None, [], "--budget", "1h")
    named = {"num_gpus": 1, "command": f"whatwhere compare {line}"}
    assert called == [((["photos", "--seeds", "4", "--json"], (2, 3), 2, "--budget", "1h"), named)]


def test_several_processes_on_one_device_take_turns(asked, monkeypatch):
    assert asked("photos")["share"].at_once == "one after another"
    shared = asked("photos", "--processes", "4")["share"]
    assert (shared.num_devices, shared.at_once) == (1, "in 4 processes on 1 device, timed as one after another")
    monkeypatch.setattr("whatwhere.comparison.shards.default_processes", lambda device: 8)
    assert asked("photos", "--processes", "4")["share"].num_devices == 4
    assert (asked("photos")["share"].num_devices, asked("photos")["share"].at_once) == (8, "on 8 devices")
    more = asked("photos", "--processes", "16")["share"]
    assert (more.num_devices, more.at_once) == (8, "in 16 processes on 8 devices, timed as 8 at a time")


def test_a_process_of_a_comparison_says_how_the_whole_goes_on(asked):
    whole = ("--whole", "whatwhere compare photos --processes 2")
    seen = asked("photos", "--shard", "1/2", "--processes", "1", *whole)
    assert seen["share"].is_inner
    assert seen["command"] == "whatwhere compare photos --processes 2"


def test_tables_a_page_and_files(compare, whatwhere, tmp_path):
    status, out, err = compare("--attention", "none,se", "--seeds", "6")
    assert (status, err) == (0, "")
    assert "run 1 of 12: none, seed 0: 80.00% of the test images, 1 min; about 11 min left\n" in out
    assert "se    helps" in out
    page, following = out.splitlines()[-2:]
    assert page == f"The report: {tmp_path / 'out' / 'report.html'}"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lock", "compare.json", "cost.json", "report.html", "results.csv", "runs", "verdict.json"
    ]  # fmt: skip
    assert "helps" in (tmp_path / "out" / "report.html").read_text()
    # the command that follows gives the same verdict as it stands
    command = shlex.split(following.partition(": ")[2])
    assert command[:2] == ["whatwhere", "verdict"]
    status, out, err = whatwhere(*command[1:])
    assert (status, err) == (0, "")
    assert "se    helps" in out


@pytest.mark.parametrize("form", ["latex", "markdown"])
def test_the_table_of_a_paper_is_all_of_standard_output(compare, form):
    status, out, err = compare("--attention", "none,se", "--seeds", "6", f"--{form}")
    assert status == 0
    assert "run 1 of 12: none, seed 0" in err
    assert ("\\begin{tabular}" in out, "|:---" in out) == (form == "latex", form == "markdown")
    assert len(out.splitlines()) == (10 if form == "latex" else 6)
    assert "se    helps" in err
    assert compare("--attention", "none,se", "--collect", f"--{form}")[:2] == (0, out)


def test_the_command_that_follows_gives_the_same_verdict(compare, whatwhere):
    """Here with looks that were planned: as a first look, the figures would say "helps"."""

    def accuracy(arm, seed):
        luck = random.Random(f"3 {seed}").gauss(0, 0.02)
        gain = 0.011 + random.Random(f"3 {arm} {seed}").gauss(0, 0.012)
        return round(0.8 + luck + (arm == "se") * gain, 4)

    compare.compared.figures, compare.compared.num_images = accuracy, 5_000
    terms = ("--seeds", "6", "--max-seeds", "18", "--margin", "0.12345678")
    status, out, err = compare("--attention", "none,se", *terms)
    assert (status, err) == (0, "")
    command = shlex.split(out.splitlines()[-1].partition(": ")[2])
    judged = compare.compared.read("verdict.json")["judgement"]
    assert judged["arms"][0]["verdict"] == "cannot tell yet"
    status, out, err = whatwhere(*command[1:], "--json")
    assert (status, err) == (0, "")
    again = json.loads(out)["judgement"]
    # the table has seeds as text
    assert [str(seed) for seed in judged["arms"][0].pop("seeds")] == again["arms"][0].pop("seeds")
    assert again == judged


def test_every_verdict_on_the_runs_says_what_the_report_says_of_them(compare, whatwhere, tmp_path):
    compare.compared.figures = lambda arm, seed: (0.3 if arm == "none" else 0.8) + 0.001 * (7 * int(seed) % 5)
    status, out, _ = compare("--attention", "none,se", "--seeds", "6")
    assert status == 0
    content = compare.compared.read("verdict.json")
    assert content["first"] == [["none", "6 of 6 runs are no better than guessing one of 3 classes"]]
    assert len(content["cautions"]) > 0
    command, runs = shlex.split(out.splitlines()[-1].partition(": ")[2])[1:], tmp_path / "out" / "runs"
    again = json.loads(whatwhere(*command, "--json")[1])
    assert [again[name] for name in ("first", "cautions")] == [content[name] for name in ("first", "cautions")]
    assert again["judgement"]["arms"][0]["conclusion"] == "Train for more epochs before you decide about se"
    # a table of that table, the folders, and a table of them
    options = ("--arm-from", "{arm}/seed-{seed}", "--may-differ", "model")
    assert whatwhere("collect", tmp_path / "out" / "results.csv", "--out", "again.csv")[0] == 0
    assert whatwhere("collect", runs, *options, "--out", "runs.csv")[0] == 0
    for given in (("again.csv",), (runs, *options), ("runs.csv",)):
        told = json.loads(whatwhere("verdict", *given, "--metric", "accuracy", "--json")[1])
        assert told["first"] == content["first"]


def test_the_command_that_follows_names_no_number_of_test_images_where_the_runs_differ_in_it(compare, whatwhere):
    compared = compare.compared
    compared.before = lambda arm, seed: setattr(compared, "num_images", 1000 if int(seed) % 2 else 500)
    status, out, err = compare("--attention", "none,se", "--seeds", "6")
    assert (status, err) == (0, "")
    command = shlex.split(out.splitlines()[-1].partition(": ")[2])
    assert "--first-look" in command
    assert "--test-images" not in command
    assert whatwhere(*command[1:])[0] == 0


def test_a_dry_run_shows_design_and_time_and_writes_nothing(compare, tmp_path):
    status, out, err = compare("--attention", "none,se", "--seeds", "6", "--dry-run")
    assert (status, err) == (0, "")
    assert "none: resnext11_8x8d, " in out
    assert "12 runs to do, each of 3 steps, one after another: " in out
    assert out.endswith("dry run: nothing written\n")
    assert not (tmp_path / "out").exists()
    status, out, err = compare("--attention", "none,se", "--seeds", "6", "--dry-run", "--json")
    assert (status, out) == (0, "")
    assert err.endswith("dry run: nothing written\n")


def test_json_alone_goes_to_standard_output(compare):
    status, out, err = compare("--attention", "none,se", "--seeds", "2", "--json")
    assert status == 0
    assert json.loads(out) == compare.compared.read("verdict.json")
    assert "run 1 of 4: none, seed 0" in err
    status, again, err = compare("--json", "--collect")
    assert (status, again, err) == (0, out, "")


def test_a_failed_run_ends_with_status_2_and_the_report_of_the_others(compare, tmp_path):
    def fail(arm, seed):
        if (arm, seed) in (("se", "2"), ("se", "3")):
            raise UserError("the loss is nan")

    compare.compared.before = fail
    status, out, err = compare("--attention", "none,se", "--seeds", "6", "--json")
    assert status == 2
    assert list(json.loads(out)["failures"]) == ["se, seed 2", "se, seed 3"]
    assert err.splitlines()[-1] == (
        "whatwhere: 2 runs failed (se, seed 2, se, seed 3), as said above; the finished ones are kept, and the same "
        "command tries again"
    )
    assert "se, seed 3 failed: the loss is nan" in (tmp_path / "out" / "report.html").read_text()


def test_a_share_is_no_verdict(compare, tmp_path):
    for part in ("1/2", "2/2"):
        status, out, err = compare("--attention", "none,se", "--seeds", "4", "--shard", part)
        assert (status, err) == (0, "")
        assert out.endswith("this share is done; when all are: the same command with --collect instead of --shard\n")
    assert not (tmp_path / "out" / "report.html").exists()
    status, out, _ = compare("--collect")
    assert (status, "cannot tell yet" in out) == (0, True)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("",),
        ("nowhere",),
        ("DATA", "--out", ""),
        ("DATA", "--seeds", "1"),
        ("DATA", "--seeds", "many"),
        ("DATA", "--max-seeds", "5"),
        ("DATA", "--seeds", "8", "--max-seeds", "7"),
        ("DATA", "--attention", "none,,se"),
        ("DATA", "--attention", "none,see"),
        ("DATA", "--attention", "none,../x=se"),
        ("DATA", "--attention", "none"),
        ("DATA", "--attention", "none,nowhere:Gate"),
        ("DATA", "--baseline", "plain"),
        ("DATA", "--backbone", "resnet1"),
        ("DATA", "--backbone", "se_resnet18"),
        ("DATA", "--metric", "f1"),
        ("DATA", "--metric", "loss"),
        ("DATA", "--margin", "-1"),
        ("DATA", "--margin", "nan"),
        ("DATA", "--lr-search", "0.1"),
        ("DATA", "--lr-search", "0.1,0.1"),
        ("DATA", "--lr-search", "0.1,nan"),
        ("DATA", "--lr-search", "slow,fast"),
        ("DATA", "--lr-search", "0.1,1e6"),
        ("DATA", "--metric", ""),
        ("DATA", "--baseline", ""),
        ("DATA", "--seeds", "10001"),
        ("DATA", "--margin", "1e308"),
        ("DATA", "--metric", "loss", "--margin", "1e308"),
        ("DATA", "--pretrained", "nofile.pth"),
        ("DATA", "--shard", "0/2"),
        ("DATA", "--shard", "3/2"),
        ("DATA", "--shard", "half"),
        ("DATA", "--shard", "1/2", "--collect"),
        ("DATA", "--collect"),
        ("DATA", "--collect", "--dry-run"),
        ("DATA", "--processes", "0"),
        ("DATA", "--epochs", "0"),
        ("DATA", "--model", "resnet18"),
        ("DATA", "--seed", "1"),
        ("DATA", "--config", "none.yaml"),
        ("DATA", "--device", "tpu0"),
        ("DATA", "--attention", "none,cbam,wide", "--pretrained", "imagenet"),
        ("DATA", "--width-factor", "2"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(whatwhere, patterns, tmp_path, arguments, refused_command):
    arguments = [str(patterns) if argument == "DATA" else argument for argument in arguments]
    err = refused_command("compare", *arguments)
    assert whatwhere("compare", *arguments, "--json") == (2, "", err)
    assert [path for path in tmp_path.rglob("*") if "cache" not in path.parts] == []


def test_what_a_comparison_chooses_is_no_option_of_a_file_either(whatwhere, tmp_path):
    for text, instead in (("model: resnet18", "--backbone"), ("seed: 3", "--seeds"), ("attention: se", "--attention")):
        (tmp_path / "my.yaml").write_text(text)
        status, out, err = whatwhere("compare", "digits", "--config", "my.yaml")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert f"give {instead}" in err
