import torch
from sklearn.datasets import load_digits as sklearn_digits

from whatwhere.data.batches import ImageSet
from whatwhere.data.digits import draw_balanced, load_digits


def test_all_digits_are_there_once():
    pool, test = load_digits()
    assert (len(pool), len(test)) == (897, 900)
    assert torch.equal(torch.cat([pool.labels, test.labels]), torch.tensor(sklearn_digits().target))
    assert pool.images.shape == (897, 1, 16, 16)
    assert 0 <= test.images.min() < test.images.max() <= 1


def test_at_their_own_size_the_pixels_are_untouched():
    pool, _ = load_digits(image_size=8)
    torch.testing.assert_close(pool.images[5, 0] * 16, torch.tensor(sklearn_digits().images[5], dtype=torch.float32))


def test_drawn_images_are_balanced_and_a_function_of_the_seed():
    pool, _ = load_digits()
    first, again, other = (draw_balanced(pool, 7, seed) for seed in (0, 0, 1))
    assert first.labels.bincount().tolist() == [7] * 10
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert len(first.images.unique(dim=0)) == 70


def test_too_few_images_are_said(refused):
    few = ImageSet(torch.zeros(3, 1, 2, 2), torch.tensor([0, 0, 1]))
    with refused():
        draw_balanced(few, 2, seed=0)
