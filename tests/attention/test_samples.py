"""Each image by itself: the first axis is that of the images, inside the small functions too."""

import pytest
import torch

from whatwhere import ATTENTION
from whatwhere.attention.cbam import SharedMLP


@pytest.mark.parametrize("pools", [("avg",), ("avg", "max"), ("avg", "max", "lse")])
def test_the_shared_mlp_has_a_row_for_each_image(pools):
    module, rows = SharedMLP(6, 3, pools), []
    for layer in (module.fc1, module.fc2):
        layer.register_forward_hook(lambda _, inputs, output: rows.extend((inputs[0].shape, output.shape)))
    module(*(torch.randn(4, 6) for _ in pools))
    assert sorted(rows) == sorted([(4, 6), (4, 3), (4, 3), (4, 6)] * len(pools))


@pytest.mark.parametrize("name", sorted(ATTENTION))
def test_gradients_of_each_sample_by_vmap_are_those_of_each_image_alone(name):
    module = ATTENTION[name](8).double().eval()
    values = dict(module.named_parameters())
    images = torch.randn(3, 8, 5, 7, dtype=torch.float64)

    def loss(values, image):
        return torch.func.functional_call(module, values, (image[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(values, images)
    for index, image in enumerate(images):
        module.zero_grad()
        expected = torch.autograd.grad(loss(values, image), values.values()) if values else ()
        for key, gradient in zip(values, expected, strict=True):
            torch.testing.assert_close(found[key][index], gradient)
