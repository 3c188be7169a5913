import math

import pytest
import torch
from scipy.stats import ttest_1samp
from torch import nn

from whatwhere.explain import faithfulness
from whatwhere.explain.faithfulness import area, beside_random, is_distribution, probabilities, told_gain


class Left(nn.Module):
    """Two classes; the logit of the second is the mean of the left half of the image, times 8."""

    def forward(self, x):
        left = 8 * x[..., : x.shape[-1] // 2].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(left), left], 1)


def left_and_right(size=8):
    left = torch.zeros(1, 1, size, size)
    left[..., : size // 2] = 1
    return left, 1 - left


def test_curves_that_are_known():
    images, (left, right) = torch.ones(1, 3, 8, 8), left_and_right()
    curves = faithfulness(Left(), images, left, [1], steps=4)
    # a constant image is its own blur: inserting changes nothing
    torch.testing.assert_close(curves.insertion, torch.full((1, 5), 8.0).sigmoid())
    # of the left half, all of it, half of it and nothing is there; which places go first among equals is drawn
    torch.testing.assert_close(curves.deletion, torch.tensor([[8.0, 4, 0, 0, 0]]).sigmoid())
    others = faithfulness(Left(), images, right, [1], steps=4)
    torch.testing.assert_close(others.deletion, torch.tensor([[8.0, 8, 8, 4, 0]]).sigmoid())
    assert curves.areas[1] < others.areas[1]
    torch.testing.assert_close(curves.areas[1], area(curves.deletion))
    torch.testing.assert_close(area(torch.tensor([1.0, 0.5, 0.0])), torch.tensor(0.5))


def test_insertion_begins_with_the_blurred_image():
    from torchvision.transforms.v2.functional import gaussian_blur

    images, (left, _right) = torch.randn(3, 3, 32, 32), left_and_right(32)
    curves = faithfulness(Left(), images, left.expand(3, -1, -1, -1), [1, 1, 0])
    sigma = 5 / 224 * 32
    first = Left()(gaussian_blur(images, [3, 3], [sigma, sigma])).softmax(1)
    whole = Left()(images).softmax(1)
    torch.testing.assert_close(curves.insertion[:, 0], first[[0, 1, 2], [1, 1, 0]])
    torch.testing.assert_close(curves.insertion[:, -1], whole[[0, 1, 2], [1, 1, 0]])
    torch.testing.assert_close(curves.deletion[:, 0], whole[[0, 1, 2], [1, 1, 0]])
    torch.testing.assert_close(curves.deletion[:, -1], torch.full((3,), 0.5))
    # the left half decides, so that all is there after half of the steps
    torch.testing.assert_close(curves.insertion[:, 8], curves.insertion[:, -1])


def test_equal_places_go_in_random_order():
    images, constant = torch.ones(1, 3, 32, 32), torch.zeros(1, 1, 32, 32)
    curves = faithfulness(Left(), images, constant, [1], steps=2)
    # neither the left nor the right half went first, as they would in the order of the pixels
    assert abs(float(curves.deletion[0, 1].logit()) - 4) < 0.6
    assert torch.equal(faithfulness(Left(), images, constant, [1], steps=2).deletion, curves.deletion)


def test_batches_and_the_predicted_class():
    images, maps = torch.randn(5, 3, 16, 16), torch.randn(5, 1, 4, 4)
    model = Left().train()
    whole = faithfulness(model, images, maps)
    parts = faithfulness(model, images, maps, Left()(images).argmax(1), batch_size=2)
    assert model.training
    torch.testing.assert_close(whole.insertion, parts.insertion)
    torch.testing.assert_close(whole.deletion, parts.deletion)


def test_by_how_much_a_map_is_better_than_random_order():
    images, (left, right) = torch.ones(6, 3, 16, 16), left_and_right(16)
    noise = 1 + 0.2 * torch.randn(6, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    good, bad = (
        beside_random(Left(), images * noise, one.expand(6, -1, -1, -1), torch.ones(6, dtype=torch.int64)).gains()[1]
        for one in (left, right)
    )
    assert good[1] > 0.02
    assert bad[2] < -0.02
    # the paired interval of the mean, by scipy
    own = beside_random(Left(), images * noise, left.expand(6, -1, -1, -1), torch.ones(6, dtype=torch.int64))
    differences = (own.at_random.areas[1] - own.curves.areas[1]).double().numpy()
    interval = ttest_1samp(differences, 0).confidence_interval()
    assert good == pytest.approx((differences.mean(), interval.low, interval.high))
    alone = beside_random(Left(), images[:1], left, torch.tensor([1])).gains()
    assert all(math.isnan(low) and math.isnan(high) for _, low, high in alone)


def test_networks_that_are_no_classifiers(refused):
    images, maps = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 4, 4)
    with refused():
        faithfulness(nn.Conv2d(3, 4, 3), images, maps)
    for classes in ([0, 2], [0], 0):
        with refused():
            faithfulness(Left(), images, maps, classes)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_tiny_images(size):
    curves = faithfulness(Left() if size > 1 else nn.Flatten(), torch.rand(1, 3, size, size), torch.rand(1, 1, 1, 1))
    assert curves.insertion.isfinite().all()


def test_maps_that_are_none(refused):
    images = torch.rand(2, 3, 8, 8)
    for maps in (torch.rand(1, 1, 4, 4), torch.rand(2, 3, 4, 4), torch.full((2, 1, 4, 4), float("nan"))):
        with refused():
            faithfulness(Left(), images, maps)
    with refused():
        faithfulness(Left(), images, torch.rand(2, 1, 4, 4), steps=0)


class Probabilities(nn.Module):
    """A classifier that ends with a softmax, in a dtype; scores are the mean colours."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return (20 * x.mean((2, 3))).softmax(1).to(self.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_classes", [3, 1000])
def test_probabilities_are_not_made_probabilities_again(dtype, num_classes):
    given = torch.randn(64, num_classes, generator=torch.Generator().manual_seed(1)).mul(3).softmax(1).to(dtype)
    assert is_distribution(given)
    assert torch.equal(probabilities(given, are_given=True), given.float())
    # what is not finite in one image says nothing about the others
    given[3, 0] = math.nan
    assert is_distribution(given)
    assert not is_distribution(given - 0.1)
    assert not is_distribution(torch.full((2, 3), math.nan))


def test_the_scale_of_a_curve_does_not_change_within_it():
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    model = Probabilities(torch.bfloat16)
    curves = faithfulness(model, images, torch.rand(4, 1, 4, 4))
    torch.testing.assert_close(curves.insertion[:, -1], model(images).float().amax(1))
    torch.testing.assert_close(curves.deletion[:, -1], torch.full((4,), 1 / 3), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("gain", "told"),
    [
        ((0.123, 0.021, 0.209), "+0.12 (+0.02 to +0.21)"),
        ((0.0004, 0.0002, 0.0011), "+0.0004 (+0.0002 to +0.0011)"),
        ((-0.0004, -0.011, 0.001), "-0.000 (-0.011 to +0.001)"),
        ((0.0, 0.0, 0.0), "+0.00000 (+0.00000 to +0.00000)"),
        ((0.2, math.nan, math.nan), "+0.20 (no interval: fewer than 5 images)"),
    ],
)
def test_a_gain_tells_the_sign_of_its_ends(gain, told):
    assert told_gain(*gain) == told
