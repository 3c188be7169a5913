"""About how long a run takes: estimates from a clock that the tests set, and what they leave alone."""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file

from whatwhere import create_model
from whatwhere.training import estimate
from whatwhere.training.config import Config
from whatwhere.training.distributed import team
from whatwhere.training.estimate import HOUR, FirstSteps, Outlook, Pace, faster, measure_reading, relative_times
from whatwhere.training.setup import prepare_images, resolve
from whatwhere.training.train import run_training

OPTIONS = {
    "model": "cbam_resnext11_8x8d", "image_size": 16, "epochs": 3, "batch_size": 12, "device": "cpu", "workers": 0,
    "drop_rate": 0.2,
}  # fmt: skip


class Lines:
    """A screen that remembers its lines."""

    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)

    def warn(self, text): ...
    def progress(self, what, done, total): ...


def test_seconds_of_a_run():
    # 2 epochs of 100 images at 0.5 s; 3 x 20 validation and 40 test images at 0.1 s; 7 s before the first step
    assert Pace(0.5, 0.1, 7.0).seconds(2, {"train": 100, "val": 20, "test": 40}) == pytest.approx(100 + 10 + 7)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        # the first step takes 30 s and does not count
        ([30, 40, 50], [None, None, 10]),
        # of short steps more are timed: 0.5 s each, until 2 s are over
        ([3, 3.5, 4, 4.5, 5, 5.5], [None, None, None, None, 0.5, None]),
        ([1, 2], [None, None]),
    ],
)
def test_the_first_steps_are_timed_once(times, expected):
    steps = FirstSteps(iter(times).__next__)
    assert [steps.add() for _ in times] == expected


def proportional(sizes):
    return [(size / sizes[0]) ** 2 for size in sizes]


@pytest.mark.parametrize(
    ("options", "hours", "expected"),
    [
        # 100 epochs in 2 h: 50 in one
        ({}, 2, "--epochs 50 (about 1 h)"),
        # 10 epochs in 1 h at 224 px; at 128 px a third of the time: 30.6
        ({}, 10, "--image-size 128 --epochs 30 (about 1 h)"),
        ({}, 40, "--image-size 64 --epochs 30 (about 1 h)"),
        # at 32 px the usual network would be another
        ({}, 120, "--image-size 32 --model resnet50 --epochs 40 (about 1 h)"),
        # more than an hour, but the least there is
        ({}, 10_000, "--image-size 32 --model resnet50 --epochs 10 (about 20 h)"),
        ({"image_size": 32}, 3, "--epochs 30 (about 55 min)"),
        ({"image_size": 32, "epochs": 20}, 1.5, "--epochs 10 (about 45 min)"),
        # nothing is named that is hardly faster
        ({"image_size": 32, "epochs": 10}, 3, ""),
        ({"image_size": 32, "epochs": 100}, 1.05, ""),
    ],
)
def test_something_faster_is_named(options, hours, expected):
    config = Config(**{"model": "resnet50", "image_size": 224, "epochs": 100, **options})
    text = faster(config, hours * HOUR, proportional)
    assert text == (expected and f"faster on this machine: {expected}, with another --out")


