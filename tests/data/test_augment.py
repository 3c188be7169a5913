import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from whatwhere.data import augment
from whatwhere.data.augment import NUM_DRAWS, OPERATIONS, Augmentation, draws, operate
from whatwhere.data.preprocess import IMAGENET_MEAN, Preprocessing, preprocessing_for

SIZE = 16
PLAIN = Preprocessing(SIZE, SIZE)
# a normalisation that changes nothing, so that the test can read pixels
READABLE = Preprocessing(SIZE, SIZE, (0, 0, 0), (1 / 255,) * 3)
LARGEST = 1 - 2**-24  # of torch.rand

seeds = st.integers(0, 2**32 - 1)


def noise(seed, num, size=SIZE):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8, generator=generator)


def read(images):
    """Undo READABLE."""
    assert (images - images.round()).abs().max() < 1e-3
    return images.round().to(torch.uint8)


def off(preprocessing=READABLE, **options):
    """Return an augmentation with `options` only."""
    nothing = {"crop": "none", "crop_scale": 0.35, "hflip": 0.0, "rand_augment": 0, "random_erasing": 0.0}
    return Augmentation(preprocessing, **{**nothing, **options})


ALL = off(PLAIN, crop="pad", hflip=0.5, rand_augment=9, random_erasing=0.5)


# --- the random numbers


@given(seed=st.integers(), epoch=st.integers(0, 1000), fewer=st.integers(0, 60), more=st.integers(0, 60))
def test_the_row_of_a_sample_does_not_depend_on_how_many_there_are(seed, epoch, fewer, more):
    rows = draws(seed, epoch, fewer + more)
    assert rows.shape == (fewer + more, NUM_DRAWS)
    assert torch.equal(draws(seed, epoch, fewer), rows[:fewer])


def test_rows_differ_between_seeds_epochs_and_samples_and_nothing_else():
    first = draws(3, 1, 50)
    torch.manual_seed(99)
    assert torch.equal(draws(3, 1, 50), first)
    state = torch.get_rng_state()
    draws(3, 1, 50)
    assert torch.equal(torch.get_rng_state(), state)
    for other in (draws(4, 1, 50), draws(3, 2, 50), first.roll(1, 0)):
        assert not (other == first).all(1).any()


def test_rows_are_uniform():
    rows = draws(0, 0, 20_000)
    assert rows.min() >= 0
    assert rows.max() < 1
    # the mean of 20,000 has a standard deviation of 0.29 / 141
    assert (rows.mean(0) - 0.5).abs().max() < 0.01
    covariance = rows.T.cov() - torch.eye(NUM_DRAWS) / 12
    assert covariance.abs().max() < 0.004


# --- a batch is its images


@given(seed=seeds, order=st.permutations(range(9)), cut=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_a_batch_is_its_images_one_by_one_in_any_order(seed, order, cut):
    pixels, rows = noise(seed, 9), draws(seed, 0, 9)
    whole = ALL(pixels, rows)
    assert torch.equal(torch.cat([ALL(pixels[i : i + 1], rows[i : i + 1]) for i in range(9)]), whole)
    assert torch.equal(ALL(pixels[order], rows[order]), whole[order])
    assert torch.equal(torch.cat([ALL(part, row) for part, row in zip(*both(pixels, rows, cut), strict=True)]), whole)


def both(pixels, rows, cut):
    return [[part for part in (values[:cut], values[cut:]) if len(part)] for values in (pixels, rows)]


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_what_goes_in_is_left_alone_and_what_comes_out_is_float(seed):
    pixels, rows = noise(seed, 6), draws(seed, 0, 6)
    copies = pixels.clone(), rows.clone()
    result = ALL(pixels, rows)
    assert (result.dtype, result.shape) == (torch.float32, pixels.shape)
    assert torch.equal(pixels, copies[0])
    assert torch.equal(rows, copies[1])
    assert not torch.equal(result, PLAIN.normalize(pixels))


@given(seeds)
@settings(max_examples=10)
def test_without_anything_the_images_are_normalised(seed):
    pixels = noise(seed, 5)
    assert torch.equal(off(PLAIN)(pixels, draws(seed, 0, 5)), PLAIN.normalize(pixels))


# --- pad and crop


def shifted_by_loop(pixels, rows):
    size, pad = pixels.shape[-1], pixels.shape[-1] // 8
    result = torch.zeros_like(pixels)
    for n, y, x in itertools.product(range(len(pixels)), range(size), range(size)):
        from_y = y + int(rows[n, 2] * (2 * pad + 1)) - pad
        from_x = x + int(rows[n, 3] * (2 * pad + 1)) - pad
        if 0 <= from_y < size and 0 <= from_x < size:
            result[n, :, y, x] = pixels[n, :, from_y, from_x]
    return result


@pytest.mark.parametrize("size", [7, 16, 20])
def test_pad_and_crop_against_a_loop(size):
    pixels, rows = noise(size, 8, size), draws(size, 0, 8)
    rows[0, :4], rows[1, :4] = 0, LARGEST
    assert torch.equal(read(off(crop="pad")(pixels, rows)), shifted_by_loop(pixels, rows))


def test_pad_and_crop_reaches_every_place_equally():
    pixels = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)
    pixels[..., 8, 8] = 255
    rows = draws(0, 0, 5000)
    places = off(crop="pad")(pixels.expand(5000, -1, -1, -1), rows)[:, 0].flatten(1).argmax(1)
    counts = torch.bincount(places, minlength=SIZE * SIZE).view(SIZE, SIZE)
    expected = torch.zeros(SIZE, SIZE)
    expected[6:11, 6:11] = 200
    assert torch.equal(counts > 0, expected > 0)
    # 200 in each of 25, with a standard deviation of 14
    assert (counts - expected).abs().max() < 70


