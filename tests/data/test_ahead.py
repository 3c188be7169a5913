"""What reads ahead, with a disk that is slow or does not answer."""

import threading
import time

import pytest

from image_files import picture
from whatwhere.base.processes import READER
from whatwhere.data import ahead
from whatwhere.data.ahead import read_ahead
from whatwhere.data.doctor.probe import probe
from whatwhere.data.images import ImageError
from whatwhere.data.sources.source import Sample, Source
from whatwhere.data.store import decode_all, num_bytes

BATCHES = [range(3), range(3, 24), range(24, 24), range(24, 40)]


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith(READER)]


@pytest.fixture
def gate():
    """An event for which reads wait; no thread of a test outlives it."""
    event = threading.Event()
    yield event
    event.set()
    for thread in readers():
        thread.join(60)
    assert not readers()


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_batches_come_in_order_whole_and_once(num_threads):
    read = []

    def twice(item):
        read.append(item)
        return 2 * item

    assert list(read_ahead(twice, BATCHES, num_threads)) == [[2 * item for item in batch] for batch in BATCHES]
    assert sorted(read) == list(range(40))


@pytest.mark.parametrize("num_threads", [0, 2])
def test_an_error_comes_in_the_place_of_its_batch(num_threads):
    def read(item):
        if item > 20:
            raise RuntimeError(f"number {item}")
        return item

    found = read_ahead(read, BATCHES, num_threads)
    assert next(found) == [0, 1, 2]
    with pytest.raises(RuntimeError, match="number 21"):
        next(found)


def test_a_slow_piece_ends_nothing_while_images_come(monkeypatch):
    monkeypatch.setattr(ahead, "_PATIENCE", 2.0)

    def slow(item):
        time.sleep(0.5)
        return item

    assert list(read_ahead(slow, [range(8)], 1)) == [list(range(8))]  # 4 s


def test_a_disk_that_does_not_answer_is_one_sentence_wherever_images_are_read(monkeypatch, gate):
    monkeypatch.setattr(ahead, "_PATIENCE", 0.2)

    class Hung:
        def __len__(self):
            return 20

        def __getitem__(self, index):
            gate.wait(60)

    class HungSource(Source):
        def open(self, sample):
            gate.wait(60)
            raise ImageError("too late")

    samples = tuple(Sample(f"{number}.png", "a", None) for number in range(20))
    reading = (
        lambda: list(read_ahead(Hung().__getitem__, [range(20)], 2)),
        lambda: decode_all(Hung(), num_threads=2),
        lambda: num_bytes(Hung()),
        lambda: probe(HungSource("data", None, samples), None),
    )
    for read in reading:
        with pytest.raises(ImageError) as caught:
            read()
        assert caught.value.kind == "silent"
        expected = "no images were read for 0 s: the disk or network that holds them does not answer"
        assert str(caught.value) == expected


def test_a_check_that_is_left_reads_no_further(gate):
    class Gated(Source):
        def open(self, sample):
            begun.append(sample.path)
            assert sample.label == "free" or gate.wait(60)
            return picture(1)

        def content(self, sample):
            return b""

    def interrupt(done, of):
        raise KeyboardInterrupt

    begun = []
    samples = tuple(Sample(f"{number}.png", "free" if number < 64 else "late", None) for number in range(500))
    with pytest.raises(KeyboardInterrupt):
        probe(Gated("data", None, samples), None, interrupt)
    num_threads = len(readers())
    gate.set()
    for thread in readers():
        thread.join(60)
    assert len(begun) <= 64 + num_threads