def test_a_measurement_changes_neither_the_network_nor_random_numbers():
    model = create_model("resnext11_8x8d", num_classes=3, drop_rate=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first, second = relative_times(model, [32, 16])
    assert (first, second > 0) == (1, True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


@pytest.fixture
def train(data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(name="run", dry_run=False, resume=False, say_how_long=True, seconds=60.0, **options):
        """Train with a clock that goes on by `seconds` each time it is asked; return the screen's lines."""
        screen = Lines()
        run_training(
            str(data), {**OPTIONS, **options}, out=tmp_path / name, resume=resume, dry_run=dry_run, command="",
            screen=screen, say_how_long=say_how_long, clock=itertools.count(0.0, seconds).__next__,
        )  # fmt: skip
        return screen.lines

    call.folder = tmp_path
    return call


def test_an_estimate_changes_no_result(train, monkeypatch):
    measured = []

    def measure(model, sizes):
        measured.append(sizes)
        return relative_times(model, sizes)

    monkeypatch.setattr(estimate, "relative_times", measure)
    # an hour a step: what is faster is measured too
    said = train("with", seconds=3600.0)
    assert [line for line in said if "to go" in line]
    assert measured == [[16]]
    unsaid = train("without", say_how_long=False)
    assert not [line for line in unsaid if "to go" in line]
    kept = [
        {
            path.relative_to(train.folder / name): load_file(path)
            for path in (train.folder / name).rglob("*.safetensors")
        }
        for name in ("with", "without")
    ]
    assert kept[0].keys() == kept[1].keys()
    for path, tensors in kept[0].items():
        assert all(torch.equal(value, kept[1][path][name]) for name, value in tensors.items())
    lines = [
        [json.loads(line) | {"seconds": 0} for line in (train.folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("with", "without")
    ]
    assert lines[0] == lines[1]


def test_a_network_that_takes_one_size_only_has_an_estimate_alone(train, monkeypatch):
    def fail(model, sizes):
        raise ValueError("only images of 16 x 16")

    monkeypatch.setattr(estimate, "relative_times", fail)
    said = train(seconds=3600.0, epochs=1)
    assert [line for line in said if "to go" in line]
    assert (train.folder / "run" / "result.json").exists()


def test_what_a_run_takes_is_said_after_its_first_steps(train):
    # 6 more steps of 60 s, 11 images in each; val and test images take a third of a trained image's time
    (line,) = (line for line in train() if "to go" in line)
    assert line == "about 7 min to go: 2 epochs of 3 steps, 60 s a step"
    assert not [line for line in train("short", seconds=2.0) if "to go" in line]


def test_the_time_of_an_estimate_is_no_time_of_the_training(train, monkeypatch):
    # no run takes so long: what is left out of its time is negative here
    monkeypatch.setattr(Outlook, "after_step", lambda self: -1000.0)
    train("other", epochs=1)
    (line,) = (train.folder / "other" / "metrics.jsonl").read_text().splitlines()
    assert 3000 <= json.loads(line)["seconds"] < 4000


def test_a_dry_run_counts_evaluations_and_reading(train, monkeypatch):
    monkeypatch.setattr(estimate, "relative_times", lambda model, sizes: [1.0 for size in sizes])
    # reading 60 s; 9 steps of 60 s; val and test images of 60 s in all to evaluate val once
    assert train(dry_run=True)[-1] == "dry run: 60 s a step; 3 steps an epoch, about 15 min in all; nothing written"
    assert train("long", dry_run=True, seconds=600.0, epochs=50)[-1] == (
        "faster on this machine: --epochs 10 (about 7 h), with another --out"
    )
    assert list(train.folder.glob("*/run.json")) == []


def test_a_dry_run_of_a_run_to_continue_counts_what_is_left(train):
    train(epochs=1)
    (train.folder / "run" / "result.json").unlink()
    line = "dry run: 60 s a step; 3 steps an epoch, about {} min in all; nothing written"
    # reading, 3 steps, val twice and test once, at 60 s each; then reading, val and test once
    assert train(dry_run=True, epochs=1)[-1] == line.format(7)
    assert train(dry_run=True, resume=True, epochs=1)[-1] == line.format(3)


def test_reading_is_measured_as_the_run_will_read(data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    prepared = prepare_images(str(data), {}, Lines())
    sizes = {part: len(samples) for part, samples in prepared.parts.items()}
    for cache, start in (("auto", sum(sizes.values()) / (3 * 4 + 4)), ("none", 0.0)):
        with team("cpu") as alone:
            config = resolve(str(data), {**OPTIONS, "batch_size": 4, "cache": cache}, prepared, alone)
            # a second passes between two looks at the clock: 16 images are read in it, 12 are augmented, 4 evaluated
            pace = measure_reading(config, prepared, alone, clock=itertools.count(0.0).__next__)
        assert pace == Pace(pytest.approx(1 / 12), pytest.approx(1 / 4), pytest.approx(start))
