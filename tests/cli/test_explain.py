import json
import re

import numpy as np
import pytest
from PIL import Image

import image_files
from pages import words
from whatwhere import create_model
from whatwhere.data.preprocess import Preprocessing
from whatwhere.networks import NetworkSpec
from whatwhere.training.bundle import Bundle, save_bundle

pytest.importorskip("captum")
CLASSES = ("cat", "dog", '<b>"elk" & co')


def saved(folder, attention="", classes=CLASSES, size=32):
    spec = NetworkSpec(name="resnext11_8x8d", attention=attention, num_classes=len(classes))
    model = create_model("_".join(filter(None, (attention, spec.name))), num_classes=len(classes), seed=0).eval()
    save_bundle(folder / "best", Bundle(model, spec, classes, Preprocessing(size, size), {"epoch": 1}))
    return folder


@pytest.fixture(scope="module")
def with_cbam(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("run"), "cbam")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("run"))


@pytest.fixture
def photos(tmp_path):
    for index in range(12):
        path = tmp_path / "photos" / CLASSES[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def data_in(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))


def test_a_page_and_a_picture(whatwhere, with_cbam, plain, photos, tmp_path):
    out, png = tmp_path / "new" / "page.html", tmp_path / "new" / "picture.png"
    status, printed, err = whatwhere(
        "explain", with_cbam, photos, "--against", plain, "--out", out, "--png", png, "--device", "cpu"
    )
    assert status == 0, err
    assert f"The page: {out}" in printed
    first, second = data_in(out)["networks"]
    assert (first["name"], second["name"]) == ("resnext11_8x8d with cbam", "resnext11_8x8d")
    assert (len(first["predictions"]), len(first["layers"]), len(second["layers"])) == (12, 3, 0)
    text = words(out.read_text(encoding="utf-8"))
    assert "12 of 12 images shown" in text
    assert "better by insertion" in printed
    with Image.open(png) as picture:
        assert picture.width > 500


def test_networks_of_other_classes(whatwhere, with_cbam, photos, tmp_path):
    out = tmp_path / "page.html"
    other = saved(tmp_path / "other", classes=("f1", "f2"))
    status, _, err = whatwhere("explain", with_cbam, photos, "--against", other, "--out", out)
    assert status == 2
    assert "the networks know no class in common (cat, dog, " in err
    assert not out.exists()
    fewer = saved(tmp_path / "fewer", classes=CLASSES[:2])
    status, printed, _ = whatwhere("explain", with_cbam, photos, "--against", fewer, "--out", out)
    assert status == 0
    assert "its classes are not those of resnext11_8x8d with cbam, so its probabilities are of other classes" in printed


def test_a_page_is_html(whatwhere, with_cbam, photos, tmp_path):
    status, _, err = whatwhere("explain", with_cbam, photos, "--out", tmp_path / "page.pdf")
    assert status == 2
    assert "is to be a page of HTML; give an --out that ends with .html" in err


def test_two_runs_of_one_network_go_by_their_paths(whatwhere, with_cbam, photos, tmp_path):
    out = tmp_path / "page.html"
    status, *_ = whatwhere("explain", with_cbam, photos, "--against", with_cbam / "best", "--out", out)
    assert status == 0
    assert [network["name"] for network in data_in(out)["networks"]] == [str(with_cbam), str(with_cbam / "best")]


def test_labels_from_folders_and_images_spread_over_all(whatwhere, plain, photos, tmp_path):
    out = tmp_path / "page.html"
    status, *_ = whatwhere("explain", plain, photos, "--out", out, "--images", 3, "--class", "dog", "--batch-size", 5)
    assert status == 0
    page = out.read_text(encoding="utf-8")
    labels = re.findall(r'data-label="([^"]*)"', page)
    # the page may be sent to others: no path from the root
    assert all(name.startswith("photos/") for name in re.findall(r'title="([^"]*)"', page))
    assert len(labels) == 3
    assert set(labels) == {"cat", "dog", "&lt;b&gt;&#34;elk&#34; &amp; co"}
    assert data_in(out)["networks"][0]["camClasses"] == ["dog"] * 3
    assert "3 of 12 images shown" in words(page)


