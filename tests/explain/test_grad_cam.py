import copy

import pytest
import torch
import torchvision
from torch import nn

from whatwhere import UserError, attend, create_model
from whatwhere.explain import grad_cam
from whatwhere.explain.grad_cam import last_map

pytest.importorskip("captum")


def network(**options):
    return create_model("cbam_resnext11_8x8d", num_classes=5, seed=0, **options)


def photos(*size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def by_hand(model, images, name, scored):
    """Grad-CAM by its formula, in float64."""
    model, images, kept = copy.deepcopy(model).double().eval(), images.double(), []

    def keep(module, args, output):
        kept.append(output)
        return output.clone()

    model.get_submodule(name).register_forward_hook(keep)
    score = scored(model(images)).sum()
    (features,) = kept
    (gradient,) = torch.autograd.grad(score, features)
    return (gradient.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).relu().detach()


@pytest.mark.parametrize("name", ["layer3", "layer2.0", "layer2.0.bn3", "conv1"])
def test_it_is_its_formula(name):
    model, images = network(), photos(3, 3, 32, 48)
    found = grad_cam(model.double(), images.double(), [4, 0, 2], layer=name)
    assert (found.dtype, found.device.type) == (torch.float32, "cpu")
    expected = by_hand(model, images, name, lambda logits: logits[[0, 1, 2], [4, 0, 2]])
    assert expected.max() > 0
    torch.testing.assert_close(found, expected.float())
    torch.testing.assert_close(grad_cam(model.float(), images, [4, 0, 2], layer=name), expected.float())


def test_the_predicted_class_and_the_last_map_are_taken():
    model, images = network(), photos(2, 3, 32, 32)
    predicted = model.eval()(images).argmax(1)
    assert last_map(model, images) == "layer3"
    expected = grad_cam(model, images, predicted, layer="layer3")
    assert torch.equal(grad_cam(model, images), expected)
    assert torch.equal(grad_cam(model, images, predicted.tolist()), expected)
    # what is beside an image in the batch does not matter
    torch.testing.assert_close(torch.cat([grad_cam(model, image) for image in images.split(1)]), expected)


def test_an_activation_in_place_behind_the_layer():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = photos(2, 3, 8, 8)
    plain = copy.deepcopy(model)
    plain[1] = nn.ReLU()
    expected = grad_cam(plain, images, 1, layer="0")
    assert torch.equal(grad_cam(model, images, 1, layer="0"), expected)
    torch.testing.assert_close(expected, by_hand(plain, images, "0", lambda logits: logits[:, 1]).float())


def test_a_score_of_the_user():
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    ).eval()
    images = photos(1, 3, 64, 64)

    def score(output):
        return output["out"][:, 1].mean((1, 2))

    found = grad_cam(model, images, score, layer="backbone.16")
    torch.testing.assert_close(found, by_hand(model, images, "backbone.16", score).float())


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (torchvision.models.resnet18, "layer4"),
        (torchvision.models.vgg11, "features"),
        (torchvision.models.densenet121, "features"),
        (torchvision.models.convnext_tiny, "features"),
        # its features end with their channels until they are permuted
        (torchvision.models.swin_t, "permute"),
        (lambda: attend(torchvision.models.mobilenet_v3_small(), "cbam"), "features"),
    ],
)
def test_the_last_map_of_networks_of_others(build, expected):
    with torch.no_grad():
        assert last_map(build(), photos(1, 3, 64, 96)) == expected


