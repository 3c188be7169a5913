import copy
import pickle

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations

from whatwhere import attend, create_model, optimize_for_inference
from whatwhere.base.modules import tensors_in
from whatwhere.ops import FoldedNorm

NETWORKS = {
    "resnet18": lambda: create_model("resnet18", seed=0),
    "cbam_resnext11_8x8d": lambda: create_model("cbam_resnext11_8x8d", seed=0),
    "bam_resnet18": lambda: create_model("bam_resnet18", seed=0),
    "coord_resnet18": lambda: create_model("coord_resnet18", seed=0),
    "timm efficientnet": lambda: timm.create_model("efficientnet_lite0"),
    "timm regnety": lambda: timm.create_model("regnety_002"),
    "torchvision densenet": torchvision.models.densenet121,
    "attended mobilenet": lambda: attend(torchvision.models.mobilenet_v3_small(), "cbam", start="paper", seed=0),
    "attended timm resnet": lambda: attend(timm.create_model("resnet18"), "eca", start="paper", seed=0),
}


def trained(model):
    """The network with norms that are no identity, in evaluation mode."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
    return model.eval()


def norms_outside_gates(model):
    return [name for name, one in model.named_modules() if isinstance(one, nn.BatchNorm2d) and ".where." not in name]


@pytest.mark.parametrize("name", NETWORKS)
def test_predicts_the_same_in_float64(name):
    model = trained(NETWORKS[name]()).double()
    before = copy.deepcopy(model.state_dict())
    fast = optimize_for_inference(model)
    for size, num in ((64, 3), (97, 1)):
        x = torch.randn(num, 3, size, size, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x), rtol=1e-9, atol=1e-9 * float(model(x).abs().max()))
    assert type(fast) is type(model)
    assert not fast.training
    assert not any(p.requires_grad for p in fast.parameters())
    # in a DenseNet only every second norm is behind a convolution
    assert len(norms_outside_gates(fast)) == (62 if "densenet" in name else 0)
    # the network itself stays as it was
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_a_network_in_training_mode_stays_there():
    model = create_model("resnet18", seed=0)
    optimize_for_inference(model, torch.randn(1, 3, 32, 32))
    assert all(module.training for module in model.modules())


def test_a_folded_convolution_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0)).eval()
    with torch.no_grad():
        for value, tensor in zip((3, 5, 2, 7), (*model[0].parameters(), *model[1].parameters()), strict=True):
            tensor.fill_(value)
    model[1].running_mean.fill_(11)
    model[1].running_var.fill_(4)
    fast = optimize_for_inference(model, torch.ones(1, 1, 1, 1))
    # 2 * (3 x + 5 - 11) / sqrt(4) + 7
    assert (fast[0].weight.item(), fast[0].bias.item(), type(fast[1])) == (3, 1, FoldedNorm)


def test_attention_behind_a_folded_norm_stays():
    model = attend(trained(timm.create_model("resnet18")), "cbam", start="paper", seed=0)
    fast = optimize_for_inference(model)
    x = torch.randn(2, 3, 64, 64)
    expected = fast(x)
    for attention in [module for module in fast.modules() if type(module).__name__ == "CBAM"]:
        nn.init.zeros_(attention.what.fc2.weight)
    assert not torch.allclose(fast(x), expected)


class Result:
    """No tensor, and no container that torch knows."""

    def __init__(self, features):
        self.features = features


def kept_by(module, value):
    module.features = value
    return 0


# y is the output of the convolution
WAYS = {
    "added": lambda x, y, norm, conv: norm(y) + y,
    "returned": lambda x, y, norm, conv: (norm(y), y),
    "returned in a dict": lambda x, y, norm, conv: {"norm": norm(y), "features": [y]},
    "returned in an object": lambda x, y, norm, conv: (norm(y), Result(y)),
    "kept": lambda x, y, norm, conv: norm(y) + kept_by(conv, y),
    "convolution again": lambda x, y, norm, conv: norm(y) + conv(2 * x),
    "norm again": lambda x, y, norm, conv: norm(y) + norm(x),
    "something between": lambda x, y, norm, conv: norm(y * 2),
    "changed in place": lambda x, y, norm, conv: norm(y.mul_(2)),
    "its weight used": lambda x, y, norm, conv: torch.cat([1e6 * x, norm(y) + nn.functional.conv2d(x, conv.weight)], 1),
    "weight of the norm used": lambda x, y, norm, conv: norm(y) * norm.weight.view(1, 3, 1, 1),
    "running mean used": lambda x, y, norm, conv: norm(y) + norm.running_mean.view(1, 3, 1, 1),
}


class Shared(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way, self.conv, self.norm = way, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return WAYS[self.way](x, self.conv(x), self.norm, self.conv)


@pytest.mark.parametrize("way", WAYS)
def test_a_norm_is_not_folded_where_it_does_not_take_the_output_alone(way):
    model = trained(Shared(way))
    x = torch.randn(2, 3, 5, 5)
    fast = optimize_for_inference(model, x)
    assert isinstance(fast.norm, nn.BatchNorm2d)
    for found, expected in zip(tensors_in(fast(x)), tensors_in(model(x)), strict=True):
        torch.testing.assert_close(found, expected)


class InAList(nn.Module):
    """Also calls its layers by a list that no module knows of."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.layers = [self.conv, self.norm]

    def forward(self, x):
        x = x.to(self.norm.weight.dtype)
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_folded_norm_is_so_for_all_that_hold_it():
    model = trained(InAList())
    x = torch.randn(2, 3, 5, 5)
    fast = optimize_for_inference(model, x)
    assert isinstance(fast.norm, FoldedNorm)
    torch.testing.assert_close(fast(x), model(x))
    # nothing folds it once more
    with pytest.raises(AttributeError):
        nn.utils.fusion.fuse_conv_bn_eval(fast.conv, fast.norm)