# --- flip


@pytest.mark.parametrize("probability", [0.25, 0.5, 1.0])
def test_flips(probability):
    pixels, rows = noise(0, 1).expand(4000, -1, -1, -1), draws(1, 0, 4000)
    result = read(off(hflip=probability)(pixels, rows))
    flipped = (result == pixels.flip(-1)).flatten(1).all(1)
    assert ((result == pixels).flatten(1).all(1) ^ flipped).all()
    # standard deviation at most 0.008
    assert abs(flipped.float().mean() - probability) < (0.04 if probability < 1 else 1e-9)


# --- RandAugment

TORCHVISION = v2.RandAugment(
    interpolation=InterpolationMode.BILINEAR, fill=[255 * value for value in IMAGENET_MEAN], num_magnitude_bins=31
)
NAMES = list(TORCHVISION._AUGMENTATION_SPACE)


def by_torchvision(pixels, name, magnitude, sign):
    magnitudes, signed = TORCHVISION._AUGMENTATION_SPACE[name]
    values = magnitudes(31, *pixels.shape[-2:])
    value = 0.0 if values is None else float(values[magnitude]) * (sign if signed else 1)
    return TORCHVISION._apply_image_or_video_transform(
        pixels, name, value, TORCHVISION.interpolation, TORCHVISION._fill
    )


def smooth(seed, num, size):
    small = noise(seed, num, 5)
    return v2.functional.resize(small, [size, size], InterpolationMode.BICUBIC)


@pytest.mark.parametrize("magnitude", [1, 5, 7, 9, 15, 30])
@pytest.mark.parametrize("name", NAMES)
def test_the_operations_are_torchvisions(name, magnitude):
    number, pixels = OPERATIONS.index(name), smooth(1, 3, 33)
    for sign in (1, -1):
        # torchvision's `rotate` turns the other way than its `affine`
        expected = by_torchvision(pixels, name, magnitude, -sign if name == "Rotate" else sign)
        result = operate(pixels, [number] * 3, [sign] * 3, magnitude / 30)
        assert result.dtype == torch.uint8
        difference = (result.int() - expected.int()).abs()
        if name == "Solarize":  # a pixel at the threshold falls to either side, by the threshold's rounding
            difference[(pixels.float() - 255 * (1 - magnitude / 30)).abs() < 0.01] = 0
        # torchvision's magnitudes are float32
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.02
        if name != "Identity" and magnitude > 1:
            assert not torch.equal(result, pixels)


def test_they_are_the_fourteen_of_torchvision():
    assert list(OPERATIONS) == NAMES
    assert len(OPERATIONS) == 14


@given(seed=seeds, size=st.integers(1, 20), strength=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_each_image_has_its_own_operation_and_sign(seed, size, strength):
    pixels, generator = noise(seed, 40, size), torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, 14, (40,), generator=generator).tolist()
    signs = (2 * torch.randint(0, 2, (40,), generator=generator) - 1).tolist()
    copy = pixels.clone()
    result = operate(pixels, chosen, signs, strength)
    assert torch.equal(pixels, copy)
    for index in range(40):
        part = slice(index, index + 1)
        assert torch.equal(result[part], operate(pixels[part], chosen[part], signs[part], strength))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 31, 64])
