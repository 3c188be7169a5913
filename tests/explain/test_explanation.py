import copy
import gc
import math

import pytest
import torch
from torch import nn

from whatwhere import ATTENTION, CBAM, UserError, attend, create_model
from whatwhere.explain import Batch, check, explain, grad_cam, maps
from whatwhere.explain.explanation import explanation_figure
from whatwhere.explain.faithfulness import beside_random
from whatwhere.explain.randomization import GRAD_CAM

pytest.importorskip("captum")
CLASSES = ("one", "two", "three", "four", "five")


def network(name="cbam_resnext11_8x8d", **options):
    return create_model(name, num_classes=5, seed=0, **options)


def photos(num, size=32, seed=0):
    return torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_it_holds_what_the_parts_give():
    model, images = network(), photos(10)
    images = torch.cat([images, images.roll(1, 3)])[:16]  # with enough images of a class
    found = explain(model, images.split((4, 12)), classes=CLASSES, network="a network", sampled=4)
    assert (found.network, found.num_images, found.names[0], found.names[-1]) == (
        "a network",
        16,
        "image 1",
        "image 16",
    )
    assert found.labels == [""] * 16
    output, layers = maps(model, images)
    predicted = output.argmax(1)
    assert [row[0][0] for row in found.predictions] == [CLASSES[n] for n in predicted.tolist()]
    assert [row[0][1] for row in found.predictions] == pytest.approx(output.softmax(1).amax(1).tolist(), rel=1e-5)
    assert [layer.name for layer in found.layers] == [layer.layer for layer in layers]
    for layer, gates in zip(found.layers, layers, strict=True):
        torch.testing.assert_close(layer.planes["spatial"], gates.gates["spatial"][:, 0])
        torch.testing.assert_close(layer.channels["channel"], gates.gates["channel"][:, :, 0, 0])
        most = predicted.mode().values
        of_class = gates.gates["channel"][predicted == most, :, 0, 0].double().mean(0)
        torch.testing.assert_close(layer.class_means["channel"][CLASSES[most]], of_class, rtol=1e-5, atol=1e-6)
        assert all(found.num_predicted[name] >= 5 for name in layer.class_means["channel"])
    assert found.cam_layer == "layer3"
    assert found.cam_classes == [row[0][0] for row in found.predictions]
    torch.testing.assert_close(found.cam, grad_cam(model, images)[:, 0], rtol=1e-4, atol=1e-6)
    # the curves are those of images spread over all
    chosen = [0, 5, 10, 15]
    curves = beside_random(model, images[chosen], found.cam[chosen][:, None], None)
    torch.testing.assert_close(found.faithfulness[GRAD_CAM].curves.deletion, curves.curves.deletion)
    torch.testing.assert_close(found.faithfulness[GRAD_CAM].at_random.insertion, curves.at_random.insertion)
    assert list(found.faithfulness) == [GRAD_CAM, "layer3.0.attention spatial"]
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
    assert (found.faithfulness, found.randomized) == ({}, None)
    assert found.notes == ["gate health needs at least 8 images, got 6"]
    few = explain(network(), [images[:4], images[4:]], most_shown=5, sampled=0)
    assert (few.num_images, few.names[-1], len(few.layers[0].planes["spatial"])) == (6, "image 5", 5)


def test_one_class_for_all():
    images = photos(3)
    found = explain(network(), [images], classes=CLASSES, target=2, sampled=2)
    assert found.cam_classes == ["three"] * 3
    torch.testing.assert_close(found.cam, grad_cam(network(), images, 2)[:, 0])
    probabilities = network().eval()(images).softmax(1)[:, 2]
    torch.testing.assert_close(found.faithfulness[GRAD_CAM].curves.insertion[:, -1], probabilities[[0, 2]].detach())
    assert found.randomized == check(network(), images[[0, 2]], 2)


def test_without_attention_there_is_grad_cam():
    found = explain(network("resnext11_8x8d"), [photos(9)], sampled=2)
    assert (found.layers, found.findings, found.notes) == ([], [], [])
    assert list(found.faithfulness) == [GRAD_CAM]


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.attention = nn.Conv2d(3, 8, 3), CBAM(8)

    def forward(self, x):
        return {"boxes": self.attention(self.body(x))}


def test_a_detector_has_gates_alone():
    found = explain(Detector(), [photos(8)], sampled=3)
    assert (found.predictions, found.cam, found.faithfulness) == ([], None, {})
    assert found.notes == ["no Grad-CAM and no curves: the network returns no scores of two or more classes"]
    assert set(found.randomized.likeness) == {"attention spatial"}
    assert list(found.layers[0].channels) == ["channel"]
    assert found.layers[0].class_means == {}