def wrapped(layer):
    around = nn.Sequential(layer)
    around.register_forward_hook(lambda *_: None)
    return around


def test_what_somebody_looks_at_or_computes_is_not_folded():
    for change in (
        lambda model: model[0].register_forward_hook(lambda *_: None),
        lambda model: model[1].register_forward_pre_hook(lambda *_: None),
        lambda model: setattr(model, "0", wrapped(model[0])),
        lambda model: setattr(model[1].train(), "train", lambda mode=True: model[1]),
        lambda model: parametrizations.weight_norm(model[0]),
        lambda model: setattr(model, "1", nn.BatchNorm2d(3, track_running_stats=False)),
        lambda model: setattr(model, "1", nn.InstanceNorm2d(3, affine=True)),
    ):
        model = trained(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
        change(model)
        x = torch.randn(2, 3, 5, 5)
        fast = optimize_for_inference(model, x)
        assert type(fast[1]) is type(model[1])
        torch.testing.assert_close(fast(x), model.eval()(x))


def test_weights_that_two_convolutions_share_stay_shared_in_the_network_alone():
    model = trained(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)))
    model[2].weight = model[0].weight
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(optimize_for_inference(model, x)(x), model(x))


def test_layout_and_dtypes():
    model = trained(create_model("cbam_resnext11_8x8d", seed=0))
    x = torch.randn(4, 3, 64, 64)
    fast = optimize_for_inference(model, x)
    assert fast.layer2[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    half = optimize_for_inference(model, x, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    result = half(x)
    assert result.dtype is torch.float32
    expected = model(x).detach()
    assert not torch.equal(result, expected)
    # bfloat16 has 8 bits
    torch.testing.assert_close(result, expected, rtol=0, atol=2**-5 * expected.abs().max().item())
    auto = optimize_for_inference(model, x, dtype="auto")
    in_hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert next(auto.parameters()).dtype is (torch.bfloat16 if in_hardware else torch.float32)
    assert optimize_for_inference(model.double(), x.double(), dtype=torch.float32)(x.double()).dtype is torch.float64


def test_the_copy_can_be_copied_saved_and_exported():
    model = trained(create_model("cbam_resnet18", seed=0))
    x = torch.randn(2, 3, 64, 64)
    fast = optimize_for_inference(model, x, dtype=torch.bfloat16)
    expected = fast(x)
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(again(x), expected)
    exported = torch.export.export(optimize_for_inference(model, x), (x,)).module()
    torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


class Views(nn.Module):
    """Views a tensor as channels_last cannot be viewed."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.norm(self.conv(x))
        return x.view(len(x) * 2, 2, *x.shape[2:]).amax((2, 3)).view(len(x), 4)


def test_a_network_that_needs_the_usual_layout_keeps_it():
    model = trained(Views())
    # one image can be viewed in either layout
    fast = optimize_for_inference(model, torch.randn(1, 3, 5, 5))
    assert isinstance(fast.norm, FoldedNorm)
    x = torch.randn(3, 3, 5, 5)
    torch.testing.assert_close(fast(x), model(x))


class Volume(nn.Module):
    """Has a weight of five dimensions, which channels_last is not for."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.volume = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv3d(1, 1, 1)

    def forward(self, x):
        return self.volume(self.norm(self.conv(x))[:, None])


class Remembers(nn.Module):
    """Its result depends on those before; it draws random numbers, and changes what it is given."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.before = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), 0

    def forward(self, x):
        y = self.norm(self.conv(x.mul_(2))) + self.before + torch.rand(1)
        self.before = y.mean()
        return y


def test_networks_with_a_state_are_left_as_they_were():
    model, x = trained(Remembers()), torch.randn(2, 3, 5, 5)
    given, before = x.clone(), torch.get_rng_state()
    fast = optimize_for_inference(model, x)
    assert model.before == fast.before == 0
    assert torch.equal(x, given)
    assert torch.equal(torch.get_rng_state(), before)
    found = fast(x.clone())
    torch.set_rng_state(before)
    torch.testing.assert_close(found, model(x.clone()))


def test_networks_of_other_kinds():
    x = torch.randn(2, 3, 5, 5)
    for model in (Volume(), nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False))):
        fast = optimize_for_inference(trained(model) if isinstance(model, Volume) else model.eval(), x)
        torch.testing.assert_close(fast(x), model(x))
    half = trained(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))).bfloat16()
    fast = optimize_for_inference(half, x.bfloat16())
    assert (isinstance(fast[1], FoldedNorm), fast[0].weight.dtype) == (True, torch.bfloat16)
    torch.testing.assert_close(fast(x.bfloat16()), half(x.bfloat16()), rtol=0, atol=0.02)
    with torch.inference_mode():
        fast = optimize_for_inference(trained(create_model("resnet18", seed=0)), torch.randn(1, 3, 32, 32))
    fast(torch.randn(1, 3, 32, 32, requires_grad=True)).sum().backward()


class OfBytes(nn.Module):
    """Takes bytes: its first weights must be float32."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x.float() / 255))


class InFrequencies(nn.Module):
    """Has a complex weight."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.complex64))

    def forward(self, x):
        return torch.fft.irfft2(torch.fft.rfft2(self.conv(x).float()) * self.weight, s=(4, 4))


def test_auto_keeps_the_dtype_of_a_network_that_cannot_be_run_in_another(refused):
    model, pixels = trained(OfBytes()), torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    fast = optimize_for_inference(model, pixels, dtype="auto")
    torch.testing.assert_close(fast(pixels), model(pixels))
    with refused():
        optimize_for_inference(model, pixels, dtype=torch.bfloat16)
    model, x = InFrequencies().eval(), torch.randn(2, 3, 4, 4)
    half = optimize_for_inference(model, x, dtype=torch.bfloat16)
    torch.testing.assert_close(half(x), model(x), rtol=0, atol=0.05)


class Reads(nn.Module):
    """Takes the convolution's output to numpy, where its use is not seen."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + torch.from_numpy(y.numpy() * 1)


class NoCopy(nn.Conv2d):
    def __deepcopy__(self, memo):
        raise TypeError("this layer holds a camera")


class SameCopy(nn.Conv2d):
    def __deepcopy__(self, memo):
        return self


def patched(model):
    forward = model.forward
    model.forward = lambda x: forward(x) / 2
    return model


def test_what_cannot_be_optimized_is_refused(refused):
    x = torch.randn(1, 3, 8, 8)
    for model, arguments in (
        ("resnet18", {}),
        (nn.Linear(3, 3), {}),
        (nn.Conv2d(3, 3, 1), {"dtype": torch.int8}),
        (nn.Conv2d(3, 3, 1), {"dtype": "bfloat16"}),
        (nn.Conv2d(4, 3, 1), {"example": x}),
        (NoCopy(3, 3, 1), {}),
        (nn.Sequential(SameCopy(3, 3, 1)), {}),
        (patched(nn.Conv2d(3, 3, 1)), {}),
        (trained(Reads()), {"example": x}),
        (torch.nn.DataParallel(nn.Conv2d(3, 3, 1)), {}),
    ):
        with refused():
            optimize_for_inference(model, **arguments)
