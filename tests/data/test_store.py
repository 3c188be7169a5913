import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from whatwhere.data.store import Store, decode_all, free_memory, num_bytes, room

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


def test_images_of_one_size_move_as_one_block_and_leave_nothing_behind():
    images = noise([(4, 5)] * 6)
    kept = Store(images)
    assert len(kept) == 6
    assert torch.equal(kept.moved_to(torch.device("cpu")), torch.stack(images))
    assert kept.pixels.numel() == 0


class Counting:
    """Images by number that count their reads."""

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


def test_a_store_is_judged_by_some_of_its_images_over_the_whole_range():
    # class by class, small images first
    images = Counting(noise([(10, 10)] * 200 + [(10, 90)] * 200))
    exact = 300 * 200 + 2700 * 200
    assert abs(num_bytes(images) - exact) < 0.1 * exact
    assert sum(images.asked) <= 20
    assert num_bytes(Counting(noise([(10, 10)] * 40))) == 12_000
    assert num_bytes([]) == 0


@pytest.mark.parametrize(
    ("free", "num_processes", "expected"),
    [(48_000, 1, 12_000), (48_000, 4, 3_000), (2**50, 1, 2**32), (2**34, 1, 2**32), (2**34, 2, 2**31)],
)
def test_a_quarter_of_the_free_memory_shared_and_4_gib_at_most(free, num_processes, expected):
    assert room(free, num_processes) == expected


def test_free_memory_is_known_or_guessed(monkeypatch):
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50
    monkeypatch.delattr("os.sysconf")
    assert free_memory(torch.device("cpu")) == 8 * 2**30
