"""Times that other programs disturb; the clock is a script, so nothing here depends on the machine."""

import itertools
import json

import pytest
import torch
from torch import nn

from whatwhere import compare_costs, cost
from whatwhere.cost import measure, measure_latency

STEADY = (10.0, 30.0)  # ms, of a forward pass and of a training step


@pytest.fixture
def rounds(monkeypatch):
    """Let two models be measured with a script of rounds, and return the rounds that were."""

    def measured(script, num_models=2, seconds=0.0, **options):
        times = itertools.chain.from_iterable(itertools.chain.from_iterable(script))
        now, done = itertools.count(), []
        monkeypatch.setattr(measure, "_milliseconds", lambda run, device: next(times))
        monkeypatch.setattr(measure.time, "perf_counter", lambda: next(now) * seconds)
        models, images = [nn.Conv2d(3, 4, 3)] * num_models, [torch.zeros(1, 3, 8, 8)] * num_models
        found = measure_latency(models, images, progress=lambda *progress: done.append(progress), **options)
        return found, done

    return measured


def test_the_models_take_turns_and_steady_times_need_no_more_rounds(rounds):
    (first, second), done = rounds(itertools.repeat([STEADY, (11.0, 36.0)]))
    assert (first.forward_ms, first.training_step_ms, first.spread, first.steady) == (10.0, 30.0, 1.0, True)
    assert (second.forward_ms, second.training_step_ms, second.steady) == (11.0, 36.0, True)
    assert done[-1] == (12, 12)


def test_a_disturbance_that_ends_is_measured_out(rounds):
    script = itertools.chain([[STEADY, (10.0, 600.0)]] * 7, itertools.repeat([STEADY, (11.0, 36.0)]))
    (_, second), done = rounds(script)
    # the last ten rounds tell the times as soon as the quartiles of their steps agree
    assert (second.training_step_ms, second.steady) == (36.0, True)
    assert (second.spread, done[-1]) == (pytest.approx(600 / 36), (15, 15))


def test_one_slow_round_is_none_that_matters(rounds):
    (first, _), done = rounds([[STEADY] * 2] * 6 + [[(10.0, 900.0), STEADY]] + [[STEADY] * 2] * 5)
    assert (first.training_step_ms, first.spread, first.steady) == (30.0, 30.0, True)
    assert len(done) == 12


@pytest.mark.parametrize(
    ("of_a_round", "spread"),
    [
        ([[(10.0, 30.0)], [(10.0, 600.0)]], 20.0),  # the rounds differ
        ([[(456.4, 74.2)]] * 2, 456.4 / 74.2),  # a forward pass is longer than a step
    ],
)
def test_what_stays_disturbed_is_marked_after_three_times_as_many_rounds(rounds, of_a_round, spread):
    (only,), done = rounds(itertools.cycle(of_a_round), num_models=1)
    assert (only.steady, only.spread) == (False, pytest.approx(spread))
    assert len(done) == 2 + 3 * 10


def test_no_round_starts_late(rounds):
    # each look at the clock takes 1 s; one before the rounds and one before each
    (only,), done = rounds(itertools.repeat([STEADY]), num_models=1, seconds=1.0, max_seconds=4)
    assert (only.steady, len(done)) == (True, 5)
    (only,), done = rounds(itertools.cycle([[STEADY], [(10.0, 600.0)]]), num_models=1, seconds=1.0, max_seconds=4)
    assert (only.steady, len(done)) == (False, 12)


def test_without_a_backward_pass_a_step_may_seem_shorter(monkeypatch):
    times = itertools.cycle([10.0, 9.9])
    monkeypatch.setattr(measure, "_milliseconds", lambda run, device: next(times))
    (only,) = measure_latency([nn.Identity()], [torch.zeros(1, 3, 8, 8)])
    assert only.steady


def test_disturbed_times_are_no_facts_in_tables_and_json(monkeypatch):
    times = itertools.cycle([10.0, 30.0, 10.0, 600.0])
    monkeypatch.setattr(measure, "_milliseconds", lambda run, device: next(times))
    result = cost(nn.Conv2d(3, 4, 3), (3, 8, 8), latency=True, name="mine")
    said = (
        "other programs ran: the times of mine differ by up to x20.0 between measurements: they mean little; measure "
        "again on a quiet machine"
    )
    assert result.tables()[-1].note == said
    assert said in compare_costs(result, result).tables()[0].note
    found = json.loads(result.to_json())
    assert (found["steady"], found["spread"]) == (False, 20.0)
