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
