import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import v2

from whatwhere.data.images import open_image
from whatwhere.data.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    NewerError,
    Preprocessing,
    decoded,
    preprocessing_for,
    reduced,
    resized,
    to_tensor,
)


def picture(seed, size):
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def save(path, image, **options):
    image.save(path, **options)
    return path


def oriented(path, image, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(path, image, exif=exif, **options)


def array(pixels):
    return pixels.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("size", "resize", "image_size", "resized_to", "box"),
    [
        # width x height; the corner of the crop is half the surplus, rounded down
        ((64, 64), 32, 32, (32, 32), (0, 0, 32, 32)),
        ((100, 50), 34, 32, (68, 34), (18, 1, 50, 33)),
        ((50, 100), 34, 32, (34, 68), (1, 18, 33, 50)),
        ((37, 53), 24, 20, (24, 34), (2, 7, 22, 27)),
        ((300, 7), 16, 16, (686, 16), (335, 0, 351, 16)),
        # enlarged
        ((10, 8), 32, 32, (40, 32), (4, 0, 36, 32)),
        ((1, 1), 8, 8, (8, 8), (0, 0, 8, 8)),
        # as it is
        ((40, 32), 32, 32, (40, 32), (4, 0, 36, 32)),
        ((41, 32), 32, 32, (41, 32), (4, 0, 36, 32)),
        ((34, 34), 34, 32, (34, 34), (1, 1, 33, 33)),
    ],
)
def test_pixels_are_pillows_to_the_last_bit(tmp_path, size, resize, image_size, resized_to, box):
    original = picture(1, size)
    expected = original.resize(resized_to, Image.Resampling.BICUBIC).crop(box)
    with open_image(save(tmp_path / "a.png", original)) as image:
        pixels = Preprocessing(image_size, resize).pixels(image)
    assert pixels.dtype == torch.uint8
    assert np.array_equal(array(pixels), np.asarray(expected))


@given(width=st.integers(1, 200), height=st.integers(1, 200), size=st.integers(1, 40), surplus=st.integers(0, 5))
def test_any_shape_becomes_a_square(width, height, size, surplus):
    pixels = Preprocessing(size, size + surplus).pixels(Image.new("RGB", (width, height), (10, 200, 30)))
    # one colour stays: no pixel comes from outside the image
    assert torch.equal(pixels, torch.tensor([10, 200, 30], dtype=torch.uint8)[:, None, None].expand(3, size, size))


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, None), (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270), (8, Image.Transpose.ROTATE_90)],
)
def test_the_exif_orientation_comes_before_the_crop(tmp_path, orientation, turn):
    original = picture(2, (60, 40))
    turned = original if turn is None else original.transpose(turn)
    preprocessing = Preprocessing(16, 20)
    with open_image(oriented(tmp_path / "a.png", original, orientation)) as image:
        pixels = preprocessing.pixels(image)
    assert torch.equal(pixels, preprocessing.pixels(turned))
    expected = (30, 20) if turned.width > turned.height else (20, 30)
    left, top = (expected[0] - 16) // 2, (expected[1] - 16) // 2
    by_hand = turned.resize(expected, Image.Resampling.BICUBIC).crop((left, top, left + 16, top + 16))
    assert np.array_equal(array(pixels), np.asarray(by_hand))


@given(st.integers(0, 2**32 - 1))
def test_normalisation_is_torchvisions(seed):
    pixels = torch.randint(
        0, 256, (2, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed), device="cpu"
    )
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    reference = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    before = pixels.clone()
    result = Preprocessing(4, 4, mean, std).normalize(pixels)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, reference(pixels), rtol=1e-6, atol=1e-6)
    assert torch.equal(pixels, before)


def test_normalisation_by_hand():
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = torch.tensor([-0.485 / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]).view(1, 3, 1, 1)
    torch.testing.assert_close(Preprocessing(1, 1).normalize(pixels), expected)


@pytest.mark.parametrize(("size", "resize"), [(16, 16), (32, 32), (64, 64), (96, 101), (128, 135), (224, 236)])
def test_small_images_are_seen_whole_and_of_larger_ones_95_percent(size, resize):
    assert preprocessing_for(size) == Preprocessing(size, resize, IMAGENET_MEAN, IMAGENET_STD)


@pytest.fixture(params=["china.jpg", "flower.jpg"])
def photo(request, tmp_path):
    # with different compressions, like a camera's and a web site's
    path = tmp_path / request.param
    image = Image.fromarray(load_sample_image(request.param))
    assert image.size == (640, 427)
    return save(path, image, quality=95 if request.param == "china.jpg" else 75)


# 427 lines: an eighth is 53.4, a quarter 106.8, a half 213.5
@pytest.mark.parametrize(
    ("short_side", "size"),
    [(24, (80, 54)), (26, (80, 54)), (27, (160, 107)), (53, (160, 107)), (54, (320, 214)), (107, (640, 427))],
)
def test_a_large_jpeg_is_decoded_at_a_fraction_that_leaves_twice_the_side(photo, short_side, size):
    with open_image(photo) as image:
        assert decoded(image, short_side).size == size