def test_without_captum(monkeypatch, refused):
    monkeypatch.setattr("whatwhere.explain.collected.has_captum", lambda: False)
    monkeypatch.setattr("whatwhere.explain.randomization.has_captum", lambda: False)
    found = explain(network(), [photos(8)], sampled=2)
    assert found.notes == ["Grad-CAM needs captum: pip install captum"]
    assert found.cam is None
    assert GRAD_CAM not in found.faithfulness
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
    for options in ({"target": 3}, {"layer": "body"}):
        with refused():
            explain(Detector(), [photos(8)], **options)
    with refused():
        explain(network(), [photos(2), photos(2, 48)])
    with refused():
        explain(network(), [photos(2)], classes=CLASSES[:3])
    with refused():
        explain(network(), [Batch(photos(2), torch.rand(2, 3, 4, 4))])


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


@pytest.mark.parametrize("name", sorted(ATTENTION))
def test_every_attention(name):
    model = create_model(f"{name}_resnext11_8x8d", num_classes=5, seed=0)
    found = explain(model, [photos(8)], sampled=2)
    assert found.cam is not None
    assert len(found.layers) > 0
    assert all(layer.planes or layer.channels for layer in found.layers) == (name != "gc")
    assert found._repr_png_().startswith(b"\x89PNG")


def test_values_that_are_not_finite():
    model = network()
    nn.init.constant_(model.layer2[0].attention.where.conv.weight, float("nan"))
    for num in (3, 9):
        found = explain(model, [photos(num)], sampled=2)
        assert found.cam is None
        assert "no Grad-CAM: it has values that are NaN or infinite" in found.notes
        assert found.layers[1].doubts["spatial"] == "not finite"
        assert found.layers[0].doubts.get("spatial") != "not finite"
        assert GRAD_CAM not in found.faithfulness


class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.fc = CBAM(3), nn.Linear(3, 5)

    def forward(self, x):
        whole = len(x)
        x = torch.cat(x.chunk(4, 2))
        return self.fc(self.attention(x).mean((2, 3)).view(4, whole, 3).mean(0))


def test_gates_of_parts_of_images_are_not_shown():
    found = explain(Patches(), [photos(9)], sampled=2)
    assert found.layers == []
    assert "the gates of attention are not of whole images, and are not shown" in found.notes


class OnSome(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.other, self.fc = CBAM(3), CBAM(3), nn.Linear(3, 5)

    def forward(self, x):
        x = self.attention(x)
        return self.fc((self.other(x) if x[0, 0, 0, 0] > 0 else x).mean((2, 3)))


def test_gates_that_some_batches_lack_are_not_shown():
    images = photos(8)
    images[0, 0, 0, 0], images[4, 0, 0, 0] = 1, -1
    found = explain(OnSome(), images.split(4), sampled=0)
    assert [layer.name for layer in found.layers] == ["attention"]
    assert "other is not called with all images, and is not shown" in found.notes


def test_probabilities_are_not_made_probabilities_again():
    model = network()
    images = photos(3)
    expected = explain(model, [images], sampled=2)
    found = explain(nn.Sequential(model, nn.Softmax(1)), [images], sampled=2)
    for row, other in zip(found.predictions, expected.predictions, strict=True):
        assert row == [(name, pytest.approx(value)) for name, value in other]
    assert any(note.startswith("the network returns probabilities") for note in found.notes)


def test_where_grad_cam_cannot_be_the_gates_are_shown():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.attention, self.fc = nn.Conv2d(3, 8, 8, stride=8), CBAM(8), nn.Linear(8, 5)
            self.layers = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)))

        def forward(self, x):
            return self.fc(self.layers(self.attention(self.conv(x)).flatten(2).mT).mean(1))

    found = explain(Tokens(), [photos(8)], sampled=2)
    assert found.cam is None
    assert [layer.name for layer in found.layers] == ["attention"]
    assert any(note.startswith("no Grad-CAM: Tokens does not end with feature maps") for note in found.notes)
    assert set(found.randomized.likeness) == {"attention spatial"}


def test_one_image():
    found = explain(network(), [photos(1)], sampled=16)
    assert list(found.faithfulness) == [GRAD_CAM, "layer3.0.attention spatial"]
    assert found.randomized is None
    assert found.notes[-1] == "the check with random weights needs at least 2 images, got 1"
    assert repr(found).startswith("<Explanation of ResNet: 1 of 1 images shown, 3 layers of attention, ")


