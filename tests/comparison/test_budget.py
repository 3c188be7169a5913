"""`compare --budget`: what is chosen, what is refused, and what happens when time runs out."""

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import nct, t

from comparisons import BACKBONE, OPTIONS, design_of, pretended_costs
from whatwhere import UserError
from whatwhere.comparison import forecast, run
from whatwhere.comparison.arms import parse_arms
from whatwhere.comparison.budget import Budget, Plan, differences_found, seconds_in, seconds_of, typed, with_options
from whatwhere.comparison.design import with_epochs
from whatwhere.comparison.planning import Request
from whatwhere.comparison.runs import Share
from whatwhere.statistics.decide import least_found
from whatwhere.training.estimate import NOTHING, Pace


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("90m", 5400), ("30min", 1800), ("1h30m", 5400), ("1h30min", 5400), ("1.5h", 5400),
     ("1 h 30 min", 5400), ("45s", 45), ("1h0m1s", 3601)],
)  # fmt: skip
def test_times(text, seconds):
    assert seconds_in(text) == seconds
    assert seconds_in(typed(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "0h", "-1h", "2 hours", "1,5h", "nan", "1e3h", "m2", "inf h", "0.1s"])
def test_what_is_no_time_is_a_sentence(text):
    with pytest.raises(UserError, match="--budget must be a time such as 2h, 90min or 1h30min, got '"):
        seconds_in(text)


def says(message):
    return pytest.raises(UserError, match=f"^{re.escape(message)}$")


def of_run(arm, epochs, searching):
    """Ten seconds and one for each epoch; twice that with se, three times with cbam."""
    return {"none": 1, "se": 2, "cbam": 3}.get(arm, 1) * (10 + epochs) * (0.5 if searching else 1)


def plan_of(num_parts=1, keep=(), **changes):
    keep = {f"keep_{name}": True for name in keep}
    return Plan(design_of(**changes), lambda design: seconds_of(design, of_run, num_parts), **keep)


def test_seconds_of_a_comparison():
    # 30 epochs: 6 x 40 s for a seed of all arms
    assert seconds_of(design_of(), of_run, 1) == 8 * 240
    # each device does whole seeds, and the search ends before
    assert seconds_of(design_of(lr_search=(0.1, 0.2)), of_run, 3) == 3 * 240 + 120
    # looks at 8, 16 and 20 pairs
    assert seconds_of(design_of(max_seeds=20), of_run, 3) == (3 + 3 + 2) * 240
    short = design_of(arms=parse_arms("none,short"), arm_options={"none": {}, "short": {"epochs": 15}})
    assert seconds_of(short, of_run, 1) == 8 * (40 + 25)
    assert with_epochs(short, 20).arm_options["short"]["epochs"] == 10


@pytest.mark.parametrize(
    ("keep", "changes", "room", "expected"),
    [
        ((), {}, 8 * 240, (8, 30, None)),
        ((), {}, 8 * 240 - 1, (7, 30, None)),
        ((), {}, 6 * 240, (6, 30, None)),
        ((), {}, 6 * 240 - 1, (6, 29, None)),
        ((), {}, 6 * 120, (6, 10, None)),
        ((), {}, 6 * 120 - 1, None),
        (("seeds",), {}, 8 * 240 - 1, (8, 29, None)),
        (("epochs",), {}, 6 * 240, (6, 30, None)),
        (("epochs",), {}, 6 * 240 - 1, None),
        (("seeds", "epochs"), {}, 8 * 240 - 1, None),
        # asked for fewer than a verdict needs
        (("seeds",), {"num_seeds": 3}, 3 * 240, (3, 30, None)),
        # of the later looks, the pairs that fit if all of them come
        ((), {"max_seeds": 24}, 24 * 240, (8, 30, 24)),
        ((), {"max_seeds": 24}, 24 * 240 - 1, (8, 30, 23)),
        ((), {"max_seeds": 24}, 9 * 240 - 1, (8, 30, 8)),
        ((), {"max_seeds": 24}, 7 * 240, (7, 30, 7)),
    ],
)
def test_what_fits(keep, changes, room, expected):
    found = plan_of(keep=keep, **changes).within(room)
    assert (found and (found.num_seeds, found.options["epochs"], found.max_seeds)) == expected


