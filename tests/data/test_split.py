import random
import re
from collections import Counter
from operator import attrgetter

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from whatwhere import UserError
from whatwhere.data.sources.source import Sample
from whatwhere.data.split import split_samples

PARTS = ("train", "val", "test")


by_path = attrgetter("path")


def samples_of(sizes, split=None):
    return [Sample(f"{split or 'x'}/{c}/{i:03d}.jpg", c, split) for c, size in sizes.items() for i in range(size)]


def counts(parts):
    return {part: Counter(sample.label for sample in samples) for part, samples in parts.items()}


@pytest.fixture
def refuses(refused):
    def check(samples, **options):
        with refused() as caught:
            split_samples(samples, seed=0, **options)
        return str(caught.value)

    return check


classes = st.dictionaries(st.sampled_from("abcdef"), st.integers(3, 60), min_size=1)
fractions = st.tuples(st.floats(0.02, 0.45), st.floats(0.02, 0.45))


@given(classes, fractions, st.integers(0, 2**40))
def test_every_class_has_its_share_in_every_part(sizes, fractions, seed):
    samples = samples_of(sizes)
    val, test = fractions
    parts = split_samples(samples, seed=seed, val_fraction=val, test_fraction=test)
    assert sorted((sample for part in PARTS for sample in parts[part]), key=by_path) == sorted(samples, key=by_path)
    assert [list(parts[part]) for part in PARTS] == [sorted(parts[part], key=by_path) for part in PARTS]
    number = counts(parts)
    for label, size in sizes.items():
        for part, fraction in zip(PARTS, (1 - val - test, val, test), strict=True):
            assert number[part][label] >= 1
            # one image in each part comes first
            if size * min(val, test, 1 - val - test) >= 1:
                assert abs(number[part][label] - size * fraction) < 1


@given(classes, st.randoms(use_true_random=False), st.integers(0, 1000))
def test_the_order_of_the_samples_does_not_matter(sizes, shuffler, seed):
    samples = samples_of(sizes)
    expected = split_samples(samples, seed=seed)
    shuffler.shuffle(samples)
    assert split_samples(samples, seed=seed) == expected


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abc")), min_size=60, max_size=200),
    st.lists(st.lists(st.integers(0, 199), min_size=2, max_size=4), max_size=4),
    st.integers(0, 100),
)
def test_groups_and_twins_stay_together(drawn, twins, seed):
    samples = [Sample(f"{label}/person{person}_{i:03d}.jpg", label, None) for i, (person, label) in enumerate(drawn)]
    twin_paths = [[samples[i].path for i in group if i < len(samples)] for group in twins]
    try:
        parts = split_samples(samples, seed=seed, group_from=r"person(\d+)_", twins=twin_paths)
    except UserError:  # too few groups
        reject()
    part_of = {sample.path: part for part in PARTS for sample in parts[part]}
    assert len(part_of) == len(samples)
    assert {sample.label for sample in parts["train"]} == {sample.label for sample in samples}
    persons = {}
    for path, part in part_of.items():
        persons.setdefault(re.search(r"person(\d+)", path).group(1), set()).add(part)
    assert {len(found) for found in persons.values()} == {1}
    assert all(len({part_of[path] for path in group}) <= 1 for group in twin_paths)


@given(st.integers(12, 60), st.integers(0, 20))
def test_equal_groups_come_close_to_the_fractions(num_groups, seed):
    samples = [Sample(f"{c}/{g}_{i}", c, None) for c in "abcdefghij" for g in range(num_groups) for i in range(2)]
    parts = split_samples(samples, seed=seed, group_from=r"/(\d+)_")
    for part, fraction in zip(PARTS, (0.7, 0.15, 0.15), strict=True):
        assert abs(len(parts[part]) / len(samples) - fraction) <= 1 / num_groups


def test_three_large_groups_give_each_part_one():
    samples = [Sample(f"{c}/{g}_{i}", c, None) for c in "ab" for g in range(3) for i in range(10)]
    parts = split_samples(samples, seed=1, group_from=r"/\d")
    assert [len(parts[part]) for part in PARTS] == [20, 20, 20]


def test_another_seed_is_another_split_and_more_images_move_few():
    samples = samples_of({"a": 100, "b": 100})
    first, other = (set(split_samples(samples, seed=seed)["test"]) for seed in (0, 1))
    assert len(first & other) < 15
    larger = split_samples([*samples, Sample("x/a/100.jpg", "a", None)], seed=0)
    assert len(first & set(larger["test"])) >= 24


def test_the_split_is_this_one_on_every_platform():
    parts = split_samples(samples_of({"a": 10, "b": 6}), seed=7)
    assert {part: [sample.path[2:7] for sample in parts[part]] for part in ("val", "test")} == {
        "val": ["a/003", "a/009", "b/002"],
        "test": ["a/008", "b/003"],
    }


def test_classes_too_small_for_all_parts_are_trained_on():
    parts = split_samples(samples_of({"one": 1, "two": 2, "many": 40}), seed=0, val_fraction=0.45, test_fraction=0.45)
    number = counts(parts)
    assert number["train"]["one"] == 1
    assert number["train"]["two"] == number["val"]["two"] + number["test"]["two"] == 1


