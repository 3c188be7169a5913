import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from pages import read, words
from whatwhere import UserError, create_model
from whatwhere.attention import attention_builder
from whatwhere.base.words import printable
from whatwhere.explain import Batch, explain
from whatwhere.explain.explanation import Explanation, Layer
from whatwhere.report import is_page
from whatwhere.report.explanation import MOST_BYTES, _bars, _quantized, explanation_page, write_explanation

pytest.importorskip("captum")
HOSTILE = """</script><img src=x onerror=alert(1)> "it's" & \ud800 \N{LINE SEPARATOR}\u202e {{ 7 * 7 }}"""


def explained(name="cbam_resnext11_8x8d", num=9, **options):
    model = create_model(name, num_classes=3, seed=0)
    batch = Batch(torch.randn(num, 3, 32, 32, generator=torch.Generator().manual_seed(0)), **options)
    return explain(model, [batch], classes=("cat", "dog", "elk"), network=name, sampled=2)


def data_in(page):
    """The values that the page's script reads."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def values(drawn):
    """A map, from its bytes and the ends of its scale."""
    flat = np.frombuffer(base64.b64decode(drawn["bytes"]), np.uint8).astype(float)
    maps = flat.reshape(-1, drawn["height"], drawn["width"]) / 255
    low, high = (np.array(drawn[end])[:, None, None] for end in ("low", "high"))
    return low + maps * (high - low)


def test_the_page_holds_the_maps():
    found = explained()
    page = explanation_page([found])
    read(page)
    (network,) = data_in(page)["networks"]
    step = 1 / 255
    for layer, drawn in zip(found.layers, network["layers"], strict=True):
        (plane,) = drawn["planes"]
        assert np.abs(values(plane) - layer.planes["spatial"].numpy()).max() < step
        (bars,) = drawn["channels"]
        channels = np.frombuffer(base64.b64decode(bars["bytes"]), np.uint8).reshape(9, -1) / 255
        assert np.abs(channels - layer.channels["channel"][:, bars["numbers"]].numpy()).max() < step
        spread = layer.channels["channel"].std(0, correction=0)
        least = spread[bars["numbers"]].min()
        assert len(bars["numbers"]) == min(48, bars["total"])
        assert (spread > least).sum() < 48
    # each image of Grad-CAM has its own scale
    assert np.abs(values(network["cam"]) - found.cam.numpy()).max() <= step * found.cam.max()
    assert [row[0][0] for row in network["predictions"]] == network["camClasses"]
    # what is shown is the picture itself
    source = re.search(r'<img src="data:image/jpeg;base64,([^"]+)"', page).group(1)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))).astype(int)
    assert np.abs(shown - found.pictures[0].permute(1, 2, 0).numpy()).mean() < 25


def test_two_networks_side_by_side():
    page = explanation_page([explained(), explained("resnext11_8x8d")])
    text = words(page)
    first, second = data_in(page)["networks"]
    assert first["pictures"] is None
    assert second["pictures"] is None
    assert second["layers"] == []
    assert "beside resnext11_8x8d" in text
    assert "It has no attention of whatwhere, or none that can be shown." in text
    # one that cuts its images in another way shows its own
    other = explained("resnext11_8x8d")
    other.pictures = other.pictures[:, :, 4:-4, 4:-4]
    _, second = data_in(explanation_page([explained(), other]))["networks"]
    assert len(second["pictures"]) == 9
    other.names = other.names[::-1]
    with pytest.raises(UserError, match="the same images"):
        explanation_page([explained(), other])


def test_what_the_words_say():
    found = explained(labels=["cat"] * 9)
    text = words(explanation_page([found]))
    for finding in found.findings:
        assert finding.sentence in text.replace("\N{MINUS SIGN}", "-")
    for name, of in found.faithfulness.items():
        own, random = float(of.curves.areas[0].mean()), float(of.at_random.areas[0].mean())
        assert f"{name} : {own:.2f}, random order {random:.2f}; better by" in text
    for remark in found.randomized.remarks().values():
        assert remark in text
    wrong = sum(row[0][0] != "cat" for row in found.predictions)
    assert text.count(", but it is cat") == wrong
    sound = explained()
    sound.findings = []
    assert "Nothing was found wrong with its gates, over 9 images" in words(explanation_page([sound]))


def test_hostile_names_do_nothing():
    found = explained(names=[HOSTILE] * 9, labels=[HOSTILE] * 9)
    found.network = HOSTILE
    found.predictions = [[(HOSTILE, 0.5)]] * 9
    found.layers[0].name = HOSTILE
    found.cam_classes = [HOSTILE] * 9
    page = explanation_page([found])
    parser = read(page)
    page.encode()
    assert not {"onerror", "onload"} & parser.attributes
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    network = data_in(page)["networks"][0]
    assert {network["name"], network["camClasses"][0], network["layers"][0]["name"]} == {printable(HOSTILE)}
    assert "\u202e" not in page


def test_it_loads_nothing_and_computes_the_same_again(tmp_path):
    found = explained()
    write_explanation(tmp_path / "page.html", [found])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page == explanation_page([found])
    assert is_page(tmp_path / "page.html")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    ids = read(page).ids
    assert len(ids) == len(set(ids))
    assert set(read(page).references) <= set(ids)


def of_resnext50(num, network):
    """What a ResNeXt-50 with CBAM shows at 224 px, without its computation."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.rand(shape, generator=generator)

    sizes = [(256, 56)] * 3 + [(512, 28)] * 4 + [(1024, 14)] * 6 + [(2048, 7)] * 3
    layers = [
        Layer(
            f"layer{n}",
            "CBAM",
            (0.0, 1.0),
            None,
            False,
            {"spatial": noise(num, side, side)},
            {"channel": noise(num, channels)},
        )
        for n, (channels, side) in enumerate(sizes)
    ]
    photo = torch.nn.functional.interpolate(noise(num, 3, 28, 28), (224, 224), mode="bicubic").clamp(0, 1)
    names = [f"folder/{number}.jpg" for number in range(num)]
    return Explanation(
        network,
        num,
        (photo * 255).to(torch.uint8),
        names,
        [""] * num,
        [[("a class", 0.5), ("another", 0.3)]] * num,
        {"a class": num},
        layers,
        noise(num, 7, 7),
        "layer4",
        ["a class"] * num,
    )