@pytest.mark.parametrize("size", [24, 32, 53, 96])
def test_the_reduced_decoding_hardly_differs_from_the_full_one(photo, size):
    preprocessing = Preprocessing(size, size)
    with open_image(photo) as image:
        reduced = preprocessing.pixels(image)
    with open_image(photo) as image:
        full = to_tensor(image.convert("RGB").resize((round(640 * size / 427), size), Image.Resampling.BICUBIC))
    left = (full.shape[2] - size) // 2
    difference = (reduced.int() - full[:, :, left : left + size].int()).abs().float()
    # of 255; measured: 0.8 to 3.4, where the contrast (standard deviation) is 65 to 82
    assert difference.mean() < 4
    # and it is the reduced one
    assert difference.max() > 0


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_is_reduced_too_and_print_colours_are_not(tmp_path, mode):
    path = save(tmp_path / "a.jpg", picture(3, (640, 480)).convert(mode))
    with open_image(path) as image:
        assert decoded(image, 32).size == ((160, 120) if mode == "L" else (640, 480))
    with open_image(path) as image:
        assert decoded(image, 32).mode == "RGB"


def test_the_orientation_survives_the_reduced_decoding(tmp_path):
    original = picture(4, (640, 320))
    with open_image(oriented(tmp_path / "a.jpg", original, 6, quality=95)) as image:
        reduced = decoded(image, 20)
    assert reduced.size == (40, 80)
    expected = original.transpose(Image.Transpose.ROTATE_270).resize((40, 80), Image.Resampling.BOX)
    assert np.abs(np.asarray(reduced).astype(int) - np.asarray(expected)).mean() < 3


def test_png_is_decoded_in_full(tmp_path):
    with open_image(save(tmp_path / "a.png", picture(5, (640, 480)))) as image:
        assert decoded(image, 16).size == (640, 480)


def test_resizing_keeps_the_aspect_and_leaves_what_fits():
    image = picture(6, (90, 60))
    assert resized(image, 60) is image
    assert resized(image, 20).size == (30, 20)
    assert resized(picture(6, (60, 90)), 20).size == (20, 30)


@pytest.mark.parametrize(("size", "expected"), [((90, 60), (45, 30)), ((47, 60), (47, 60)), ((300, 75), (100, 25))])
def test_reduced_images_are_means_of_blocks_and_no_smaller_than_asked(size, expected):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    small = reduced(Image.fromarray(pixels), 24)
    assert small.size == expected
    factor = size[0] // expected[0]
    blocks = pixels.reshape(expected[1], factor, expected[0], factor, 3).mean((1, 3))
    assert np.abs(np.asarray(small) - blocks).max() < 1  # Pillow rounds in fixed point


# --- letterbox and squash


def seen(mode, size, image, **options):
    return array(preprocessing_for(size, resize_mode=mode, **options).pixels(image))


def test_a_letterbox_by_hand():
    pixels = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(2, 4, 3)
    expected = np.empty((4, 4, 3), np.uint8)
    expected[:] = 124, 116, 104  # 255 times 0.485, 0.456, 0.406
    expected[1:3] = pixels
    assert np.array_equal(seen("letterbox", 4, Image.fromarray(pixels)), expected)
    turned = seen("letterbox", 4, Image.fromarray(pixels.swapaxes(0, 1)))
    assert np.array_equal(turned, expected.swapaxes(0, 1))
    other = seen("letterbox", 4, Image.fromarray(pixels), mean=(0.0, 0.5, 1.0))
    assert other[0].tolist() == [[0, 128, 255]] * 4


@pytest.mark.parametrize(("width", "height", "box"), [(4, 3, (0, 0, 4, 3)), (3, 4, (0, 0, 3, 4)), (4, 1, (0, 1, 4, 2))])
def test_an_odd_pixel_is_filled_at_the_right_or_at_the_bottom(width, height, box):
    whole = seen("letterbox", 4, Image.new("RGB", (width, height), (1, 2, 3)))
    left, top, right, bottom = box
    is_image = np.zeros((4, 4), bool)
    is_image[top:bottom, left:right] = True
    assert np.array_equal((whole == (1, 2, 3)).all(2), is_image)


def test_a_squash_by_hand():
    # two rows become four; bicubic with a = -0.5: the second row weighs -0.070 of 0.797 in the first of them, and 0.227
    # of 1.094 in the second
    rows = np.repeat(np.array([[100], [200]], np.uint8), 4, axis=1)
    squashed = seen("squash", 4, Image.fromarray(rows))
    assert squashed[:, :, 0].tolist() == [[91] * 4, [121] * 4, [179] * 4, [209] * 4]


@pytest.mark.parametrize("size", [(90, 40), (41, 97), (33, 32), (20, 9), (64, 64), (7, 30)])
@pytest.mark.parametrize("side", [24, 32, 96])
def test_letterbox_and_squash_are_timms_border_and_squash(size, side):
    timm = pytest.importorskip("timm.data.transforms")
    original = picture(7, size)
    fill = [round(255 * value) for value in IMAGENET_MEAN]
    border = v2.Compose(
        [timm.ResizeKeepRatio((side, side), longest=1.0, interpolation="bicubic"), timm.CenterCropOrPad(side, fill)]
    )
    assert np.array_equal(seen("letterbox", side, original), np.asarray(border(original)))
    squashed = v2.functional.resize(original, [side, side], v2.InterpolationMode.BICUBIC)
    assert np.array_equal(seen("squash", side, original), np.asarray(squashed))


