import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from whatwhere.base.processes import READER
from whatwhere.data.augment import Augmentation, draws
from whatwhere.data.batches import EvaluationBatches, Order, Reader, TensorBatches, TrainBatches
from whatwhere.data.images import ImageError
from whatwhere.data.preprocess import Preprocessing
from whatwhere.data.sources.source import Sample, Source
from whatwhere.data.store import Store, decode_all

SIZE = 16
CPU = torch.device("cpu")
PREPROCESSING = Preprocessing(SIZE, SIZE)
NUM = 23
LABELS = torch.arange(NUM) % 4

numbers = st.integers(1, 60)


# --- the order


@given(num=numbers, batch_size=numbers, seed=st.integers(), epoch=st.integers(0, 5))
def test_each_epoch_is_all_samples_once_in_batches_of_nearly_one_size(num, batch_size, seed, epoch):
    order = Order(num, batch_size, seed)
    assert order.steps_per_epoch == -(-num // batch_size)
    first = epoch * order.steps_per_epoch
    batches = [order.batch(step) for step in range(first, first + order.steps_per_epoch)]
    assert sorted(torch.cat(batches).tolist()) == list(range(num))
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


@given(num=numbers, batch_size=numbers, steps=st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_a_batch_is_a_function_of_the_step(num, batch_size, steps):
    order = Order(num, batch_size, 3)
    for step in steps:
        assert torch.equal(order.batch(step), Order(num, batch_size, 3).batch(step))


def test_orders_differ_between_epochs_and_seeds():
    orders = [tuple(Order(30, 30, seed).batch(epoch).tolist()) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len(set(orders)) == 6
    assert tuple(range(30)) not in orders


@given(num=numbers, batch_size=numbers, world_size=st.integers(1, 9), step=st.integers(0, 30))
def test_the_processes_shares_are_the_batch(num, batch_size, world_size, step):
    order = Order(num, batch_size, 0)
    shares = [order.share(step, rank, world_size) for rank in range(world_size)]
    assert torch.equal(torch.cat(shares), order.batch(step))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# --- training batches


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Pictures of several sizes; one is larger than the crops need."""
    root = tmp_path_factory.mktemp("data")
    samples = []
    for number in range(NUM):
        noise = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        size = [(30, 20), (20, 30), (12, 12), (90, 80)][number % 4]
        name = f"{number:02d}.{'jpg' if number % 4 == 3 else 'png'}"
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(root / name)
        samples.append(Sample(name, str(number % 4), None))
    return Source("data", root, tuple(samples))


def augmentation(crop, **options):
    usual = {"crop_scale": 0.35, "hflip": 0.5, "rand_augment": 9, "random_erasing": 0.3}
    return Augmentation(PREPROCESSING, crop, **{**usual, **options})


def reader(source, crop):
    return Reader(source, source.samples, PREPROCESSING, whole=crop == "resized")


def batches(source, crop, images=None, **options):
    images = reader(source, crop) if images is None else images
    return TrainBatches(images, LABELS, Order(NUM, 6, 5), augmentation(crop), CPU, **options)


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_what_reads_the_images_changes_no_bit(source, crop):
    expected = list(batches(source, crop).steps(0, 8))  # two epochs of four
    assert [len(batch.labels) for batch in expected] == [6, 6, 6, 5] * 2
    for batch in expected:
        assert batch.images.shape == (len(batch.labels), 3, SIZE, SIZE)
        assert batch.images.dtype == torch.float32
        assert batch.images.isfinite().all()
        assert torch.equal(batch.labels, LABELS[batch.indices])
    assert_equal(list(batches(source, crop, num_workers=2).steps(0, 8)), expected)
    kept = decode_all(reader(source, crop))
    assert_equal(list(batches(source, crop, kept).steps(0, 8)), expected)
    assert_equal(list(batches(source, crop, kept, num_workers=2).steps(0, 8)), expected)
    if crop == "pad":
        assert_equal(list(batches(source, crop, kept, on_device=True).steps(0, 8)), expected)
    # in the middle of an epoch, at its end, over its end
    for start, stop in ((1, 3), (3, 6), (4, 4), (7, 8)):
        assert_equal(list(batches(source, crop).steps(start, stop)), expected[start:stop])
    assert_equal(list(batches(source, crop, num_workers=2).steps(3, 6)), expected[3:6])


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_an_images_augmentation_is_that_of_its_epoch_and_number(source, crop):
    read, augment = reader(source, crop), augmentation(crop)
    for step, batch in enumerate(batches(source, crop).steps(0, 8)):
        rows = draws(5, step // 4, NUM)
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
            pixels = read[index]
            if crop == "resized":
                pixels = augment.cropped(pixels, rows[index])
            assert torch.equal(augment(pixels[None], rows[index : index + 1])[0], image)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_processes_batches_are_the_whole(source, num_workers):
    expected = list(batches(source, "pad").steps(2, 6))
    parts = [
        list(batches(source, "pad", rank=rank, world_size=3, num_workers=num_workers).steps(2, 6)) for rank in range(3)
    ]
    joined = [tuple(map(torch.cat, zip(*step, strict=True))) for step in zip(*parts, strict=True)]
    assert_equal(joined, expected)


def test_the_reader_keeps_the_whole_image_for_crops_and_no_more_than_is_needed(source):
    whole = reader(source, "resized")
    assert len(whole) == NUM
    # the shorter side is 1.5 times the network's size, 24, or up to twice that; no image is enlarged
    sizes = [tuple(whole[index].shape) for index in range(4)]
    assert sizes[:3] == [(3, 20, 30), (3, 30, 20), (3, 12, 12)]
    assert 24 <= min(sizes[3][1:]) < 48
    assert torch.equal(whole[0].permute(1, 2, 0), torch.from_numpy(np.array(Image.open(source.root / "00.png"))))


def test_the_reader_for_evaluation_is_the_preprocessing(source):
    for index in range(4):
        with Image.open(source.root / source.samples[index].path) as image:
            assert torch.equal(reader(source, "pad")[index], PREPROCESSING.pixels(image))


def test_images_in_memory_are_given_as_they_are():
    images, order = torch.randn(NUM, 1, 2, 2), Order(NUM, 6, 5)
    found = list(TensorBatches(images, LABELS, order, CPU).steps(3, 6))
    assert [batch.indices.tolist() for batch in found] == [order.batch(step).tolist() for step in range(3, 6)]
    for batch in found:
        assert torch.equal(batch.images, images[batch.indices])
        assert torch.equal(batch.labels, LABELS[batch.indices])


# --- evaluation batches


def evaluation(images, batch_size=4, **options):
    num = len(images.shapes) if isinstance(images, Store) else len(images)
    return EvaluationBatches(images, LABELS[:num], PREPROCESSING, batch_size, CPU, **options)


@given(num=st.integers(1, 30), batch_size=st.integers(1, 12), world_size=st.integers(1, 33))
def test_every_image_is_evaluated_once_however_many_processes_there_are(num, batch_size, world_size):
    # each image holds its number
    images = Store([torch.full((3, 1, 1), number, dtype=torch.uint8) for number in range(num)])
    readable = Preprocessing(1, 1, (0, 0, 0), (1 / 255,) * 3)
    seen = []
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size}
        for batch in EvaluationBatches(images, torch.arange(num) * 7, readable, batch_size, CPU, **options):
            assert 1 <= len(batch.indices) <= batch_size
            assert batch.images[:, 0, 0, 0].round().int().tolist() == batch.indices.tolist()
            assert batch.labels.tolist() == [7 * index for index in batch.indices.tolist()]
            seen += batch.indices.tolist()
    assert sorted(seen) == list(range(num))
    if world_size == 1:
        assert seen == list(range(num))


def test_what_reads_the_images_changes_no_bit_of_an_evaluation(source):
    read = reader(source, "pad")
    expected = list(evaluation(read))
    assert torch.equal(torch.cat([batch.indices for batch in expected]), torch.arange(NUM))
    for batch in expected:
        pixels = torch.stack([read[index] for index in batch.indices.tolist()])
        assert torch.equal(batch.images, PREPROCESSING.normalize(pixels))
    again = evaluation(read)
    for found in (evaluation(read, num_workers=2), evaluation(decode_all(read)), again, again):
        assert_equal(list(found), expected)


def test_no_images():
    assert list(evaluation(Store([]))) == []


# --- what goes wrong


@pytest.fixture
def spoilt(source, tmp_path):
    """The source, with one truncated image."""
    for sample in source.samples:
        (tmp_path / sample.path).write_bytes((source.root / sample.path).read_bytes())
    path = tmp_path / "07.jpg"
    path.write_bytes(path.read_bytes()[:400])
    return Source("spoilt", tmp_path, source.samples), path


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("purpose", ["training", "evaluation"])
def test_an_unreadable_image_is_one_sentence_with_its_path(spoilt, num_workers, purpose):
    source, path = spoilt
    if purpose == "training":
        found = batches(source, "pad", num_workers=num_workers).steps(0, 4)
    else:
        found = evaluation(reader(source, "pad"), num_workers=num_workers)
    with pytest.raises(ImageError) as caught:
        list(found)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path} is cut short (")
    assert "\n" not in sentence
    assert "Traceback" not in sentence


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith(READER)]


class _Gated:
    """Images of which the first few can be read at once, and the others when the gate is open."""

    def __init__(self, num_free):
        self.num_free, self.gate, self.read = num_free, threading.Event(), []

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        assert index < self.num_free or self.gate.wait(60)
        self.read.append(index)
        return torch.zeros((3, SIZE, SIZE), dtype=torch.uint8)


def gated(num_free, batch_size, num_workers):
    images = _Gated(num_free)
    labels = torch.zeros(1000).long()
    return images, iter(EvaluationBatches(images, labels, PREPROCESSING, batch_size, CPU, num_workers=num_workers))


@pytest.mark.parametrize("batch_size", [1, 40])
def test_leaving_in_the_middle_ends_the_reading_at_once(batch_size):
    images, found = gated(batch_size, batch_size, num_workers=2)
    next(found)
    left = readers()
    assert len(left) == 2
    found.close()
    images.gate.set()
    for thread in left:
        thread.join(60)
    assert not readers()
    assert len(images.read) <= batch_size + 2  # the image that each thread had begun


def test_threads_read_ahead_of_small_batches_and_not_without_bound():
    images, found = gated(1000, 1, num_workers=4)
    next(found)
    for _ in range(6000):
        if len(images.read) == 8:
            break
        time.sleep(0.01)  # until the threads have read what they were asked for
    # two pieces for each thread, and no more before the next batch is taken
    assert sorted(images.read) == list(range(8))
    found.close()


def test_the_threads_that_read_use_one_of_torchs_each_and_leave_the_others_to_the_training(source):
    class Asking(Reader):
        def __getitem__(self, index):
            # what OpenMP will use, and not only what was asked for
            torch.ones(1 << 20).add_(1)
            asked.append(torch.get_num_threads())
            return super().__getitem__(index)

    asked, before = [], torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        read = Asking(source, source.samples, PREPROCESSING, whole=True)
        list(batches(source, "resized", read, num_workers=2).steps(0, 4))
        assert asked == [1] * NUM
        thread = threading.Thread(target=lambda: asked.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert asked[-1] == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_process_that_ends_while_it_holds_on_to_batches_does_not_wait_for_their_threads():
    code = (
        "import torch\n"
        "from whatwhere.data.batches import EvaluationBatches\n"
        "from whatwhere.data.preprocess import Preprocessing\n"
        "class Zeros:\n"
        "    def __getitem__(self, index): return torch.zeros(3, 4, 4, dtype=torch.uint8)\n"
        "    def __len__(self): return 100\n"
        "labels = torch.zeros(100, dtype=torch.int64)\n"
        "kept = iter(EvaluationBatches(Zeros(), labels, Preprocessing(4, 4), 4, torch.device('cpu'), num_workers=2))\n"
        "next(kept)\n"
        "raise SystemExit(2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")
