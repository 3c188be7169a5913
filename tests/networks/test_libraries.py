"""Networks of torchvision and timm: their weights, and what their libraries set beside them."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from named_networks import create_network
from whatwhere import UserError, attend
from whatwhere.base.words import cause
from whatwhere.data.preprocess import preprocessing_for
from whatwhere.networks.factory import create, read_pretrained, settled
from whatwhere.networks.libraries import full_name, load
from whatwhere.networks.spec import NetworkSpec
from whatwhere.training.bundle import Bundle, load_bundle, save_bundle


class Layers(nn.ModuleDict):
    """Runs its layers, as DenseNet's blocks do: a container, which can have no attention of its own."""

    def forward(self, x):
        for layer in self.values():
            x = layer(x)
        return x * 1


class Chain(nn.Module):
    """Attention behind its features belongs to the network itself, and comes last in it."""

    def __init__(self, num_classes):
        super().__init__()
        self.features = Layers({"conv": nn.Conv2d(3, 16, 3, padding=1), "norm": nn.BatchNorm2d(16)})
        self.classifier = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


@pytest.mark.parametrize("attention", ["se", "cbam"])
def test_the_classifier_is_found_in_front_of_attention_that_came_later(attention):
    source, model = (attend(Chain(classes), attention, at="features", seed=0) for classes in (7, 4))
    last = list(dict(model.named_modules()))[-1]
    assert last.startswith("features_attention")
    fresh = model.classifier.weight.detach().clone()
    load("torchvision:vgg11_bn", model, source.state_dict(), "a file")
    assert torch.equal(model.classifier.weight, fresh)
    assert torch.equal(model.features["conv"].weight, source.features["conv"].weight)


@pytest.mark.parametrize("name", [["resnet18"], None, 3, {}])
def test_a_name_is_text(name, refused):
    with refused():
        full_name(name)


def test_attention_before_the_name_of_another_librarys_network():
    told = "give the network torchvision:mobilenet_v3_small with the attention cbam"
    with pytest.raises(UserError, match=told):
        full_name("cbam_mobilenet_v3_small")


@pytest.mark.parametrize(("error", "text"), [(ValueError("a\n  b"), "a b"), (KeyError(), "KeyError")])
def test_what_an_error_says_is_one_line(error, text):
    assert cause(error) == text
    assert len(cause(ValueError("a" * 1000))) == 200


@pytest.mark.parametrize(("own", "size"), [("googlenet", 64), ("inception_v3", 96)])
def test_published_weights_with_further_outputs_compute_what_they_do_at_torchvision(own, size, monkeypatch, tmp_path):
    theirs = torchvision.models.get_model(own, weights=None, aux_logits=True, transform_input=True, init_weights=False)
    state = theirs.state_dict()
    assert any(key.startswith(("aux1.", "AuxLogits.")) for key in state)
    monkeypatch.setattr("whatwhere.networks.libraries.torchvision_state_dict", {own: state}.__getitem__)
    images = torch.randn(2, 3, size, size)
    spec = NetworkSpec(name=own)
    published = read_pretrained(spec, True)
    model = create(spec, pretrained=published, seed=0)
    assert torch.equal(model.eval()(images), theirs.eval()(images))
    assert model.train()(images).shape == (2, 1000)
    # kept with what was set beside the weights
    saved = Bundle(model.eval(), settled(spec, published), tuple(map(str, range(1000))), preprocessing_for(size), {})
    save_bundle(tmp_path / "bundle", saved)
    assert torch.equal(load_bundle(tmp_path / "bundle").model(images), model(images))
    # a file says nothing of it
    save_file(state, tmp_path / "weights.safetensors")
    model = create_network(own, pretrained=str(tmp_path / "weights.safetensors"), num_classes=3, seed=0)
    theirs.transform_input = False
    theirs.fc = model.fc
    assert torch.equal(model.eval()(images), theirs(images))
