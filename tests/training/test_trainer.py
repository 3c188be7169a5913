import pytest
import torch
from torch import nn

from whatwhere import create_model
from whatwhere.data.batches import ImageSet
from whatwhere.data.digits import draw_balanced, load_digits
from whatwhere.training.config import Recipe
from whatwhere.training.evaluate import accuracy
from whatwhere.training.trainer import make_optimizer, train, warmup_cosine


def toy(num=40):
    labels = torch.arange(num) % 2
    images = torch.randn(num, 1, 4, 4) * 0.1 + labels[:, None, None, None]
    return ImageSet(images, labels)


def linear():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


def test_one_step_is_sgd_with_nesterov_momentum_by_hand():
    images, model = toy(4), linear()
    weight, bias = (p.detach().clone() for p in model.parameters())
    reference = linear()
    loss = nn.functional.cross_entropy(reference(images.images), images.labels)
    gradients = torch.autograd.grad(loss, list(reference.parameters()))
    losses = train(model, images, Recipe(epochs=1, batch_size=4, lr=0.1, weight_decay=0.5, warmup_epochs=0), seed=0)
    assert losses == [pytest.approx(loss.item())]
    decayed = gradients[0] + 0.5 * weight
    # the first nesterov step: gradient + momentum * buffer, the buffer being the gradient
    torch.testing.assert_close(model[1].weight, weight - 0.1 * 1.9 * decayed)
    torch.testing.assert_close(model[1].bias, bias - 0.1 * 1.9 * gradients[1])


def test_learning_rate_rises_then_falls_to_zero():
    factor = warmup_cosine(4, 12)
    assert [factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(4) == 1.0
    assert factor(8) == pytest.approx(0.5)
    assert factor(12) == pytest.approx(0)


def test_each_image_is_seen_once_an_epoch_in_an_order_of_seed_and_epoch():
    images = ImageSet(torch.arange(10.0).view(10, 1, 1, 1), torch.zeros(10, dtype=torch.int64))

    def orders(seed):
        seen = []
        model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
        model.register_forward_pre_hook(lambda module, args: seen.extend(args[0].flatten().int().tolist()))
        train(model, images, Recipe(epochs=2, batch_size=3), seed=seed)
        return [seen[:10], seen[10:]]

    first = orders(0)
    assert all(sorted(order) == list(range(10)) for order in first)
    assert first[0] != first[1]
    torch.randn(17)
    assert orders(0) == first
    assert orders(1) != first


def test_a_run_repeats_bit_for_bit_dropout_included():
    pool, _ = load_digits()
    images = draw_balanced(pool, 3, seed=0)
    states = []
    for _ in range(2):
        torch.randn(5)
        model = create_model("cbam_resnext11_8x8d", num_classes=10, in_channels=1, drop_rate=0.3, seed=0)
        train(model, images, Recipe(epochs=2, batch_size=10), seed=0)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_learns():
    images, model = toy(), linear()
    losses = train(model, images, Recipe(epochs=10, batch_size=8), seed=0)
    assert losses[-1] < losses[0]
    assert accuracy(model, images, 2) == 1.0


def test_small_cbam_network_learns_real_digits():
    pool, test = load_digits()
    model = create_model("cbam_resnext11_8x8d", num_classes=10, in_channels=1, seed=0)
    train(model, draw_balanced(pool, 20, seed=0), Recipe(epochs=10), seed=0)
    assert accuracy(model, test, 10) > 0.5


def test_accuracy_is_taken_in_evaluation_mode_over_every_image():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(16, 2)).train()
    images = toy(7)
    expected = (model.eval()(images.images).argmax(1) == images.labels).float().mean().item()
    assert accuracy(model.train(), images, 2, batch_size=3) == pytest.approx(expected)
    assert model.training


def test_no_decay_on_norms_biases_and_scalars():
    model = create_model("cbam_resnext11_8x8d", attention_kwargs={"start": "identity"})
    decayed, free = make_optimizer(model, Recipe(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(names[id(p)].endswith("weight") for p in decayed["params"])
    assert {"mix", "bias"} <= {names[id(p)].rpartition(".")[2] for p in free["params"]}
    assert len(decayed["params"]) + len(free["params"]) == len(names)


def test_a_loss_that_is_not_finite_stops_with_the_step(refused):
    images = toy(8)
    images.images[5] = float("nan")
    with refused():
        train(linear(), images, Recipe(epochs=1, batch_size=2), seed=0)


def test_no_images(refused):
    with refused():
        train(linear(), ImageSet(torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64)), Recipe(), seed=0)


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"epochs": 0}, {"warmup_epochs": -1}, {"lr": float("nan")}, {"momentum": 1.0}],
)
def test_an_impossible_recipe_is_one_sentence(options, refused):
    with refused():
        Recipe(**options)
