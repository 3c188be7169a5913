import copy
import gc

import pytest
import torch
from torch import nn

from whatwhere import CBAM, attend, create_model
from whatwhere.explain import Batch, explain, faithfulness, grad_cam, maps
from whatwhere.explain.explanation import AT_RANDOM
from whatwhere.explain.randomization import GRAD_CAM

pytest.importorskip("captum")
CLASSES = ("one", "two", "three", "four", "five")


def network(name="cbam_resnext11_8x8d", **options):
    return create_model(name, num_classes=5, seed=0, **options)


def photos(num, size=32, seed=0):
    return torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_it_holds_what_the_parts_give():
    model, images = network(), photos(10)
    found = explain(model, images.split((4, 6)), classes=CLASSES, network="a network", sampled=4)
    assert (found.network, found.num_images, found.names[0], found.names[-1]) == (
        "a network",
        10,
        "image 1",
        "image 10",
    )
    assert found.labels == [""] * 10
    output, layers = maps(model, images)
    predicted = output.argmax(1)
    assert [row[0][0] for row in found.predictions] == [CLASSES[n] for n in predicted.tolist()]
    assert [row[0][1] for row in found.predictions] == pytest.approx(output.softmax(1).amax(1).tolist(), rel=1e-5)
    assert [layer.name for layer in found.layers] == [layer.layer for layer in layers]
    for layer, gates in zip(found.layers, layers, strict=True):
        torch.testing.assert_close(layer.planes["spatial"], gates.gates["spatial"][:, 0])
        torch.testing.assert_close(layer.channels["channel"], gates.gates["channel"][:, :, 0, 0])
        of_class = gates.gates["channel"][predicted == predicted[0], :, 0, 0].double().mean(0)
        torch.testing.assert_close(layer.class_means["channel"][CLASSES[predicted[0]]], of_class, rtol=1e-5, atol=1e-6)
    assert found.cam_layer == "layer3"
    assert found.cam_classes == [row[0][0] for row in found.predictions]
    torch.testing.assert_close(found.cam, grad_cam(model, images)[:, 0], rtol=1e-4, atol=1e-6)
    # the curves are those of images spread over all
    chosen = [0, 3, 6, 9]
    curves = faithfulness(model, images[chosen], found.cam[chosen][:, None])
    torch.testing.assert_close(found.curves[GRAD_CAM].deletion, curves.deletion)
    assert list(found.curves) == [AT_RANDOM, GRAD_CAM, "layer3.0.attention spatial"]
    assert set(found.randomized.likeness) == {GRAD_CAM, *(f"{layer.name} spatial" for layer in found.layers)}


def test_faults_and_remarks_stand_at_their_layers():
    model = network(attention_kwargs={"start": "identity"})
    with torch.no_grad():
        model.layer2[0].attention.mix.fill_(0.5)
    found = explain(model, [photos(9)], sampled=2)
    doubts = {layer.name: layer.doubts for layer in found.layers}
    assert doubts["layer1.0.attention"] == doubts["layer3.0.attention"] == {"spatial": "off"}
    assert "spatial" not in doubts["layer2.0.attention"] or doubts["layer2.0.attention"]["spatial"] != "off"
    remarks = found.randomized.remarks()
    for layer in found.layers:
        name = f"{layer.name} spatial"
        assert layer.remarks == ({"spatial": remarks[name]} if name in remarks else {})


def test_images_that_are_shown_and_their_names():
    images, pictures = photos(6), torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 4, 4)
    batches = [
        Batch(images[:4], pictures[:4], list("abcd"), ["one", "two", "", "one"], shown=[1, 3]),
        Batch(images[4:], pictures[4:], list("ef"), ["", "two"], shown=[1]),
    ]
    found = explain(network(), batches, sampled=0)
    assert (found.num_images, found.names, found.labels) == (6, ["b", "d", "f"], ["two", "one", "two"])
    assert found.pictures[:, 0, 0, 0].tolist() == [1, 3, 5]
    torch.testing.assert_close(found.cam, grad_cam(network(), images[[1, 3, 5]])[:, 0], rtol=1e-4, atol=1e-6)
    assert (found.curves, found.randomized) == ({}, None)
    assert found.notes == ["gate health needs at least 8 images, got 6"]
    few = explain(network(), [images[:4], images[4:]], most_shown=5, sampled=0)
    assert (few.num_images, few.names[-1], len(few.layers[0].planes["spatial"])) == (6, "image 5", 5)