@given(
    room=st.floats(1, 1e5), seeds=st.integers(2, 20), epochs=st.integers(1, 60), more=st.none() | st.integers(0, 30),
    num_parts=st.integers(1, 5), arms=st.sampled_from(["none,se", "none,se,cbam", "none,se,short"]),
    keep=st.sets(st.sampled_from(["seeds", "epochs"])), rates=st.sampled_from([(), (0.1, 0.2, 0.3)]),
)  # fmt: skip
def test_a_plan_never_takes_more_than_there_is_nor_fewer_seeds_than_a_verdict_needs(
    room, seeds, epochs, more, num_parts, arms, keep, rates
):
    arms = parse_arms(arms)
    asked = {"arms": arms, "arm_options": {arm.name: {"model": "resnet18"} for arm in arms}, "lr_search": rates}
    asked |= {"num_seeds": seeds, "max_seeds": None if more is None else max(6, seeds) + more}
    plan = plan_of(num_parts, keep, **asked, options={**design_of().options, "epochs": epochs})
    found = plan.within(room)
    if found is None:
        assert plan.seconds(plan.least()) > room
        return
    assert plan.seconds(found) <= room
    assert found.arms == arms
    assert min(6, seeds) <= found.num_seeds <= seeds
    assert min(10, epochs) <= found.options["epochs"] <= epochs
    assert "seeds" not in keep or found.num_seeds == seeds
    assert "epochs" not in keep or found.options["epochs"] == epochs
    if more is not None:
        assert max(6, found.num_seeds) <= found.max_seeds <= asked["max_seeds"]
        # fewer epochs, or fewer seeds, only where all do not fit
    if (found.num_seeds, found.options["epochs"]) != (seeds, epochs):
        whole = msgspec.structs.replace(plan.design, max_seeds=None if more is None else max(6, seeds))
        assert plan.seconds(whole) > room


def refusal(minutes, command="whatwhere compare photos --budget 5min", **asked):
    budget = Budget(60 * minutes, 0.0, lambda: 0.0)
    plan = plan_of(**asked)
    assert plan.within(budget.room()) is None
    return str(plan.refusal(budget, command))


@pytest.mark.parametrize(
    ("minutes", "asked", "message", "options"),
    [
        (
            30, {"keep": ("seeds", "epochs")},
            "--budget 30min is too short for 8 seeds of 30 epochs, about 30 min; 6 seeds of 30 epochs would fit",
            "--seeds 6",
        ),
        (
            20, {"keep": ("seeds", "epochs")},
            "--budget 20min is too short for 8 seeds of 30 epochs, about 30 min; 8 seeds of 12 epochs would fit",
            "--epochs 12",
        ),
        (
            15, {"keep": ("seeds", "epochs")},
            "--budget 15min is too short for 8 seeds of 30 epochs, about 30 min; 6 seeds of 12 epochs would fit",
            "--seeds 6 --epochs 12",
        ),
        (
            15, {"keep": ("epochs",)},
            "--budget 15min is too short for 6 seeds of 30 epochs, about 25 min; 6 seeds of 12 epochs would fit",
            "--epochs 12",
        ),
        (
            10, {},
            "--budget 10min is too short for all 3 arms: even 6 seeds of 10 epochs take about 12 min; without cbam it "
            "would fit",
            "--attention none,se",
        ),
        (
            10, {"keep": ("seeds", "epochs")},
            "--budget 10min is too short for all 3 arms: even 6 seeds of 10 epochs take about 12 min; without cbam it "
            "would fit",
            "--attention none,se --seeds 6 --epochs 20",
        ),
        (
            5, {},
            "--budget 5min is too short for all 3 arms: even 6 seeds of 10 epochs take about 12 min; give "
            "--budget 15min",
            "--budget 15min",
        ),
    ],
)  # fmt: skip
def test_what_is_refused_names_what_would_fit(minutes, asked, message, options):
    said = refusal(
        minutes, "whatwhere compare photos --seeds=8 --epochs 30 --attention 'none,se,cbam' --lr 0.1", **asked
    )
    before = "whatwhere compare photos --seeds=8 --epochs 30 --attention 'none,se,cbam' --lr 0.1"
    for name in ("--seeds=8", "--epochs 30", "--attention 'none,se,cbam'"):
        if name[:6] in options:
            before = before.replace(f" {name}", "")
    assert said == f"{message}: {before} {options}"
    assert len(message) <= 300


def test_wide_arms_go_first_and_arms_keep_their_names():
    arms = parse_arms("none,wide,own=se")
    options = {"none": {}, "wide": {"width_factor": 1.1}, "own": {}}
    said = refusal(6, arms=arms, arm_options=options)
    assert said.endswith("without wide it would fit: whatwhere compare photos --budget 5min --attention none,own=se")


