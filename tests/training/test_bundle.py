import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from whatwhere import UserError, create_model
from whatwhere.data.images import open_image
from whatwhere.data.preprocess import preprocessing_for
from whatwhere.networks import NetworkSpec, create
from whatwhere.networks.convert import convert_weights
from whatwhere.networks.factory import read_pretrained, settled
from whatwhere.training.bundle import Bundle, load_bundle, save_bundle, weights_of

OLD = Path(__file__).parent / "old" / "bundle.json"  # as version 0.1 wrote it
OLD_2 = OLD.parent / "2"  # a whole one of format 2, with what it computed then
CLASSES = ("cat", "dog", "rouge-gorge")


def bundle(name="cbam_resnext11_8x8d", pretrained=None, attention="", named="", **options):
    spec = NetworkSpec(name=name, attention=named or attention, num_classes=len(CLASSES), **options)
    attention = attention if callable(attention) else None
    loaded = read_pretrained(spec, pretrained)
    model = create(spec, pretrained=loaded, seed=0, attention=attention).eval()
    return Bundle(model, settled(spec, loaded, attention), CLASSES, preprocessing_for(32), {"epoch": 3})


class Own(nn.Module):
    """An attention of the user's, with a scalar by the name of ours."""

    def __init__(self, channels):
        super().__init__()
        self.mix = nn.Parameter(torch.rand(channels, 1, 1))

    def forward(self, x):
        return x * self.mix


def images(size=32):
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)


@pytest.mark.parametrize("name", ["resnext11_8x8d", "cbam_resnext11_8x8d", "se_resnext11_8x8d"])
def test_a_bundle_comes_back_bit_for_bit(tmp_path, name):
    saved, pixels = bundle(name), images()
    save_bundle(tmp_path, saved)
    loaded = load_bundle(tmp_path)
    assert torch.equal(loaded.probabilities(pixels), saved.probabilities(pixels))
    assert (loaded.classes, loaded.preprocessing, loaded.spec) == (CLASSES, saved.preprocessing, saved.spec)
    assert loaded.info == {"epoch": 3}
    assert not loaded.model.training


def test_attention_that_started_as_the_identity_comes_back(tmp_path):
    saved = bundle(start="identity")
    with torch.no_grad():
        for name, parameter in saved.model.named_parameters():
            if name.endswith("mix"):
                parameter.fill_(0.7)
    save_bundle(tmp_path, saved)
    pixels = images()
    assert torch.equal(load_bundle(tmp_path).probabilities(pixels), saved.probabilities(pixels))


def test_options_that_no_shape_shows_come_back(tmp_path):
    options = {"stride_in_1x1": True, "ceil_pool": True, "replace_stride_with_dilation": (False, True, True)}
    saved, pixels = bundle("cbam_resnet50", model_kwargs=options), images(64)
    save_bundle(tmp_path, saved)
    assert torch.equal(load_bundle(tmp_path).probabilities(pixels), saved.probabilities(pixels))
    # and with the file of its weights alone
    (file,) = tmp_path.glob("weights-*.safetensors")
    started = create_model("cbam_resnet50", num_classes=3, pretrained=file).eval()
    with torch.no_grad():
        normalized = saved.preprocessing.normalize(pixels)
        assert torch.equal(started(normalized), saved.model(normalized))


def test_the_article_s_network_comes_back(tmp_path):
    saved, pixels = bundle("cbam_article_resnext50"), images(224)[:1]
    save_bundle(tmp_path, saved)
    assert torch.equal(load_bundle(tmp_path).probabilities(pixels), saved.probabilities(pixels))


def test_it_is_found_by_its_file_its_folder_and_its_run(tmp_path, refused):
    save_bundle(tmp_path / "best", bundle())
    for path in (tmp_path, tmp_path / "best", tmp_path / "best" / "bundle.json"):
        assert load_bundle(path).classes == CLASSES
    with refused():
        load_bundle(tmp_path / "last")


def test_a_newer_one_takes_its_place(tmp_path):
    save_bundle(tmp_path, bundle())
    newer = bundle("se_resnext11_8x8d")
    save_bundle(tmp_path, newer)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert load_bundle(tmp_path).spec.name == "se_resnext11_8x8d"


