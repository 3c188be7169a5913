"""Segmentation networks of segmentation-models-pytorch on our networks, by its encoders for any network of timm."""

import pytest
import torch

import whatwhere.timm
from client import wanted
from whatwhere import ATTENTION

smp = wanted("segmentation_models_pytorch")

# by decoder: the strides of the features that its encoder gives by default
STRIDES = {
    "Unet": [1, 2, 4, 8, 16, 32],
    "FPN": [1, 2, 4, 8, 16, 32],
    "PAN": [1, 2, 4, 8, 16, 16],
    "DeepLabV3Plus": [1, 2, 4, 8, 16, 16],
    "DeepLabV3": [1, 2, 4, 8, 8, 8],
}
SIZE = 64


def images(size=SIZE):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def strides(model, x):
    return [x.shape[-1] // feature.shape[-1] for feature in model.encoder(x)]


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("decoder", ["Unet", "DeepLabV3Plus"])
def test_every_attention_trains_in_an_encoder(decoder, attention):
    torch.manual_seed(0)
    model = getattr(smp, decoder)(f"tu-{attention}_resnet18", encoder_weights=None, classes=3)
    x = images()
    assert strides(model.eval(), x) == STRIDES[decoder]
    assert model.encoder.out_channels == [3, 64, 64, 128, 256, 512]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    logits = model.train()(x)
    assert logits.shape == (2, 3, SIZE, SIZE)
    target = torch.zeros(2, SIZE, SIZE, dtype=torch.long)
    torch.nn.functional.cross_entropy(logits, target).backward()
    optimizer.step()
    inside = [name for name in before if ".attention." in name]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    moved = [name for name in inside if not torch.equal(before[name], model.get_parameter(name))]
    assert moved or not inside


@pytest.mark.parametrize("backbone", ["cbam_resnet50", "bam_resnext50_32x4d"])
@pytest.mark.parametrize("decoder", STRIDES)
def test_features_have_the_stride_that_the_decoder_asks_for(decoder, backbone):
    model = getattr(smp, decoder)(f"tu-{backbone}", encoder_weights=None, classes=3).eval()
    x = images(128)  # the least that PAN's pyramid takes
    with torch.no_grad():
        assert strides(model, x) == STRIDES[decoder]
        assert model(x).shape == (2, 3, 128, 128)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_its_dilated_encoder_computes_what_its_own_of_the_same_weights_does(output_stride):
    ours = smp.encoders.get_encoder("tu-resnet50", weights=None, output_stride=output_stride).eval()
    # the name with an attention that starts as the identity, on the same weights
    attentive = smp.encoders.get_encoder(
        "tu-cbam_resnet50", weights=None, output_stride=output_stride, attention_kwargs={"start": "identity"}
    ).eval()
    missing, unexpected = attentive.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert all(".attention." in name for name in missing)
    with torch.no_grad():
        for feature, expected in zip(attentive(images()), ours(images()), strict=True):
            torch.testing.assert_close(feature, expected)


def test_arguments_that_a_network_does_not_take_end_in_a_sentence():
    with pytest.raises(whatwhere.UserError, match="cbam_resnet18 takes no argument 'act_layer', only "):
        smp.Unet("tu-cbam_resnet18", encoder_weights=None, act_layer="silu")