def test_given_splits_are_kept():
    train, val, test = (samples_of({"a": 20, "b": 20}, split) for split in PARTS)
    parts = split_samples([*test, *val, *train], seed=0)
    assert parts == {"train": tuple(train), "val": tuple(val), "test": tuple(test)}
    assert split_samples([*train, *val], seed=0, val_fraction=0)["test"] == ()


def test_val_is_drawn_from_train_and_never_from_test():
    train, test = samples_of({"a": 20, "b": 40}, "train"), samples_of({"a": 7, "b": 9}, "test")
    parts = split_samples([*train, *test], seed=0, val_fraction=0.1, test_fraction=0.9)
    assert parts["test"] == tuple(test)
    assert counts(parts)["val"] == {"a": 2, "b": 4}
    assert set(parts["train"]) | set(parts["val"]) == set(train)


def test_train_alone_is_split_in_three():
    parts = split_samples(samples_of({"a": 20}, "train"), seed=0)
    assert [len(parts[part]) for part in PARTS] == [14, 3, 3]


def test_no_test_part_on_request():
    parts = split_samples(samples_of({"a": 20}), seed=0, test_fraction=0)
    assert [len(parts[part]) for part in PARTS] == [17, 3, 0]


# with enough images of a class for its validation and test
@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(15, 60), min_size=1), st.data(), st.integers(0, 2**40))
def test_exactly_so_many_images_train(sizes, data, seed):
    samples = samples_of(sizes)
    number = data.draw(st.integers(len(sizes), round(0.7 * len(samples))))
    parts = split_samples(samples, seed=seed, train_images=number)
    assert len(parts["train"]) == number
    assert len({sample.path for part in PARTS for sample in parts[part]}) == sum(map(len, parts.values()))
    found = counts(parts)
    for label, size in sizes.items():
        share = size / len(samples)
        # a class has one image at least, whatever its share is
        assert abs(found["train"][label] - number * share) <= len(sizes)
        assert found["train"][label] >= 1
        assert abs(found["val"][label] - number * share * 0.15 / 0.7) <= 1 + len(sizes)
        if number * share >= 1:
            assert abs(found["test"][label] - size * 0.15) <= 1 + len(sizes)


def test_fewer_images_train_and_validate_and_all_test():
    samples = samples_of(dict.fromkeys("abcde", 1000), "train") + samples_of(dict.fromkeys("abcde", 200), "test")
    parts = split_samples(samples, seed=0, train_images=1000)
    number = counts(parts)
    assert number["train"] == dict.fromkeys("abcde", 200)
    # 15 to 85, as 750 to 4,250 without the option
    assert set(number["val"].values()) <= {35, 36}
    assert number["test"] == dict.fromkeys("abcde", 200)
    assert parts["train"] != split_samples(samples, seed=1, train_images=1000)["train"]


def test_a_given_validation_part_stays_where_fewer_images_train():
    samples = [sample for part in PARTS for sample in samples_of({"a": 30, "b": 50}, part)]
    parts = split_samples(samples, seed=0, train_images=8)
    assert counts(parts) == {"train": {"a": 3, "b": 5}, "val": {"a": 30, "b": 50}, "test": {"a": 30, "b": 50}}
    assert split_samples(samples, seed=0, train_images=80) == split_samples(samples, seed=0)


def test_all_the_images_that_the_fractions_leave_are_the_same_as_without_the_option():
    samples = samples_of({"a": 60, "b": 140})
    assert split_samples(samples, seed=3, train_images=140) == split_samples(samples, seed=3)


def test_groups_stay_together_and_unused_where_fewer_images_train():
    samples = samples_of({"a": 60, "b": 60})
    twins = [[f"x/{label}/{i:03d}.jpg" for i in range(at, at + 3)] for label in "ab" for at in range(0, 60, 3)]
    parts = split_samples(samples, seed=0, train_images=30, twins=twins)
    part_of = {sample.path: part for part, samples in parts.items() for sample in samples}
    assert all(len({part_of.get(path) for path in group}) == 1 for group in twins)
    assert abs(len(parts["train"]) - 30) <= 3
    assert sum(map(len, parts.values())) < len(samples)


def test_bad_numbers_of_training_images(refuses):
    samples = samples_of({"a": 60, "b": 140})
    refuses(samples, train_images=141)
    refuses(samples, train_images=1)


def test_bad_fractions(refuses):
    samples = samples_of({"a": 20, "b": 20})
    for value in (-0.1, 1.0, 2, float("nan")):
        refuses(samples, val_fraction=value)
        refuses(samples, test_fraction=value)
    refuses(samples, val_fraction=0.5, test_fraction=0.5)
    refuses(samples, val_fraction=0)
    refuses(samples_of({"a": 3}, "test"))


def test_bad_groups(refuses):
    samples = samples_of({"a": 20, "b": 20})
    refuses(samples, group_from="(")
    refuses(samples, group_from="(a)(b)")
    refuses(samples, group_from="x/a")
    refuses(samples, group_from="x/(?:(a)|b)")
    refuses(samples, group_from="x")


def test_a_name_that_is_not_utf8():
    samples = [Sample(f"a/\udcff{i}", "a", None) for i in range(10)]
    assert sum(map(len, split_samples(samples, seed=0).values())) == 10


def test_many_images_take_no_time():
    shuffled = samples_of(dict.fromkeys("abcdefghij", 999))
    random.Random(0).shuffle(shuffled)
    assert len(split_samples(shuffled, seed=0)["val"]) == 1500