def test_cut_short_between_its_files_the_old_one_is_whole(tmp_path, monkeypatch):
    from whatwhere.training import bundle as module

    old = bundle()
    save_bundle(tmp_path, old)

    def die(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_json", die)
    with pytest.raises(KeyboardInterrupt):
        save_bundle(tmp_path, bundle("se_resnext11_8x8d"))
    assert load_bundle(tmp_path).spec == old.spec


def changed(tmp_path, network=None, **changes):
    """Write a bundle that somebody has changed, with weights that do not contradict it."""
    save_bundle(tmp_path, bundle())
    path = tmp_path / "bundle.json"
    said = json.loads(path.read_text())
    weights = tmp_path / said["weights"]
    save_file(load_file(weights), weights)
    said["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    said["network"] |= network or {}
    path.write_text(json.dumps({**said, **changes}))


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["b", "a", "c"]},
        {"classes": ["a", "b", "d"]},
        {"preprocessing": {"mean": [0.485, 0.456, 0.5]}},
        {"preprocessing": {"resize_mode": "squash"}},
        {"network": {"start": "identity"}},
        {"network": {"attention_kwargs": {"form": "timm"}}},
    ],
)
def test_what_the_weights_were_trained_with_cannot_change_in_silence(tmp_path, change, refused):
    """Each is possible by itself, and the same weights would predict something else."""
    save_bundle(tmp_path, bundle())
    path = tmp_path / "bundle.json"
    said = json.loads(path.read_text())
    ((name, value),) = change.items()
    said[name] = {**said[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(said))
    with refused(hiding=r"(?<=weights-)[0-9a-f]+"):
        load_bundle(tmp_path)
    with pytest.raises(UserError, match=f"bundle.json and weights-.*differ in {name}"):
        weights_of(tmp_path)


@pytest.mark.parametrize(
    "network",
    [
        {"name": "__import__('os')"},
        {"name": "resnext11_8x8d"},
        {"name": None},
        {"num_classes": 1},
        {"model_kwargs": 3},
        {"model_kwargs": {"norm_layer": "os.system"}},
        {"name": "article_resnext50", "model_kwargs": {"ceil_pool": True}},
        {"width_factor": 1.1},
        {"width_factor": 16},
        {"width_factor": 1e9},
        {"width_factor": float("nan")},
        {"width_factor": None},
        {"attention": "se"},
        {"attention": "os:getcwd"},
        {"attention": "a:b\nc"},
        {"name": "resnext11_8x8d", "attention": "sse"},
        {"name": "resnext11_8x8d", "attention": None},
        {"attention_kwargs": {"reduction": 1e-9}},
        {"attention_kwargs": {"reduction": 1e9}},
        {"attention_kwargs": {"kernel_size": 65_535}},
        {"attention_kwargs": {"absent": 1}},
        {"attention_kwargs": {"form": ["a"] * 100}},
        {"attention_kwargs": {"form": {"a": 1}}},
        {"name": "resnext11_8x8d", "attention": "bam", "attention_kwargs": {"num_convs": 60_000}},
        {"start": "warm"},
        {"start": "identity"},
        {"absent": 1},
    ],
)
def test_a_damaged_or_hostile_network_is_one_sentence(tmp_path, network, refused):
    changed(tmp_path, network)
    with refused():
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": 3},
        {"classes": []},
        {"sha256": "0"},
        {"format": "other"},
        {"preprocessing": {"image_size": 32}},
        {"weights": "../../../etc/passwd"},
        {"weights": None},
        {"info": None},
        {"network": "cbam_resnext11_8x8d"},
    ],
)
def test_a_damaged_or_hostile_description_is_one_sentence(tmp_path, changes, refused):
    save_bundle(tmp_path, bundle())
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with refused():
        load_bundle(tmp_path)


def test_weights_outside_the_folder_are_not_read(tmp_path, refused):
    changed(tmp_path / "bundle", weights="../weights.safetensors")
    source = next((tmp_path / "bundle").glob("*.safetensors"))
    (tmp_path / "weights.safetensors").write_bytes(source.read_bytes())
    with refused():
        load_bundle(tmp_path / "bundle")


def test_damaged_weights(tmp_path, refused):
    save_bundle(tmp_path, bundle())
    file = next(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-5])
    with refused():
        load_bundle(tmp_path)
    (tmp_path / "bundle.json").write_text("[1]")
    with refused():
        load_bundle(tmp_path)