@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.1, 0.3, 1.0])
def test_sharpness_is_torchvisions_to_the_last_bit(size, strength):
    pixels = noise(size, 4, size)
    expected = v2.functional.adjust_sharpness(pixels, 1 + 0.9 * strength)
    number, sign = OPERATIONS.index("Sharpness"), 1 if strength > 0 else -1
    assert torch.equal(operate(pixels, [number] * 4, [sign] * 4, abs(strength)), expected)


def drawn(monkeypatch, apply, pixels, rows):
    """Return the images after `apply(pixels, chosen, signs, strength)` in the place of the operations."""

    def operate(pixels, chosen, signs, strength):
        chosen, signs = (torch.tensor(values)[:, None, None, None] for values in (chosen, signs))
        return apply(pixels, chosen, signs, strength).to(torch.uint8)

    monkeypatch.setattr(augment, "operate", operate)
    return read(off(rand_augment=9)(pixels, rows))


def test_each_operation_is_drawn_equally_often_in_both_places_and_both_signs(monkeypatch):
    pixels, rows = torch.zeros(20_000, 3, 1, 1, dtype=torch.uint8), draws(2, 0, 20_000)
    found = drawn(monkeypatch, lambda x, chosen, signs, strength: x * 14 + chosen, pixels, rows)[:, 0, 0, 0].int()
    counts = torch.bincount(found, minlength=14 * 14).view(14, 14)
    # 102 of each pair with a standard deviation of 10, 1,429 of each operation with one of 36
    assert (counts - 20_000 / 196).abs().max() < 51
    for place in (0, 1):
        assert (counts.sum(place) - 20_000 / 14).abs().max() < 180


def test_the_second_operation_and_both_signs_are_drawn_by_themselves(monkeypatch):
    pixels, rows = torch.zeros(8000, 3, 1, 1, dtype=torch.uint8), draws(2, 0, 8000)
    found = drawn(monkeypatch, lambda x, chosen, signs, strength: x * 2 + (signs > 0), pixels, rows)[:, 0, 0, 0].int()
    # standard deviation 39
    assert (torch.bincount(found, minlength=4) - 2000).abs().max() < 195


def test_the_strength_is_the_magnitude_of_30(monkeypatch):
    seen = []
    drawn(monkeypatch, lambda x, chosen, signs, strength: seen.append(strength) or x, noise(0, 4), draws(0, 0, 4))
    assert seen == [0.3, 0.3]


def test_extreme_draws_are_operations_too():
    rows = torch.tensor([0.0, LARGEST])[:, None].expand(2, NUM_DRAWS)
    result = read(off(rand_augment=9)(noise(0, 2), rows))
    equalized = v2.functional.equalize(v2.functional.equalize(noise(0, 2)[1]))
    assert torch.equal(result[0], noise(0, 1)[0])
    assert torch.equal(result[1], equalized)


# --- random erasing


def test_erasing_by_hand():
    pixels = noise(0, 3)
    rows = torch.zeros(3, NUM_DRAWS)
    # a share of 0.02 + 0.5 * 0.31 = 0.175 at aspect 1: a square of sqrt(0.175) * 16 = 6.7 pixels
    rows[:, 9:] = torch.tensor([[0.3, 0.5, 0.5, 0.0, 0.0], [0.3, 0.5, 0.5, LARGEST, 0.55], [0.5, 0.5, 0.5, 0.0, 0.0]])
    result = off(PLAIN, random_erasing=0.4)(pixels, rows)
    expected = PLAIN.normalize(pixels)
    expected[0, :, 0:7, 0:7] = 0
    # 16 - 7 + 1 = 10 places: the last one, and number 5
    expected[1, :, 9:16, 5:12] = 0
    assert torch.equal(result, expected)