def test_hundreds_of_images_stay_small():
    page = explanation_page([of_resnext50(300, "one"), of_resnext50(300, "other")])
    assert len(page.encode()) <= MOST_BYTES
    plane = data_in(page)["networks"][0]["layers"][0]["planes"][0]
    assert plane["height"] >= 14


def test_more_than_a_page_holds_is_refused(monkeypatch, refused):
    monkeypatch.setattr("whatwhere.report.explanation.MOST_BYTES", 100_000)
    with refused():
        explanation_page([of_resnext50(20, "one")])


def test_values_that_are_no_numbers():
    found = explained()
    found.layers[0].planes["spatial"][:] = float("nan")
    found.layers[0].channels["channel"][:] = float("nan")
    found.layers[0].mix = float("nan")
    found.predictions = [[("cat", float("nan"))]] * 9
    found.layers[1].planes["spatial"] = torch.full((9, 1, 1), 0.25)
    found.cam = torch.zeros(9, 2, 3)
    network = data_in(explanation_page([found]))["networks"][0]
    first, second, _ = network["layers"]
    assert network["predictions"][0] == [["cat", None]]
    assert first["mix"] is None
    assert (first["planes"][0]["low"], first["planes"][0]["high"]) == ([0.0], [0.0])
    assert first["channels"][0]["mean"] == [0.0] * 48
    assert values(second["planes"][0]).tolist() == [[[0.25]]] * 9


def test_what_a_gate_can_be():
    """Of a gate from 0 to 2, such as that of GCT, the middle is 1."""
    model = create_model("gct_resnext11_8x8d", num_classes=3, seed=0)
    network = data_in(explanation_page([explain(model, [torch.randn(9, 3, 32, 32)], sampled=0)]))["networks"][0]
    (bars,) = network["layers"][0]["channels"]
    assert (bars["low"], bars["middle"], bars["high"]) == (0, 1, 2)
    model = create_model("cbam_resnext11_8x8d", num_classes=3, seed=0, attention_kwargs={"start": "identity"})
    torch.nn.init.constant_(model.layer2[0].attention.mix, -0.5)
    network = data_in(explanation_page([explain(model, [torch.randn(9, 3, 32, 32)], sampled=0)]))["networks"][0]
    assert [layer["mix"] for layer in network["layers"]] == [0, -0.5, 0]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gc_resnext11_8x8d", "Its attention has no gates that can be shown."),
        ("static:se_resnext11_8x8d", "It is a placebo: its gates are the same for all images by design."),
    ],
)
def test_what_is_said_where_nothing_is_wrong(name, told):
    attention, _, backbone = name.rpartition("_resnext11")[0], "", "resnext11_8x8d"
    model = create_model(backbone, num_classes=3, seed=0, attention=attention_builder(attention))
    found = explain(model, [torch.randn(9, 3, 32, 32) * 3], sampled=0)
    for layer in found.layers:
        layer.findings = []
    text = words(explanation_page([found]))
    assert told in text
    assert "nearly the same for all images." not in text


def test_the_means_of_classes_come_with_their_numbers():
    found = explained()
    layer = found.layers[0]
    means = torch.zeros(3, 64)
    means[0, 5], means[1, 7], means[2, 9] = 0.2, 0.2, 1.0
    layer.class_means = {"channel": dict(zip(("cat", "dog", "elk"), means, strict=True))}
    found.num_predicted = {"cat": 400, "dog": 300, "elk": 5}
    text = words(explanation_page([found]))
    # a class of few images does not choose the channels alone
    assert "cat 400 0.20 0.00" in text
    assert "elk 5 0.00 0.00 1.00" in text


def test_three_networks_are_refused(refused):
    with refused():
        explanation_page([explained()] * 3)


def test_the_scale_of_a_large_map_is_that_of_its_places():
    fine = torch.zeros(2, 80, 80)
    fine[0, 40, 40], fine[1] = 0.9, (torch.arange(80)[:, None] + torch.arange(80)) % 2
    drawn = _quantized(fine, 56)
    assert (drawn["size"], drawn["height"], drawn["width"]) == ([80, 80], 56, 56)
    assert (drawn["low"], drawn["high"]) == ([0.0], [1.0])
    # each place drawn is a mean of places
    assert values(drawn)[0].max() < 0.9
    assert values(drawn)[1] == pytest.approx(0.5, abs=0.2)


def test_how_many_channels_are_open_is_counted_before_rounding():
    gates = torch.tensor([[0.5, 0.5001, 0.4999], [1.0, 0.0, 0.5]])
    assert _bars("channel", gates, (0.0, 1.0))["open"] == [1, 1]