@pytest.mark.parametrize("deep", ["[", '{"format":'])
def test_a_description_that_no_reader_takes(tmp_path, deep, refused):
    save_bundle(tmp_path, bundle())
    (tmp_path / "bundle.json").write_text(deep * 100_000)
    with refused():
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 0},
        {"image_size": -3},
        {"image_size": 1e400},
        {"resize": 31},
        {"mean": [0, 0]},
        {"mean": [0, 0, float("nan")]},
        {"max_value": 0},
        {"max_value": 65536},
        {"std": [1, 0, 1]},
        {"std": [1, 1, 1e400]},
    ],
)
def test_an_impossible_preprocessing(tmp_path, wrong, refused):
    sound = {"image_size": 32, "resize": 32, "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}
    changed(tmp_path, preprocessing=sound)
    assert load_bundle(tmp_path).preprocessing.resize == 32
    changed(tmp_path, preprocessing={**sound, **wrong})
    with refused():
        load_bundle(tmp_path)


def test_what_a_killed_process_left_is_cleaned_away(tmp_path):
    (tmp_path / ".weights-0.safetensors.abc.part").write_bytes(b"half")
    save_bundle(tmp_path, bundle())
    names = {path.name.partition("-")[0] for path in tmp_path.iterdir()}
    assert names == {"bundle.json", "weights"}


def test_attention_and_width_by_name_come_back_by_themselves(tmp_path, refused):
    saved = bundle("resnext11_8x8d", attention="se", width_factor=1.3)
    save_bundle(tmp_path, saved)
    loaded, pixels = load_bundle(tmp_path), images()
    assert torch.equal(loaded.probabilities(pixels), saved.probabilities(pixels))
    assert loaded.spec == saved.spec
    with refused():
        load_bundle(tmp_path, attention=Own)


@pytest.mark.parametrize("at", ["", "blocks", "layer?.?.bn3"])
@pytest.mark.parametrize(
    "kwargs", [{"form": "timm"}, {"form": "official", "pools": ["avg"], "reduction": 4}, {"form": "ultralytics"}]
)
def test_attention_in_any_form_comes_back_and_its_weights_start_another_network(tmp_path, at, kwargs):
    saved, pixels = bundle("resnext11_8x8d", attention="cbam", attention_kwargs=kwargs, at=at), images()
    save_bundle(tmp_path, saved)
    loaded = load_bundle(tmp_path)
    assert loaded.spec == saved.spec
    assert torch.equal(loaded.probabilities(pixels), saved.probabilities(pixels))
    # the shapes of some forms are the same: the file of weights says which one it is
    (file,) = tmp_path.glob("*.safetensors")
    plain = NetworkSpec(name="resnext11_8x8d", attention="cbam", at=at, num_classes=len(CLASSES))
    started = create(plain, pretrained=file, seed=1).eval()
    with torch.no_grad():
        normalized = saved.preprocessing.normalize(pixels)
        assert torch.equal(started(normalized), saved.model(normalized))


@pytest.mark.parametrize("kwargs", [{"stride_in_1x1": True}, {"ceil_pool": True}])
@pytest.mark.parametrize("at", ["", "layer3.*.bn3"])
def test_what_weights_have_brought_to_the_network_comes_back(kwargs, at, tmp_path):
    source = create_model("resnet50", num_classes=3, seed=1, **kwargs)
    save_file(source.state_dict(), tmp_path / "a.safetensors", {"whatwhere": json.dumps({"model_kwargs": kwargs})})
    named = {"attention": "se", "at": at}
    saved, pixels = bundle("resnet50", pretrained=str(tmp_path / "a.safetensors"), **named), images()
    assert saved.spec.start == "identity"
    save_bundle(tmp_path / "best", saved)
    assert torch.equal(load_bundle(tmp_path / "best").probabilities(pixels), saved.probabilities(pixels))


def own(tmp_path, identity):
    """Return a bundle with the user's attention, its start that of ours behind pretrained weights where asked."""
    plain = create_model("resnext11_8x8d", num_classes=3, seed=1).state_dict()
    save_file(plain, tmp_path / "plain.safetensors")
    pretrained = tmp_path / "plain.safetensors" if identity else None
    return bundle("resnext11_8x8d", pretrained=pretrained, attention=Own, named="absent_module:Own")


@pytest.mark.parametrize("identity", [False, True])
def test_attention_of_the_user_comes_back_if_it_is_given(tmp_path, identity, refused):
    """Its own scalar by the name of ours, and what ours puts around it behind pretrained weights, are told apart."""
    saved = own(tmp_path, identity)
    save_bundle(tmp_path / "best", saved)
    with refused():
        load_bundle(tmp_path)
    loaded, pixels = load_bundle(tmp_path, attention=Own), images()
    assert torch.equal(loaded.probabilities(pixels), saved.probabilities(pixels))
    with refused():
        load_bundle(tmp_path, attention=lambda channels: nn.Conv2d(channels, channels, 1))


def as_written_before(folder, saved, **said):
    """Make a bundle of format 1, as version 0.1 wrote it, of one of today's."""
    save_bundle(folder, saved)
    now = json.loads((folder / "bundle.json").read_text())
    before = json.loads(OLD.read_text())
    before |= {name: now[name] for name in ("weights", "sha256", "classes")}
    before["preprocessing"] = {name: now["preprocessing"][name] for name in ("image_size", "resize", "mean", "std")}
    (folder / "bundle.json").write_text(json.dumps({**before, "architecture": saved.spec.name, **said}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "cbam_resnext11_8x8d"}, {}),
        ({"name": "cbam_resnext11_8x8d", "start": "identity"}, {}),
        ({"name": "resnext11_8x8d", "attention": "se", "width_factor": 1.3}, {"attention": "se", "width_factor": 1.3}),
        ({"name": "resnext11_8x8d", "attention": "se", "at": "blocks"}, {"attention": "se", "at": "blocks"}),
        ({"name": "resnet50", "model_kwargs": {"ceil_pool": True}}, {"model_kwargs": {"ceil_pool": True}}),
    ],
)
def test_a_bundle_of_version_0_1_loads(tmp_path, options, said):
    saved, pixels = bundle(**options), images()
    as_written_before(tmp_path, saved, **said)
    loaded = load_bundle(tmp_path)
    assert loaded.spec == saved.spec
    assert loaded.info == {"epoch": 2, "val_accuracy": 0.125, "val_loss": 2.25}
    assert torch.equal(loaded.probabilities(pixels), saved.probabilities(pixels))