def test_erased_rectangles_keep_to_their_share_and_aspect():
    size, num = 64, 3000
    preprocessing = Preprocessing(size, size)
    pixels = torch.full((1, 3, size, size), 255, dtype=torch.uint8).expand(num, -1, -1, -1)
    erased = off(preprocessing, random_erasing=0.25)(pixels, draws(5, 0, num)) == 0
    assert torch.equal(erased[:, 0], erased[:, 2])
    mask = erased[:, 0]
    hit = mask.flatten(1).any(1)
    # standard deviation 0.008
    assert abs(hit.float().mean() - 0.25) < 0.04
    mask = mask[hit]
    heights, widths = mask.any(2).sum(1), mask.any(1).sum(1)
    assert torch.equal(heights * widths, mask.sum((1, 2)))  # rectangles
    shares = heights * widths / size**2
    assert shares.min() > 0.015
    assert shares.max() < 0.345
    # uniform from 0.02 to 0.33, except where cut at the border: mean 0.175, standard deviation 0.09 / 27
    assert abs(shares.mean() - 0.175) < 0.016
    aspects = heights / widths
    assert aspects.min() > 1 / 3.3 * 0.8
    assert aspects.max() < 3.3 / 0.8
    assert aspects.min() < 0.37
    assert aspects.max() > 2.7
    # as often high as wide
    assert abs((heights > widths).float().mean() - (heights < widths).float().mean()) < 0.2
    # anywhere: each pixel about as often as its mirror images
    often = mask.float().mean(0)
    assert (often - often.flip(0)).abs().max() < 0.15
    assert (often - often.flip(1)).abs().max() < 0.15


# --- resized crop


