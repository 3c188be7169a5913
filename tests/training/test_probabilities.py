import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics

from whatwhere.training.evaluate import auroc, calibration_error


def two_classes(*second):
    """Probabilities of two classes, from those of the second."""
    second = np.array(second, dtype=np.float32)
    return np.stack([1 - second, second], 1)


def numbers(*labels):
    return np.array(labels, dtype=np.int64)


@pytest.mark.parametrize(
    ("second", "labels", "area"),
    [
        ((0.1, 0.2, 0.7, 0.8), (0, 0, 1, 1), 1.0),
        ((0.1, 0.2, 0.7, 0.8), (1, 1, 0, 0), 0.0),
        ((0.1, 0.7, 0.2, 0.8), (0, 0, 1, 1), 3 / 4),  # of the four pairs only 0.7 before 0.2 is wrong
        ((0.5, 0.5, 0.5, 0.5), (0, 0, 1, 1), 1 / 2),
        ((0.1, 0.5, 0.5, 0.8), (0, 0, 1, 1), 3.5 / 4),  # a tie is half a pair
        ((0.25, 0.5, 0.5, 0.75, 0.5), (0, 1, 0, 1, 1), (1 + 0.5 + 2 + 1 + 0.5) / 6),
    ],
)
def test_areas_by_hand(second, labels, area):
    # with two classes that sum to 1 both have the same area
    assert auroc(two_classes(*second), numbers(*labels)) == pytest.approx(area, abs=1e-12)


def test_the_mean_is_over_the_classes_that_have_images():
    probabilities = np.array([[0.6, 0.4, 0], [0.5, 0.3, 0.2], [0.8, 0.1, 0.1]], dtype=np.float32)
    # class 0: 0.6 and 0.8 against 0.5; class 1: 0.3 against 0.4 and 0.1; class 2 has no images
    assert auroc(probabilities, numbers(0, 1, 0)) == (1.0 + 0.5) / 2


def test_without_two_classes_there_is_no_area():
    assert auroc(two_classes(0.1, 0.9), numbers(1, 1)) is None
    assert auroc(np.ones((3, 1), dtype=np.float32), numbers(0, 0, 0)) is None
    assert auroc(np.zeros((0, 2), dtype=np.float32), numbers()) is None


def test_errors_by_hand():
    # all certain and right, all certain and wrong
    assert calibration_error(two_classes(1, 1, 0), numbers(1, 1, 0)) == 0
    assert calibration_error(two_classes(1, 1, 0), numbers(0, 0, 1)) == 1
    # two of three right at 0.75, which is in (11/15, 12/15]; one right at 0.5: 3/4 |2/3 - 3/4| + 1/4 |1 - 1/2|
    error = calibration_error(two_classes(0.75, 0.75, 0.25, 0.5), numbers(1, 0, 0, 0))
    assert error == pytest.approx(3 / 4 * (3 / 4 - 2 / 3) + 1 / 4 * 1 / 2, abs=1e-12)
    # in one bin what is too much for one image makes up for what is too little for another; in two it does not
    assert calibration_error(two_classes(0.5, 0.5), numbers(0, 1)) == 0
    assert calibration_error(two_classes(0.75, 0.9), numbers(1, 0)) == pytest.approx((0.25 + 0.9) / 2)
    assert calibration_error(np.zeros((0, 2), dtype=np.float32), numbers()) is None


def test_a_bin_holds_its_upper_end():
    wide = np.zeros((2, 5), dtype=np.float32)
    # 0.5 and 0.5625 lie in (7/15, 8/15] and (8/15, 9/15]
    wide[0, :2], wide[1, :3] = (0.5, 0.5), (0.5625, 0.25, 0.1875)
    assert calibration_error(wide, numbers(1, 0)) == pytest.approx((0.5 + 0.4375) / 2)
    uniform = np.full((3, 4), 0.25, dtype=np.float32)
    assert calibration_error(uniform, numbers(0, 1, 2)) == pytest.approx(1 / 3 - 0.25)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_has_neither(bad):
    probabilities = two_classes(0.1, bad, 0.8)
    assert auroc(probabilities, numbers(0, 1, 1)) is None
    assert calibration_error(probabilities, numbers(0, 1, 1)) is None


def random_case(seed, num_images=80, num_classes=5, digits=2):
    """Probabilities with ties, and labels that they say something of."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_classes, num_images)
    labels[:num_classes] = range(num_classes)
    logits = random.normal(0, 1, (num_images, num_classes)) + np.eye(num_classes)[labels]
    logits = logits.round(digits - 1)
    exponentials = np.exp(logits)
    return (exponentials / exponentials.sum(1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("seed", range(8))
def test_the_area_is_scikit_learn_s(seed):
    probabilities, labels = random_case(seed)
    theirs = metrics.roc_auc_score(labels, probabilities.astype(np.float64), multi_class="ovr", average="macro")
    assert auroc(probabilities, labels) == pytest.approx(theirs, abs=1e-12)
    # and class by class where one of them has no images
    present = labels != 2
    areas = [
        metrics.roc_auc_score(labels[present] == number, probabilities[present][:, number]) for number in (0, 1, 3, 4)
    ]
    assert auroc(probabilities[present], labels[present]) == pytest.approx(np.mean(areas), abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_the_error_is_that_of_its_definition(seed):
    probabilities, labels = random_case(seed, digits=5)
    total = 0.0
    for number in range(15):
        rows = [
            (float(row.max()), row.argmax() == label)
            for row, label in zip(probabilities, labels, strict=True)
            if number / 15 < float(row.max()) <= (number + 1) / 15
        ]
        if rows:
            confidence, share = np.mean([value for value, _ in rows]), np.mean([right for _, right in rows])
            total += len(rows) / len(labels) * abs(share - confidence)
    assert calibration_error(probabilities, labels) == pytest.approx(total, abs=1e-9)


cases = st.integers(1, 6).flatmap(
    lambda classes: st.integers(1, 30).flatmap(
        lambda images: st.tuples(
            arrays.arrays(np.float32, (images, classes), elements=st.floats(0, 1, width=32)),
            arrays.arrays(np.int64, images, elements=st.integers(0, classes - 1)),
        )
    )
)


@settings(deadline=None)
@given(cases)
def test_both_lie_between_0_and_1_whatever_the_case(case):
    area, error = auroc(*case), calibration_error(*case)
    assert area is None or 0 <= area <= 1
    assert 0 <= error <= 1
    assert (area is None) == (len(set(case[1].tolist())) < 2)


@settings(deadline=None)
@given(cases, st.randoms(use_true_random=False))
def test_the_order_of_the_images_and_a_rising_function_do_not_matter(case, random):
    probabilities, labels = case
    order = random.sample(range(len(labels)), len(labels))
    area, error = auroc(*case), calibration_error(*case)
    assert auroc(probabilities[order], labels[order]) == pytest.approx(area)
    assert calibration_error(probabilities[order], labels[order]) == pytest.approx(error)
    assert auroc(4 * probabilities, labels) == area  # exact, so that ties stay ties
    # the larger the probabilities of another class than the label's, the worse
    assert auroc(-probabilities, labels) == (None if area is None else pytest.approx(1 - area))