@pytest.mark.parametrize("identity", [False, True])
def test_a_bundle_of_version_0_1_with_attention_of_the_user_loads(tmp_path, identity):
    saved, pixels = own(tmp_path, identity), images()
    as_written_before(tmp_path / "best", saved, attention="absent_module:Own")
    loaded = load_bundle(tmp_path, attention=Own)
    assert loaded.spec == saved.spec
    assert torch.equal(loaded.probabilities(pixels), saved.probabilities(pixels))


def test_the_oldest_bundles_say_less(tmp_path):
    as_written_before(tmp_path, bundle())
    path = tmp_path / "bundle.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({key: said[key] for key in said.keys() - {"attention", "width_factor", "at"}}))
    assert load_bundle(tmp_path).spec == bundle().spec


def images_of_old_2(folder):
    """Return the files that the bundle of format 2 predicted when it was written, by name."""

    def grid(width, height, channels):
        y, x, channel = np.mgrid[:height, :width, :channels]
        return 7 * x + 13 * y + x * y // 5 + 50 * channel

    arrays = {
        "wide": grid(200, 40, 3).astype(np.uint8),
        "tall": grid(30, 170, 3).astype(np.uint8),
        "rgba": grid(50, 60, 4).astype(np.uint8),
        "grey16": (257 * grid(64, 48, 1)[..., 0]).astype(np.uint16),
    }
    for name, array in arrays.items():
        Image.fromarray(array).save(folder / f"{name}.png")
    return {"photo": OLD_2 / "photo.jpg"} | {name: folder / f"{name}.png" for name in arrays}


def test_a_bundle_of_format_2_predicts_as_it_did(tmp_path):
    """Written before the preprocessing had a version: the same pixels to the last bit, the same probabilities."""
    loaded, files = load_bundle(OLD_2), images_of_old_2(tmp_path)
    probabilities = json.loads((OLD_2 / "probabilities.json").read_text())
    with np.load(OLD_2 / "pixels.npz", allow_pickle=False) as pixels:
        assert set(pixels) == set(probabilities) == set(files)
        for name, file in files.items():
            with open_image(file) as image:
                found = loaded.preprocessing.pixels(image)
            assert np.array_equal(found.numpy(), pixels[name]), name
            # another processor rounds otherwise
            expected = torch.tensor([probabilities[name]])
            torch.testing.assert_close(loaded.probabilities(found[None]), expected, rtol=1e-5, atol=1e-6)
    # and it comes back as a bundle of today
    save_bundle(tmp_path / "now", loaded)
    again = load_bundle(tmp_path / "now")
    assert again.preprocessing == loaded.preprocessing
    assert json.loads((tmp_path / "now" / "bundle.json").read_text())["preprocessing"]["version"] == 2