def test_the_network_is_left_as_it_was():
    model, images = network(attention_kwargs={"start": "identity"}), photos(2, 3, 32, 32)
    model.layer1.eval()
    model.conv1.requires_grad_(False)
    model(images).sum().backward()
    before = copy.deepcopy(model.state_dict())
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    values = {name: gradient.clone() for name, gradient in gradients.items() if gradient is not None}
    grad_cam(model, images)
    assert model.training
    assert not model.layer1.training
    assert [name for name, one in model.named_parameters() if not one.requires_grad] == ["conv1.weight"]
    assert all(parameter.grad is gradients[name] for name, parameter in model.named_parameters())
    assert all(torch.equal(gradients[name], value) for name, value in values.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not images.requires_grad


def test_where_no_gradient_is_recorded():
    model, images = network(), photos(2, 3, 32, 32)
    expected = grad_cam(model, images)
    with torch.no_grad():
        assert torch.equal(grad_cam(model, images), expected)
    with torch.inference_mode():
        assert torch.equal(grad_cam(model, images.clone()), expected)
    assert torch.equal(grad_cam(model.requires_grad_(False), images), expected)
    assert torch.equal(grad_cam(torch.compile(model, backend="eager"), images), expected)


def test_the_layers_before_store_nothing():
    model, images, saved = torchvision.models.resnet18(), photos(2, 3, 64, 64), []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        grad_cam(model, images, 3, layer="layer4")
    # the matrix of the classifier, and small tensors: nothing of the size of an early map
    assert max(saved) == 512 * 1000
    assert sum(saved) < 512 * 1000 + 2 * 64 * 32 * 32


def test_what_it_cannot_do_is_said(refused):
    model, images = network(), photos(2, 3, 32, 32)
    for options in (
        {"layer": "layr3"},
        {"layer": "fc"},
        {"layer": "layer2.0.relu"},
        {"target": 7},
        {"target": lambda logits: logits.sum()},
    ):
        with refused():
            grad_cam(model, images, **options)
    with refused():
        grad_cam(model.layer3, photos(2, 128, 8, 8), layer="0.conv1")
    with refused():
        grad_cam(torchvision.models.vit_b_16(), photos(1, 3, 224, 224))
    with refused():
        grad_cam(nn.DataParallel(model), images)
    model.unused = nn.Conv2d(3, 3, 1)
    with refused():
        grad_cam(model, images, layer="unused")
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_without_captum(refused, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    with refused():
        grad_cam(network(), photos(2, 3, 32, 32))


def test_a_map_that_a_shortcut_goes_around_is_passed_over():
    # at 32 px the last stage has one place only, but the first block's branch has four before its stride
    model = torchvision.models.resnet50(num_classes=3).eval()
    assert last_map(model, photos(1, 3, 32, 32)) == "layer3"
    assert grad_cam(model, photos(2, 3, 32, 32)).shape == (2, 1, 2, 2)
    assert last_map(model, photos(2, 3, 64, 64)) == "layer4"


def test_a_layer_that_is_called_again_on_one_place_is_not_taken():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act, self.fc = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Linear(8, 2)

        def forward(self, x):
            return self.fc(self.act(self.conv(self.act(x)).mean((2, 3), keepdim=True)).flatten(1))

    assert last_map(Twice(), photos(2, 3, 9, 9)) == "conv"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64}),
        ("swinv2_tiny_window8_256", {"img_size": 64, "depths": (2, 2, 2, 2), "embed_dim": 24}),
    ],
)
def test_the_weights_of_attention_are_no_map(name, options):
    timm = pytest.importorskip("timm")
    timm.layers.set_fused_attn(False)  # as some networks never fuse it
    try:
        model = timm.create_model(name, num_classes=3, **options)
    finally:
        timm.layers.set_fused_attn(True)
    with pytest.raises(UserError, match="does not end with feature maps; name a layer"):
        last_map(model, photos(1, 3, 64, 64))


def test_attention_weights_that_look_like_a_map_beside_features():
    class Attending(nn.Module):
        """One block on 6 x 6 places; its weights are a square for each head."""

        def __init__(self):
            super().__init__()
            self.conv, self.drop, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Dropout(0.1), nn.Linear(8, 2)

        def forward(self, x):
            features = self.conv(x)
            tokens = features.flatten(2).transpose(1, 2)
            weights = self.drop((tokens @ tokens.transpose(1, 2)).softmax(2)[:, None].expand(-1, 2, -1, -1))
            return self.fc((weights.mean(1) @ tokens + tokens).mean(1))

    assert last_map(Attending(), photos(1, 3, 6, 6)) == "conv"


def test_in_inference_mode():
    model, images = network(), photos(2, 3, 32, 32)
    expected = grad_cam(model, images)
    with torch.inference_mode():
        for target in (None, model.eval()(images).argmax(1)):
            torch.testing.assert_close(grad_cam(model, images.clone(), target), expected)


def test_a_name_is_no_class():
    with pytest.raises(UserError, match="target must be numbers of classes, or a function, got 'cat'"):
        grad_cam(network(), photos(1, 3, 32, 32), "cat")