def test_batches_of_a_loader():
    images, labels = photos(6), torch.tensor([0, 1, 2, 3, 4, 0])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 3)
    found = explain(network(), loader, classes=CLASSES, sampled=0)
    assert found.labels == ["one", "two", "three", "four", "five", "one"]
    assert explain(network(), loader, sampled=0).labels == ["0", "1", "2", "3", "4", "0"]


def test_what_is_no_batch_of_images(refused):
    for batches in (photos(2), [photos(2).numpy()], [(photos(2) * 9).to(torch.uint8)], [{"images": photos(2)}]):
        with refused():
            explain(network(), batches)
    with refused():
        explain(network(), [photos(2)], target="two", classes=CLASSES)
    with refused():
        grad_cam(network(), photos(4), [0, 1])


def test_the_picture_tells_what_the_page_tells():
    model = network(attention_kwargs={"start": "identity"})
    with torch.no_grad():
        for stage in (2, 3):
            model.get_submodule(f"layer{stage}.0.attention").mix.fill_(1.0)
        nn.init.zeros_(model.layer3[0].attention.where.norm.weight)
    figure = explanation_figure([explain(model, [photos(9)], classes=CLASSES, target=2, sampled=0)])
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    # one value everywhere is not drawn
    assert titles[0] == "image"
    assert titles[1].startswith("layer1.0.attention\nspatial, off")
    assert titles[2].startswith("layer2.0.attention\nspatial")
    assert titles[3:] == ["Grad-CAM for three"]


def test_random_numbers_and_buffers_stay():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.network(nn.functional.dropout(x, 0.1, training=True))

    model, before = Counting(), torch.random.get_rng_state()
    explain(model, [photos(3)], sampled=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.calls == 0


def test_labels_are_numbers_of_classes():
    model, images = network(), photos(4)

    def labels(numbers, classes=CLASSES):
        return explain(model, [(images, torch.tensor(numbers))], classes=classes, sampled=0).labels

    assert labels([0, 4, -1, 2]) == ["one", "five", "", "three"]
    assert labels([0, 4, -100, 2], ()) == ["0", "4", "", "2"]
    assert labels([True, False, True, True], ()) == ["1", "0", "1", "1"]
    assert labels([0.5, 1.0, 2.0, 0.0]) == [""] * 4  # no classes
    for numbers in ([1, 2, 3, 5], [0, 1, 2, 255]):
        for classes in (CLASSES, ()):
            with pytest.raises(
                UserError, match=r"an image has the label \d+, and the network has classes 0 to 4; give -1"
            ):
                labels(numbers, classes)
    with pytest.raises(UserError, match="a batch has 4 images and 3 labels"):
        labels([0, 1, 2])


def test_findings_of_gates_that_cannot_be_shown_are_kept():
    class Tiled(nn.Module):
        """One attention sees the image and its mirror as a batch; its mixing is off."""

        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 16, 3), nn.Linear(16, 5)
            self.tiled, self.whole = CBAM(16, start="identity"), CBAM(16)

        def forward(self, x):
            features = self.conv(x)
            both = self.tiled(torch.cat([features, features.flip(-1)]))
            return self.fc(self.whole(both[: len(x)]).mean((2, 3)))

    found = explain(Tiled(), [photos(9)], sampled=0)
    assert [layer.name for layer in found.layers] == ["whole"]
    assert ("tiled", "off") in [(finding.layer, finding.fault) for finding in found.findings]


def test_a_gate_that_is_mixed_in_turned_round_has_the_curves_of_what_it_lets_through():
    model = network(attention_kwargs={"start": "identity"})
    for value in (0.5, -0.5):
        with torch.no_grad():
            model.layer3[0].attention.mix.fill_(value)
        found = explain(model, [photos(8)], sampled=4)
        (plane,) = found.layers[-1].planes.values()
        chosen = [0, 2, 5, 7]
        expected = beside_random(model, photos(8)[chosen], math.copysign(1, value) * plane[chosen][:, None], None)
        name = f"{found.layers[-1].name} spatial"
        torch.testing.assert_close(found.faithfulness[name].curves.deletion, expected.curves.deletion)


def test_in_inference_mode():
    model = network()
    with torch.inference_mode():
        found = explain(model, [photos(4)], sampled=2)
        made_there = explain(network(), [photos(4)], sampled=2)
    assert found.cam is not None
    assert set(found.randomized.likeness) == {GRAD_CAM, *(f"{layer.name} spatial" for layer in found.layers)}
    assert made_there.cam is None
    assert any(
        "was made in inference mode, so Grad-CAM has no gradient; make it outside" in n for n in made_there.notes
    )
