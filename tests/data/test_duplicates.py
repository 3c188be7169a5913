"""Groups of nearly the same image: those of all pairs, at a cost that grows with the images, not with their pairs."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from whatwhere.data.doctor import duplicates
from whatwhere.data.doctor.duplicates import joined, near_groups
from whatwhere.data.doctor.findings import copy_findings
from whatwhere.data.doctor.probe import LOOK_SIZE, Entry
from whatwhere.data.sources.source import Sample

WIDTH, HEIGHT = LOOK_SIZE
NUM_PIXELS = WIDTH * HEIGHT


def entry(number, grey, colour=(90, 90, 90)):
    look = np.clip(np.round(grey), 0, 255).astype(np.uint8).tobytes() + bytes(map(int, colour))
    return Entry("", format="PNG", mode="RGB", width=640, height=480, digest=str(number), high=200, look=look)


def scene(rng):
    """Return a picture of a few low waves, as photos are, with values around 120."""
    rows, columns = np.arange(HEIGHT)[:, None] + 0.5, np.arange(WIDTH)[None] + 0.5
    waves = [
        rng.normal() * np.cos(np.pi * v * rows / HEIGHT) * np.cos(np.pi * u * columns / WIDTH)
        for v, u in itertools.product(range(4), repeat=2)
        if u or v
    ]
    picture = sum(waves)
    return (120 + 40 * picture / picture.std()).ravel()


def camera(rng, count, first=0):
    """Return pictures of a camera that does not move: each pair is nearly the same."""
    still = scene(rng)
    return [entry(first + index, still + rng.integers(-2, 3, NUM_PIXELS)) for index in range(count)]


def groups_of_all_pairs(entries):
    """Compare all pairs in float64, by the docstring; groups are None where a pair is too near to the limit."""
    looks = np.array([np.frombuffer(item.look, np.uint8) for item in entries]).astype(np.float64)
    grey = looks[:, :NUM_PIXELS]
    deviation = grey.std(1)
    unit = (grey - grey.mean(1, keepdims=True)) / np.maximum(deviation, 1e-9)[:, None]
    pairs = []
    for a, b in itertools.combinations(range(len(entries)), 2):
        difference = ((unit[a] - unit[b]) ** 2).mean()
        if abs(difference - 0.02) < 1e-5:
            return None
        colour = looks[a, NUM_PIXELS:] - looks[b, NUM_PIXELS:]
        hue = np.abs(colour - colour[[1, 2, 0]]).max()
        if min(deviation[a], deviation[b]) >= 4 and difference < 0.02 and np.abs(colour).max() <= 40 and hue <= 16:
            pairs.append((a, b))
    return sorted(joined(pairs))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 14), min_size=1, max_size=8),
    step=st.sampled_from([0.5, 2.0, 4.0, 6.0, 9.0]),
    walks=st.booleans(),
)
def test_the_groups_are_those_of_all_pairs(seed, sizes, step, walks):
    """Each scene is seen several times, changed more and more: groups hold pairs that are not near by themselves."""
    rng = np.random.default_rng(seed)
    entries = []
    for size in sizes:
        still, moved = scene(rng), np.zeros(NUM_PIXELS)
        for _ in range(size):
            change = (scene(rng) - 120) / 40 * step
            moved = moved + change if walks else change
            entries.append(entry(len(entries), still + moved, rng.choice([90, 100, 120], 3)))
    entries = [entries[index] for index in rng.permutation(len(entries))]
    expected = groups_of_all_pairs(entries)
    assume(expected is not None)
    assert near_groups(entries) == expected


@pytest.mark.parametrize("num_scenes", [1, 3])
def test_pictures_of_a_fixed_camera_are_compared_a_few_times_each(num_scenes, monkeypatch):
    compared = []
    really = duplicates._confirmed

    def noting(pairs, *args):
        compared.append(len(pairs))
        return really(pairs, *args)

    monkeypatch.setattr(duplicates, "_confirmed", noting)
    rng = np.random.default_rng(0)
    per_scene = 6_000 // num_scenes
    entries = [item for number in range(num_scenes) for item in camera(rng, per_scene, number * per_scene)]
    assert [len(group) for group in near_groups(entries)] == [per_scene] * num_scenes
    # of 18 million pairs, or 6 million
    assert sum(compared) < 40 * len(entries)


def test_many_pictures_of_a_fixed_camera_hide_no_other_pairs():
    """They fill the cells of coarse grids; finer grids find few of the pairs that are near the limit."""
    rng = np.random.default_rng(1)
    pairs = []
    for number in range(100):
        still = scene(rng)
        pairs += [entry(2 * number, still), entry(2 * number + 1, still + (scene(rng) - 120) * 0.12)]
    expected = groups_of_all_pairs(pairs)
    assert len(expected) > 80
    alike = camera(rng, 2_500, first=200)
    found = near_groups([*pairs, *alike])
    assert found == [*expected, list(range(200, 2_700))]


def test_findings_count_images_and_groups():
    samples = [Sample(f"{index}.png", "ab"[index % 2], "train" if index < 5 else "test") for index in range(8)]
    leak, near = copy_findings(samples, [], [[0, 1, 2], [3, 6, 7]])
    assert (leak.kind, leak.paths) == ("near-leak", ("3.png ~ 6.png ~ 7.png",))
    assert leak.message == (
        "1 group of nearly the same image in different splits (3 images), which may make results too good"
    )
    assert (near.kind, near.paths) == ("near", ("0.png ~ 1.png ~ 2.png",))
    assert near.message == "1 group of nearly the same image (3 images)"
