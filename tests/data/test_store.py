import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from whatwhere.data import store
from whatwhere.data.store import Store, decode_all, fits_in_memory

sizes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12)


def noise(shapes):
    return [torch.randint(0, 256, (3, *shape), dtype=torch.uint8) for shape in shapes]


@given(sizes)
def test_images_of_any_sizes_come_back(shapes):
    images = noise(shapes)
    kept = Store(images)
    for index, image in enumerate(images):
        assert kept[index].dtype == torch.uint8
        assert torch.equal(kept[index], image)
    with pytest.raises(IndexError):
        kept[len(images)]


def test_images_of_one_size_are_one_block_that_is_no_copy():
    images = noise([(4, 5)] * 6)
    kept = Store(images)
    assert torch.equal(kept.block(), torch.stack(images))
    assert kept.block().data_ptr() == kept.pixels.data_ptr()
    assert kept[2].data_ptr() == kept.block()[2].data_ptr()


class _Writing(Dataset):
    def __init__(self, kept):
        self.kept = kept

    def __len__(self):
        return 2

    def __getitem__(self, index):
        self.kept[index].fill_(100 + index)
        return index


def test_worker_processes_see_the_same_memory():
    kept = Store(noise([(4, 4), (2, 3), (1, 1)]))
    last = kept[2].clone()
    assert [int(index) for index in DataLoader(_Writing(kept), batch_size=None, num_workers=1)] == [0, 1]
    assert (kept[0] == 100).all()
    assert (kept[1] == 101).all()
    assert torch.equal(kept[2], last)


class Counting:
    """Images by number that say how often they were asked for."""

    def __init__(self, images):
        self.images, self.asked = images, [0] * len(images)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.asked[index] += 1
        return self.images[index]


@given(sizes)
def test_decoding_all_asks_for_each_once_and_keeps_the_order(shapes):
    images = Counting(noise(shapes))
    kept = decode_all(images)
    assert images.asked == [1] * len(shapes)
    assert all(torch.equal(kept[index], image) for index, image in enumerate(images.images))


def test_an_image_that_cannot_be_decoded_ends_it():
    class Bad(Counting):
        def __getitem__(self, index):
            if index == 3:
                raise RuntimeError("number 3")
            return super().__getitem__(index)

    with pytest.raises(RuntimeError, match="number 3"):
        decode_all(Bad(noise([(2, 2)] * 5)))


def test_a_quarter_of_the_free_memory_and_4_gib_at_most(monkeypatch):
    images = Counting(noise([(10, 10)] * 40))  # 12,000 bytes
    for free, num_processes, fits in (
        (48_000, 1, True),
        (47_999, 1, False),
        (96_000, 2, True),
        (95_999, 2, False),
        (2**50, 2**32 // 12_000, True),
        (2**50, 2**32 // 12_000 + 1, False),
    ):
        monkeypatch.setattr(store, "_free_memory", lambda free=free: free)
        assert fits_in_memory(images, num_processes) == fits
    # judged by some
    assert sum(asked > 0 for asked in images.asked) <= 20


def test_sizes_are_judged_from_the_whole_range(monkeypatch):
    # class by class, small images first: 60,000 bytes and as much again
    images = Counting(noise([(10, 10)] * 200 + [(10, 90)] * 200))
    monkeypatch.setattr(store, "_free_memory", lambda: 4 * 590_000)
    assert not fits_in_memory(images)
    monkeypatch.setattr(store, "_free_memory", lambda: 4 * 610_000)
    assert fits_in_memory(images)


def test_no_images_fit():
    assert fits_in_memory([])


def test_free_memory_is_known_or_guessed(monkeypatch):
    assert 2**20 < store._free_memory() < 2**50
    monkeypatch.delattr("os.sysconf")
    assert store._free_memory() == 8 * 2**30