@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    size=st.integers(8, 100),
    mode=st.sampled_from(["crop", "letterbox", "squash"]),
)
def test_any_image_is_a_square_of_its_own_colour(width, height, size, mode):
    preprocessing = preprocessing_for(size, resize_mode=mode)
    pixels = preprocessing.pixels(Image.new("RGB", (width, height), (10, 200, 30)))
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, size, size))
    expected = torch.tensor(preprocessing.fill, dtype=torch.uint8)[:, None, None].repeat(1, size, size)
    left, top, new_width, new_height = preprocessing.box(width, height)
    assert max(new_width, new_height) == size
    expected[:, top : top + new_height, left : left + new_width] = torch.tensor([10, 200, 30])[:, None, None]
    assert torch.equal(pixels, expected)


@pytest.mark.parametrize("mode", ["crop", "letterbox", "squash"])
@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (3, 60_000), (60_000, 3)])
def test_a_very_long_image_fills_no_memory(mode, size, monkeypatch):
    """Pillow resizes the width first: between the two passes there are as many pixels as new width times height."""
    resize, between = Image.Image.resize, []

    def noting(image, new_size, *args, **options):
        between.append(new_size[0] * image.height)
        return resize(image, new_size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", noting)
    image = Image.new("RGB", size, (10, 20, 30))
    pixels = preprocessing_for(224, resize_mode=mode).pixels(image)
    assert pixels.shape == (3, 224, 224)
    assert max(between) <= size[0] * size[1] + 4 * 236**2
    assert (pixels == torch.tensor([10, 20, 30])[:, None, None]).all(0).any()


@pytest.mark.parametrize("mode", ["letterbox", "squash"])
def test_the_exif_turn_comes_before_letterbox_and_squash(tmp_path, mode):
    original = picture(8, (60, 40))
    with open_image(oriented(tmp_path / "a.png", original, 6)) as image:
        pixels = preprocessing_for(16, resize_mode=mode).pixels(image)
    assert np.array_equal(array(pixels), seen(mode, 16, original.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize(
    ("mode", "size", "side", "expected"),
    [
        # twice the side must be left: of the shorter side, the longer one, or both
        ("crop", (1200, 300), 32, (300, 75)),
        ("letterbox", (1200, 300), 32, (150, 38)),
        ("letterbox", (300, 1200), 76, (75, 300)),
        ("letterbox", (300, 1200), 151, (150, 600)),
        ("letterbox", (300, 1200), 301, (300, 1200)),
        ("squash", (1200, 300), 32, (300, 75)),
        ("squash", (300, 1200), 76, (150, 600)),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_keeps_twice_the_pixels_in_each_mode(tmp_path, mode, size, side, expected, orientation):
    if mode != "letterbox" and side == 76:
        expected = size  # 300 < 2 x 2 x 76
    with open_image(oriented(tmp_path / "a.jpg", picture(9, size), orientation)) as image:
        found = decoded(image, side, mode).size
    assert found == (expected if orientation == 1 else expected[::-1])


@pytest.mark.parametrize("mode", ["letterbox", "squash"])
def test_a_jpeg_decoded_at_a_fraction_hardly_differs(photo, mode):
    with open_image(photo) as image:
        reduced_pixels = seen(mode, 48, image)
    with open_image(photo) as image:
        full = seen(mode, 48, image.convert("RGB"))
    difference = np.abs(reduced_pixels.astype(int) - full).astype(float)
    assert 0 < difference.mean() < 4  # as for the crop


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [
        ("letterbox", (300, 75), (25, 7)),
        ("letterbox", (20, 9), (20, 9)),
        ("squash", (300, 75), (25, 25)),
        ("squash", (300, 20), (25, 20)),
        ("squash", (1, 60_000), (1, 24)),
        ("letterbox", (1, 60_000), (1, 24)),
    ],
)
def test_images_for_crops_are_reduced_to_what_each_mode_needs(mode, size, expected):
    assert reduced(Image.new("RGB", size), 24, mode).size == expected


def test_a_document_comes_back_and_an_impossible_one_does_not():
    for mode in ("crop", "letterbox", "squash"):
        preprocessing = preprocessing_for(96, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5), 4095, mode)
        assert Preprocessing.of(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing
    sound = preprocessing_for(96, resize_mode="letterbox").to_dict()
    with pytest.raises(NewerError, match="resize_mode is 'tile'"):
        Preprocessing.of({**sound, "resize_mode": "tile"})
    for wrong in ({"resize": 101}, {"resize_mode": 3}, {"resize_mode": None}):
        with pytest.raises(ValueError, match=r"letterbox|Expected"):
            Preprocessing.of({**sound, **wrong})