def test_options_of_a_command_are_replaced():
    assert with_options("whatwhere compare 'a b' --seeds=8 --budget 1h", [("--seeds", "6"), ("--budget", "2h")]) == (
        "whatwhere compare 'a b' --seeds 6 --budget 2h"
    )


@pytest.mark.parametrize(("num_pairs", "level"), [(6, 0.04), (8, 0.02), (24, 0.0133), (1000, 0.01)])
def test_the_difference_that_is_found_four_times_in_five(num_pairs, level):
    shift = least_found(num_pairs, level) * num_pairs**0.5
    assert nct.sf(t.isf(level / 2, num_pairs - 1), num_pairs - 1, shift) == pytest.approx(0.8, abs=1e-6)


def test_how_small_a_difference_is_found():
    # one arm: 0.04 at the first of open looks; two share it
    assert differences_found(design_of(arms=parse_arms("none,se")), None) == (
        "8 pairs find, 4 times in 5, a difference of 1.2 points where the differences vary by 1 point from pair to "
        "pair (standard deviation), 2.4 points where by 2"
    )
    assert " a difference of 1.6 points (24 pairs: 0.76 points) where" in differences_found(
        design_of(max_seeds=24, margin=1.0), None
    )
    assert differences_found(design_of(), 0.5) == (
        "8 pairs find, 4 times in 5, a difference of 0.7 points: the differences vary by 0.5 so far (st. dev.)"
    )
    assert differences_found(design_of(metric="loss"), None) == (
        "8 pairs find, 4 times in 5, a difference of 1.4 times the standard deviation of the differences"
    )
    assert differences_found(design_of(num_seeds=5), None) == ""


@pytest.fixture
def timed(compared, monkeypatch):
    """Comparisons of pretended runs, each of which takes ten minutes and is expected to."""
    monkeypatch.setattr(forecast, "measure_reading", lambda *arguments: Pace(0.0, 0.0, 600.0))
    compared.figures = lambda arm, seed: 0.8 + 0.01 * (int(seed) % 4) + (arm == "se") * (0.02 + 0.001 * int(seed))
    compared.now, compared.slower = 0.0, 1.0

    def train(arm, seed):
        compared.now += 600 * compared.slower

    compared.before, compared.clock = train, lambda: compared.now

    def compare(budget, arms="none,se", shard=None, dry_run=False, command="whatwhere compare", **request):
        compared.trained.clear()
        compared.lines.clear()
        asked = Request(backbone=BACKBONE, arms=parse_arms(arms), **request)
        return compared.run_comparison(
            str(compared.data), OPTIONS, asked, Share(compared.out, shard), command=command, screen=compared,
            budget=3600 * budget, dry_run=dry_run,
        )  # fmt: skip

    compared.compare = compare
    return compared


def test_the_plan_is_said_before_and_kept(timed):
    # 16 runs take 160 min, and 12 of 135 min are planned
    content = timed.compare(2.25)
    assert timed.lines[1] == "--budget 2h15min is enough for both arms, 6 seeds instead of 8, 1 epoch"
    assert any(line.startswith("6 pairs find, 4 times in 5, a difference of 1.5 points") for line in timed.lines)
    assert "12 runs to do, each of 3 steps, one after another: about 2 h" in timed.lines
    assert timed.read("compare.json")["num_seeds"] == 6
    assert len(timed.trained) == 12
    assert content.judgement.arms[0].level is not None
    # the same command again
    timed.compare(2.25)
    assert timed.trained == []
    assert "all 12 runs are finished already" in timed.lines
    # what is added has its own budget, and the differences seen so far
    timed.compare(1, num_seeds=9)
    assert len(timed.trained) == 6
    assert any(line.endswith(" so far (st. dev.)") for line in timed.lines)


def test_a_dry_run_shows_the_plan_and_writes_nothing(timed):
    assert timed.compare(2.25, dry_run=True) is None
    assert timed.lines[1].startswith("--budget 2h15min is enough for both arms, 6 seeds instead of 8")
    assert not timed.out.exists()


def test_later_looks_are_planned_as_far_as_they_fit(timed):
    timed.figures = lambda arm, seed: 0.8 + 0.02 * (int(seed) * 7 % 5) + (arm == "se") * 0.03 * (-1) ** int(seed)
    timed.compare(4, num_seeds=6, max_seeds=18)
    assert timed.lines[1].endswith("6 seeds, 1 epoch, at most 10 seeds instead of 18 where fewer cannot tell")
    assert timed.read("compare.json")["max_seeds"] == 10
    assert len(timed.trained) == 20
    # the schedule stays where the same command is given again
    timed.compare(4, num_seeds=6, max_seeds=18)
    assert timed.lines[0] == "--max-seeds 18: the plan has 10, and it stays"