@pytest.mark.parametrize(
    "said",
    [{"format": "whatwhere bundle 4"}, {"version": 3}, {"version": "2b"}, {"gamma": 2.2}, {"resize_mode": "tile"}],
)
def test_what_only_a_newer_version_understands_is_refused(tmp_path, said, refused):
    """A field that is passed over would change the pixels in silence."""
    save_bundle(tmp_path / "bundle", bundle())
    path = tmp_path / "bundle" / "bundle.json"
    document = json.loads(path.read_text())
    (document if "format" in said else document["preprocessing"]).update(said)
    path.write_text(json.dumps(document))
    with refused():
        load_bundle(path)
    with pytest.raises(UserError, match="pip install --upgrade whatwhere"):
        weights_of(path)


def told(saved, folder):
    """The weights of a bundle under another name, without its description."""
    save_bundle(folder / "bundle", saved)
    return next((folder / "bundle").glob("*.safetensors")).rename(folder / "mine.safetensors")


def test_a_file_of_weights_tells_its_network_and_preprocessing_under_any_name(tmp_path):
    saved = bundle(width_factor=1.5)
    saved = replace(saved, preprocessing=preprocessing_for(48, (0.1,) * 3, (0.2,) * 3, 4095, "letterbox"))
    weights = told(saved, tmp_path)
    assert weights_of(weights) == (weights, saved.spec, saved.preprocessing)
    # beside the description of others
    save_bundle(tmp_path, bundle("se_resnext11_8x8d"))
    assert weights_of(weights) == (weights, saved.spec, saved.preprocessing)


def test_converted_weights_tell_their_preprocessing(tmp_path):
    saved = replace(bundle("cbam_resnet18"), preprocessing=preprocessing_for(48, (0.1,) * 3))
    weights, converted = told(saved, tmp_path), tmp_path / "converted.safetensors"
    convert_weights(weights, converted)
    assert weights_of(converted) == (converted, saved.spec, saved.preprocessing)


@pytest.mark.parametrize("said", [None, "", "no JSON", "[]", '{"network": {"name": "resnet18"}}', '{"preprocessing": '])
def test_weights_that_tell_no_preprocessing_are_no_bundle(tmp_path, said):
    weights = tmp_path / "mine.safetensors"
    save_file({"a": torch.zeros(2)}, weights, None if said is None else {"whatwhere": said})
    if said == '{"preprocessing": ':
        with pytest.raises(UserError, match=r"mine\.safetensors' is damaged"):
            weights_of(weights)
    else:
        assert weights_of(weights) is None


@pytest.mark.parametrize("name", ["resnet8", "timm:resnet18", "torchvision:mobilenet_v2"])
@pytest.mark.parametrize("start", ["identity", "paper"])
@pytest.mark.parametrize("attention", ["cbam", "gc"])
def test_a_placebo_has_the_start_of_its_attention_and_is_kept(name, start, attention, tmp_path):
    attentive, static = (
        NetworkSpec(name=name, attention=kind, num_classes=len(CLASSES), start=start)
        for kind in (attention, f"static:{attention}")
    )
    model = create(static, seed=0)
    theirs, own = dict(create(attentive, seed=0).named_parameters()), dict(model.named_parameters())
    assert theirs.keys() == own.keys()
    assert all(theirs[key].equal(value) for key, value in own.items())
    images = torch.rand(4, 3, 32, 32)
    model(images)  # in training, so that it has means
    save_bundle(tmp_path, Bundle(model.eval(), static, CLASSES, preprocessing_for(32), {}))
    again = load_bundle(tmp_path)
    assert again.spec == static
    assert again.model(images).equal(model(images))
    assert again.digest == hashlib.sha256(next(tmp_path.glob("*.safetensors")).read_bytes()).hexdigest()