def test_images_of_every_kind(whatwhere, with_cbam, tmp_path):
    folder = tmp_path / "odd <i> 'names' & \"quotes\""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    Image.fromarray(noise[:1, :1, :3]).save(folder / "one pixel.png")
    Image.fromarray(noise, "CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise, "RGBA").save(folder / "clear.png")
    frames = [Image.fromarray(np.roll(noise[:, :, :3], n, 0)) for n in range(3)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(noise[:1, :, :3]).resize((3000, 2)).save(folder / "long.png")
    image_files.bomb(folder / "huge.png", 20_000, 20_000)
    image_files.cut(image_files.save(folder / "cut.jpg"))
    (folder / "text.jpg").write_text("no image")
    out = tmp_path / "page.html"
    status, printed, err = whatwhere("explain", with_cbam, folder, "--out", out)
    assert status == 1
    said = err.splitlines()
    assert len(said) == 3
    assert [name for name in ("cut.jpg", "huge.png", "text.jpg") if name in err] == ["cut.jpg", "huge.png", "text.jpg"]
    assert all(line.startswith("whatwhere: ") for line in said)
    assert "gate health needs at least 8 images, got 5" in printed
    assert len(data_in(out)["networks"][0]["predictions"]) == 5


def test_a_thousand_images(whatwhere, plain, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for n in range(1000):
        Image.new("RGB", (8, 8), (n % 256, n // 4, 90)).save(folder / f"{n:04}.png")
    out = tmp_path / "page.html"
    status, *_ = whatwhere("explain", plain, folder, "--out", out, "--images", 20)
    assert status == 0
    assert "20 of 1,000 images shown" in words(out.read_text(encoding="utf-8"))


def test_what_cannot_be_is_refused_before_anything_is_read(refused_command, with_cbam, photos, tmp_path):
    notes = tmp_path / "notes.html"
    notes.write_text("my notes")
    for arguments in (
        (with_cbam, photos, "--out", notes),
        (with_cbam, photos, "--out", tmp_path),
        (with_cbam, photos, "--out", tmp_path / "a.html", "--png", tmp_path / "a.jpg"),
        (with_cbam, photos, "--out", tmp_path / "a.png", "--png", tmp_path / "a.png"),
        (with_cbam, tmp_path / "missing", "--out", tmp_path / "a.html"),
        (tmp_path / "missing", photos, "--out", tmp_path / "a.html"),
        (with_cbam, photos, "--against", photos, "--out", tmp_path / "a.html"),
        (with_cbam, photos, "--out", tmp_path / "a.html", "--png", photos / "cat" / "0.png"),
        (with_cbam, photos, "--images", 501),
        (with_cbam, photos, "--class", "dgo", "--out", tmp_path / "a.html"),
        (with_cbam, photos, "--layer", "layr3", "--out", tmp_path / "a.html"),
    ):
        refused_command("explain", *arguments)
    assert notes.read_text() == "my notes"
    assert not (tmp_path / "a.html").exists()


def test_no_image_that_can_be_read(whatwhere, with_cbam, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    status, _, err = whatwhere("explain", with_cbam, tmp_path / "text.jpg", "--out", tmp_path / "a.html")
    assert status == 2
    assert err.startswith("whatwhere: no image could be read: ")
    assert "text.jpg" in err
    assert not (tmp_path / "a.html").exists()


def test_one_image_and_a_first_one_that_cannot_be_read(whatwhere, with_cbam, photos, tmp_path):
    out = tmp_path / "page.html"
    status, printed, _ = whatwhere("explain", with_cbam, photos / "cat" / "0.png", "--out", out)
    assert status == 0
    assert "the check with random weights needs at least 2 images, got 1" in printed
    assert "nan" not in printed
    assert re.findall(r'title="([^"]*)"', out.read_text(encoding="utf-8"))[0] == "0.png"
    (photos / "cat" / "0.png").write_text("no image")
    status, *_ = whatwhere("explain", with_cbam, photos, "--out", out, "--images", 1)
    assert status == 1
    assert "1 of 11 images shown" in words(out.read_text(encoding="utf-8"))


def test_the_picture_is_written_again_and_nothing_else_is_written_over(whatwhere, plain, photos, tmp_path):
    photo = photos / "cat" / "0.png"
    before = photo.read_bytes()
    for _ in range(2):
        assert whatwhere("explain", plain, photos, "--out", tmp_path / "a.html", "--png", tmp_path / "a.png")[0] == 0
    status, _, err = whatwhere("explain", plain, photos, "--out", tmp_path / "a.html", "--png", photo)
    assert (status, photo.read_bytes()) == (2, before)
    assert "is no picture of whatwhere" in err


def test_grey_of_16_bits_that_is_almost_black_is_told(whatwhere, plain, tmp_path):
    folder = tmp_path / "grey"
    folder.mkdir()
    for n in range(3):
        values = np.random.default_rng(n).integers(0, 4096, (30, 30)).astype(np.uint16)
        Image.fromarray(values).save(folder / f"{n}.png")
    status, _, err = whatwhere("explain", plain, folder, "--out", tmp_path / "page.html")
    assert status == 0
    assert "almost black" in err