def test_no_seed_begins_that_would_end_after_the_budget(timed):
    timed.slower = 1.5
    content = timed.compare(2.25)
    # a seed takes 30 min: four of them
    assert len(timed.trained) == 8
    assert timed.lines[-1] == (
        "--budget 2h15min ends before another seed would: 4 runs left, with which the same command goes on"
    )
    assert content.judgement.arms[0].level is None
    assert timed.read("compare.json")["num_seeds"] == 6
    timed.compare(0.5)
    assert "--budget 30min is enough for 1 of 2 seeds; the same command goes on with the others" in timed.lines
    assert len(timed.trained) == 2
    timed.slower = 1.05  # as a little of the time is kept
    timed.compare(0.4)
    assert len(timed.trained) == 2
    assert timed.read("verdict.json")["judgement"]["arms"][0]["level"] is not None


def test_what_does_not_fit_writes_nothing(timed):
    with says(
        "--budget 1h is too short for both arms: even 6 seeds of 1 epoch take about 2 h; give --budget 2h30min: "
        "whatwhere compare --budget 2h30min"
    ):
        timed.compare(1)
    assert [path.name for path in timed.out.iterdir()] == [".lock"]
    timed.compare(2.5)
    before = {path: path.read_bytes() for path in timed.out.rglob("*.json")}
    with says(
        "--budget 10min is too short for one more seed of all arms, about 20 min; give --budget 25min: whatwhere "
        "compare --budget 25min"
    ):
        timed.compare(1 / 6, num_seeds=20)
    assert {path: path.read_bytes() for path in timed.out.rglob("*.json")} == before


def test_the_first_share_plans_for_all(timed):
    with says("the plan within --budget is not made yet; start the share 1/2 first"):
        timed.compare(2, shard=(2, 2))
    timed.compare(1.5, shard=(1, 2))
    # each of two machines has 4 seeds: 80 min
    assert timed.lines[1] == "--budget 1h30min is enough for both arms, 8 seeds, 1 epoch"
    assert len(timed.trained) == 8
    timed.compare(1.5, shard=(2, 2))
    assert len(timed.trained) == 8
    assert timed.read("compare.json")["num_seeds"] == 8


def test_processes_get_what_is_left_of_the_budget(timed):
    told = []
    own = Share(timed.out, spread=lambda runner, tasks, *more: told.append(more), num_devices=4)
    with pytest.raises(UserError, match="no run"):
        timed.run_comparison(
            str(timed.data), OPTIONS, Request(backbone=BACKBONE, arms=parse_arms("none,se")), own, command="",
            screen=timed, budget=3600,
        )  # fmt: skip
    assert told == [("--budget", "1h")]
    # 2 of 8 seeds on each device
    assert "16 runs to do, each of 3 steps, on 4 devices: about 40 min" in timed.lines


def test_a_process_of_several_knows_its_speed_once_a_run_has_ended(timed):
    timed.compare(2.5)
    timed.lines.clear()
    own = Share(timed.out, (1, 2), is_inner=True)
    asked = Request(backbone=BACKBONE, arms=parse_arms("none,se"), num_seeds=20)
    timed.trained.clear()
    timed.run_comparison(str(timed.data), OPTIONS, asked, own, command="", screen=timed, budget=3000)
    # 20 min each: two seeds in 50 min
    assert len(timed.trained) == 4
    assert timed.lines[-1].startswith("--budget 50min ends before another seed would: ")


def test_fewer_epochs_have_the_recipe_of_fewer(timed, monkeypatch):
    monkeypatch.setattr(forecast, "measure_reading", lambda *arguments: NOTHING)
    timed.measure = lambda design, *rest: msgspec.structs.replace(
        costs := pretended_costs(design, *rest),
        rows=tuple(msgspec.structs.replace(row, training_step_ms=1e4) for row in costs.rows),
    )
    monkeypatch.delitem(OPTIONS, "epochs")
    monkeypatch.setattr(run, "_advance", lambda *arguments: None)
    timed.compare(1)
    options = timed.read("compare.json")["options"]
    assert 10 <= options["epochs"] < 100
    assert options["warmup_epochs"] == options["epochs"] // 10