def test_one_class_for_all():
    images = photos(3)
    found = explain(network(), [images], classes=CLASSES, target=2, sampled=2)
    assert found.cam_classes == ["three"] * 3
    torch.testing.assert_close(found.cam, grad_cam(network(), images, 2)[:, 0])
    probabilities = network().eval()(images).softmax(1)[:, 2]
    torch.testing.assert_close(found.curves[GRAD_CAM].insertion[:, -1], probabilities[[0, 2]].detach())


def test_without_attention_there_is_grad_cam():
    found = explain(network("resnext11_8x8d"), [photos(9)], sampled=2)
    assert (found.layers, found.findings, found.notes) == ([], [], [])
    assert list(found.curves) == [AT_RANDOM, GRAD_CAM]


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.attention = nn.Conv2d(3, 8, 3), CBAM(8)

    def forward(self, x):
        return {"boxes": self.attention(self.body(x))}


def test_a_detector_has_gates_alone():
    found = explain(Detector(), [photos(8)], sampled=3)
    assert (found.predictions, found.cam, found.curves) == ([], None, {})
    assert set(found.randomized.likeness) == {"attention spatial"}
    assert list(found.layers[0].channels) == ["channel"]
    assert found.layers[0].class_means == {}


def test_without_captum(monkeypatch, refused):
    monkeypatch.setattr("whatwhere.explain.explanation.has_captum", lambda: False)
    monkeypatch.setattr("whatwhere.explain.randomization.has_captum", lambda: False)
    found = explain(network(), [photos(8)], sampled=2)
    assert found.notes == ["Grad-CAM needs captum: pip install captum"]
    assert found.cam is None
    assert GRAD_CAM not in found.curves
    assert len(found.layers) == 3
    with refused():
        explain(network("resnext11_8x8d"), [photos(8)])


def test_networks_with_nothing_to_explain(refused):
    with refused():
        explain(nn.Conv2d(3, 4, 3), [photos(2)])
    with refused():
        explain(network(), [])
    with refused():
        explain(network(), [photos(0)])


def test_the_network_is_left_as_it_was():
    model = attend(network("resnext11_8x8d"), "cbam")
    model.layer1.eval()
    before = copy.deepcopy(model.state_dict())

    def hooks():
        return [
            (list(module._forward_hooks.items()), list(module._forward_pre_hooks.items())) for module in model.modules()
        ]

    own = hooks()
    explain(model, [photos(4)], sampled=2)
    assert model.training
    assert not model.layer1.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert hooks() == own
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_memory_does_not_grow_with_the_images():
    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    model, counts = network(), []
    nn.init.zeros_(model.fc.weight)  # one class for all images

    def batches():
        for seed in range(12):
            yield photos(4, 16, seed)
            counts.append(tensors())

    explain(model, batches(), most_shown=4, sampled=0)
    assert counts[-1] <= counts[3]


def test_pictures_of_inputs_of_any_range_and_channels():
    model = create_model("cbam_resnext11_8x8d", num_classes=5, in_channels=1, seed=0)
    images = torch.randn(2, 1, 16, 16) * 100
    found = explain(model, [images], sampled=0)
    assert (found.pictures.shape, found.pictures.dtype) == ((2, 3, 16, 16), torch.uint8)
    assert found.pictures.amin() == 0
    assert found.pictures[1].amax() == 255
    constant = explain(model, [torch.ones(1, 1, 16, 16)], sampled=0)
    assert constant.pictures.amax() == 0


def test_a_notebook_shows_a_picture():
    found = explain(network(), [photos(3)], sampled=0)
    assert found._repr_png_().startswith(b"\x89PNG")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_is_that_of_the_cpu():
    images = photos(9)
    here, there = explain(network(), [images], sampled=2), explain(network().cuda(), [images.cuda()], sampled=2)
    torch.testing.assert_close(there.cam, here.cam, rtol=1e-3, atol=1e-3)
    for one, other in zip(here.layers, there.layers, strict=True):
        torch.testing.assert_close(other.planes["spatial"], one.planes["spatial"], rtol=1e-3, atol=1e-3)
    assert set(there.randomized.likeness) == set(here.randomized.likeness)