def window(augmentation, width, height, row):
    """Return (left, top, width, height) of a crop, read from two ramps."""
    size = augmentation.preprocessing.image_size
    ramps = torch.zeros(3, height, width, dtype=torch.uint8)
    ramps[0] = torch.arange(width)
    ramps[1] = torch.arange(height)[:, None]
    result = augmentation.cropped(ramps, row)
    assert (result.dtype, result.shape) == (torch.uint8, (3, size, size))
    found = []
    for line in (result[0, size // 2].double(), result[1, :, size // 2].double()):
        # output i shows start + (i + 0.5) * step - 0.5; the margins are apart, where the filter is cut
        inner = torch.arange(2, size - 2, dtype=torch.float64)
        step = ((inner - inner.mean()) * (line[2:-2] - line[2:-2].mean())).sum() / (inner - inner.mean()).pow(2).sum()
        start = (line[2:-2] - (inner + 0.5) * step + 0.5).mean()
        found.append((float(start), float(step * size)))
    (left, w), (top, h) = found
    return left, top, w, h


@pytest.mark.parametrize(("width", "height"), [(200, 200), (240, 160), (150, 200)])
@pytest.mark.parametrize("scale", [0.35, 0.08, 1.0])
def test_a_resized_crop_shows_a_share_and_an_aspect_within_bounds(width, height, scale):
    augmentation = off(Preprocessing(32, 32), crop="resized", crop_scale=scale)
    shares, aspects, middles = [], [], []
    for row in draws(7, 0, 150):
        left, top, w, h = window(augmentation, width, height, row)
        # half a pixel by rounding of the result to whole numbers
        assert min(left, top) > -1.5
        assert left + w < width + 1.5
        assert top + h < height + 1.5
        shares.append(w * h / (width * height))
        # a crop is cut at the border
        aspects.append(None if w > width - 2 or h > height - 2 else w / h)
        middles.append(((left + w / 2) / width, (top + h / 2) / height))
    inner = [aspect for aspect in aspects if aspect]
    least = scale if scale < 1 else 0.6
    assert least * 0.94 < min(shares)
    assert max(shares) < 1.03
    if scale < 1:
        assert min(shares) < least + 0.15
        assert max(shares) > 0.75
        assert 0.7 < min(inner) < 0.82
        assert 1.22 < max(inner) < 1.4
        for axis in (0, 1):
            assert abs(sum(middle[axis] for middle in middles) / len(middles) - 0.5) < 0.06


def test_at_scale_1_and_ratio_1_the_whole_image_is_resized():
    pixels = noise(3, 1, 40)[0]
    row = torch.full((NUM_DRAWS,), 0.5)
    whole = off(Preprocessing(SIZE, SIZE), crop="resized", crop_scale=1.0).cropped(pixels, row)
    assert torch.equal(whole, v2.functional.resize(pixels, [SIZE, SIZE], InterpolationMode.BILINEAR))
    same = off(Preprocessing(40, 40), crop="resized", crop_scale=1.0).cropped(pixels, row)
    assert torch.equal(same, pixels)


def test_a_resized_crop_by_hand():
    pixels = noise(4, 1, 40)[0]
    # area 0.25 of 1,600 pixels at aspect 4/3: sqrt(400 * 4 / 3) = 23.1 wide, sqrt(300) = 17.3 high
    row = torch.tensor([0.0, LARGEST, 0.5, LARGEST])
    crop = off(Preprocessing(SIZE, SIZE), crop="resized", crop_scale=0.25).cropped(pixels, row)
    # 24 places down, the 12th; 18 across, the last
    part = pixels[:, 12:29, 17:40]
    assert part.shape[1:] == (math.floor(math.sqrt(300)), math.floor(math.sqrt(400 * 4 / 3)))
    assert torch.equal(crop, v2.functional.resize(part, [SIZE, SIZE], InterpolationMode.BILINEAR))


@pytest.mark.parametrize("mode", ["letterbox", "squash"])
@pytest.mark.parametrize("size", [(40, 17), (17, 40), (40, 40), (40, 1)])
def test_without_augmentation_training_sees_what_the_evaluation_sees(mode, size):
    preprocessing = preprocessing_for(40, resize_mode=mode)
    pixels = noise(5, 1, 40)[0][:, : size[1], : size[0]]
    row = torch.full((NUM_DRAWS,), 0.5)
    crop = off(preprocessing, crop="resized", crop_scale=1.0).cropped(pixels, row)
    evaluated = preprocessing.pixels(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    if mode == "letterbox" or size == (40, 40):
        assert torch.equal(crop, evaluated)
    else:  # bilinear and bicubic differ
        assert torch.equal(crop, v2.functional.resize(pixels, [40, 40], InterpolationMode.BILINEAR))


def test_a_crop_of_a_letterbox_by_hand():
    pixels = noise(6, 1, 40)[0][:, :20]
    # a quarter of the area at aspect 1 x 40/20: 20 wide, 10 high; the 6th place down, the last across
    row = torch.tensor([0.0, 0.5, 0.5, LARGEST])
    letterbox = preprocessing_for(20, resize_mode="letterbox")
    crop = off(letterbox, crop="resized", crop_scale=0.25).cropped(pixels, row)
    assert torch.equal(crop[:, 5:15], pixels[:, 5:15, 20:])
    fill = torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None]
    assert torch.equal(crop[:, :5], fill.expand(3, 5, 20))
    assert torch.equal(crop[:, 15:], fill.expand(3, 5, 20))
    squash = preprocessing_for(20, resize_mode="squash")
    crop = off(squash, crop="resized", crop_scale=0.25).cropped(pixels, row)
    assert torch.equal(crop, v2.functional.resize(pixels[:, 5:15, 20:], [20, 20], InterpolationMode.BILINEAR))


@given(width=st.integers(1, 300), height=st.integers(1, 300), seed=seeds, mode=st.sampled_from(["letterbox", "squash"]))
def test_a_crop_has_the_shape_of_the_image_and_is_never_fill_alone(width, height, seed, mode):
    preprocessing = preprocessing_for(32, resize_mode=mode)
    row = torch.rand(NUM_DRAWS, generator=torch.Generator().manual_seed(seed))
    colour = torch.tensor([9, 99, 199], dtype=torch.uint8)[:, None, None]
    augmentation = off(preprocessing, crop="resized", crop_scale=0.08)
    crop = augmentation.cropped(colour.expand(3, height, width).contiguous(), row)
    assert crop.shape == (3, 32, 32)
    inside = (crop == colour).all(0)
    columns, rows = int(inside.any(0).sum()), int(inside.any(1).sum())
    assert int(inside.sum()) == columns * rows
    assert max(columns, rows) == 32
    assert ((crop == colour) | (crop == torch.tensor(preprocessing.fill)[:, None, None])).all()
    # the image's own shape, but for a ratio of 3/4 to 4/3 and whole pixels
    _, _, whole_width, whole_height = preprocessing.box(width, height)
    if min(width, height) > 60 and mode == "letterbox":
        assert 0.7 < (columns / rows) / (whole_width / whole_height) < 1.43


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 300), (300, 1), (3, 2)])
def test_a_resized_crop_of_a_strip(width, height):
    augmentation = off(Preprocessing(8, 8), crop="resized")
    colour = torch.tensor([9, 99, 199], dtype=torch.uint8)[:, None, None]
    for row in [*draws(0, 0, 20), torch.zeros(NUM_DRAWS), torch.full((NUM_DRAWS,), LARGEST)]:
        crop = augmentation.cropped(colour.expand(3, height, width).contiguous(), row)
        assert torch.equal(crop, colour.expand(3, 8, 8))
