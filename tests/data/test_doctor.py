import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from image_files import bomb, cut, fill, oriented, picture, save
from whatwhere.base.tables import rich_tables, text
from whatwhere.data.doctor import probe
from whatwhere.data.doctor.duplicates import joined
from whatwhere.data.doctor.findings import unusable
from whatwhere.data.doctor.report import examine
from whatwhere.data.sources.find import find_source
from whatwhere.data.sources.source import Finding


def report_of(folder, cache=None):
    return examine(find_source(str(folder)), cache=cache)


def found(report):
    return {finding.kind: (finding.severity, list(finding.paths)) for finding in report.findings}


def saved_again(image, quality=60):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def resized(image, share=0.8):
    return image.resize([round(side * share) for side in image.size], Image.Resampling.BICUBIC)


def snapshot(folder):
    return {
        path: (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(Path(folder).rglob("*"))
    }


def hostile(root):
    """Write a folder with every fault, beside two good images of cat and of dog in each split."""
    fill(root, "Train/cat", "Train/dog", "valid/cat", "valid/dog", "TEST/cat", "TEST/dog", count=2)
    train = root / "Train"
    fill(train, "bird", count=2)  # in neither val nor test
    fill(root / "TEST", "Dog", count=1)  # in test only
    cut(save(train / "cat" / "cut.jpg", seed=101))
    (train / "cat" / "empty.jpg").touch()
    bomb(train / "cat" / "huge.png")
    (train / "cat" / "text.png").write_text("no image")
    save(train / "cat" / "float.tif", Image.new("F", (9, 9)))
    (train / "cat" / "phone.NEF").write_bytes(b"raw")
    save(train / "dog" / "really.jpg", seed=102, format="PNG")
    save(train / "dog" / "nameless", seed=103, format="PNG")
    save(train / "dog" / "cmyk.jpg", picture(104).convert("CMYK"))
    save(train / "dog" / "deep.png", Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50))
    save(train / "dog" / "few.png", picture(105).quantize(16))
    save(train / "dog" / "clear.png", Image.merge("RGBA", [*picture(106).split(), Image.new("L", (40, 32), 99)]))
    oriented(train / "dog" / "turned.jpg", picture(107), 6)
    (train / "dog" / "copy.png").write_bytes((root / "TEST" / "dog" / "0.png").read_bytes())
    (train / "dog" / "again.png").write_bytes((train / "dog" / "1.png").read_bytes())
    (train / "cat" / "wrong.png").write_bytes((train / "dog" / "0.png").read_bytes())
    save(train / "cat" / "near.jpg", resized(Image.open(root / "valid" / "cat" / "1.png")), quality=80)
    save(train / "bird" / "near.jpg", saved_again(Image.open(train / "bird" / "1.png")))
    fill(train / "dog", "nested/deeper", count=1)
    save(train / "stray.png", seed=108)
    save(root / "extra" / "cat" / "0.png", seed=109)
    (train / "fish").mkdir()
    save(train / "cat" / ".ipynb_checkpoints" / "0.png", seed=110)
    save(root / "__MACOSX" / "._0.png", seed=111)
    (root / "README.txt").write_text("about")
    (train / "dog" / "loop").symlink_to(root)
    (train / "dog" / "x\udcff\x1b[31m.png").write_bytes(b"broken")
    return root


HOSTILE = [
    ("error", "convert", "1 file in a format that is not read", ["Train/cat/phone.NEF"]),
    ("error", "truncated", "1 file cut short; replace, or leave out with --skip-bad", ["Train/cat/cut.jpg"]),
    ("error", "empty", "1 file of 0 bytes; replace, or leave out with --skip-bad", ["Train/cat/empty.jpg"]),
    ("error", "huge", "1 file with more than 89,478,485 pixels", ["Train/cat/huge.png"]),
    (
        "error",
        "unreadable",
        "2 files that cannot be read as JPEG, PNG or another",
        ["Train/cat/text.png", "Train/dog/x\\xff\\x1b[31m.png"],
    ),
    ("error", "mode", "1 file with signed, 32-bit or floating-point values", ["Train/cat/float.tif"]),
    ("error", "unknown-class", "1 class in test but not in train: Dog (did you mean dog?); rename or remove", ["Dog"]),
    (
        "error",
        "leak",
        "1 image in more than one split, byte for byte, which makes results too good; remove the copies in "
        "train (or val), or leave out with --skip-bad",
        ["TEST/dog/0.png = Train/dog/copy.png"],
    ),
    (
        "error",
        "contradiction",
        "1 image under different labels, byte for byte; remove the wrong copies, or leave out with --skip-bad",
        ["Train/cat/wrong.png (cat) = Train/dog/0.png (dog)"],
    ),
    ("warning", "suffix", "left out 1 file with an image inside", ["Train/dog/nameless"]),
    ("warning", "stray", "left out 1 image outside any class folder; move into one", ["Train/stray.png"]),
    ("warning", "beside", "left out 1 folder with images, beside", ["extra"]),
    ("warning", "empty-class", "1 class folder without any image", ["Train/fish"]),
    ("warning", "link", "left out 1 link to a folder already listed", ["Train/dog/loop"]),
    ("warning", "spelling", "1 class in several spellings", ["Dog (1 image) = dog (16 images)"]),
    ("warning", "wrong-suffix", "1 file in another format than the suffix says", ["Train/dog/really.jpg"]),
    (
        "warning",
        "unmeasured-class",
        "1 class in train but not in val, so not measured there",
        ["bird"],
    ),
    ("warning", "unmeasured-class", "1 class in train but not in test", ["bird"]),
    (
        "warning",
        "near-leak",
        "1 group of nearly the same image in different splits (2",
        ["Train/cat/near.jpg ~ valid/cat/1.png"],
    ),
    (
        "note",
        "hidden",
        "left out 2 names hidden or made by the system",
        ["Train/cat/.ipynb_checkpoints", "__MACOSX"],
    ),
    ("note", "nested", "1 folder inside a class folder", ["Train/dog/nested/deeper"]),
    ("note", "other", "left out 1 file without an image that can be read", ["README.txt"]),
    (
        "note",
        "identical",
        "2 images more than once, byte for byte",
        ["Train/cat/wrong.png = Train/dog/0.png", "Train/dog/1.png = Train/dog/again.png"],
    ),
    ("note", "near", "1 group of nearly the same image (2 images)", ["Train/bird/1.png ~ Train/bird/near.jpg"]),
]


def test_a_hostile_folder_gets_a_full_report(tmp_path):
    root = hostile(tmp_path / "data")
    before = snapshot(root)
    report = report_of(root, tmp_path / "cache")
    result = json.loads(json.dumps(report.to_dict()))
    findings = result.pop("findings")
    listed = [(finding["severity"], finding["kind"], finding["paths"]) for finding in findings]
    assert listed == [(severity, kind, paths) for severity, kind, _, paths in HOSTILE]
    for finding, (_, _, beginning, _) in zip(findings, HOSTILE, strict=True):
        assert finding["message"].startswith(beginning)
    assert result == {
        "data": str(root),
        "sound": False,
        "num_images": 33,
        "counts": {
            "train": {"bird": 3, "cat": 4, "dog": 11},
            "val": {"cat": 2, "dog": 2},
            "test": {"Dog": 1, "cat": 2, "dog": 2},
        },
        "median_side": 32,
        "modes": {
            "CMYK": {"num_images": 1, "read_as": "converted by Pillow, without a colour profile"},
            "I;16": {"num_images": 1, "read_as": "16-bit grey, 0 to 65,535 scaled to 0 to 255"},
            "P": {"num_images": 1, "read_as": "through its palette, what is transparent on white"},
            "RGBA": {"num_images": 1, "read_as": "composited on white"},
            "EXIF rotation": {"num_images": 1, "read_as": "turned as the header says"},
        },
    }
    assert sorted(unusable(report.findings)) == [
        *(f"Train/cat/{name}" for name in ("cut.jpg", "empty.jpg", "float.tif", "huge.png", "phone.NEF", "text.png")),
        "Train/dog/x\udcff\x1b[31m.png",
    ]
    assert report.surplus == {
        "Train/dog/copy.png": "leak",
        "Train/cat/wrong.png": "contradiction",
        "Train/dog/0.png": "contradiction",
    }
    assert {frozenset(group) for group in report.twins} == {
        frozenset({"Train/dog/copy.png", "TEST/dog/0.png"}),
        frozenset({"Train/dog/again.png", "Train/dog/1.png"}),
        frozenset({"Train/cat/wrong.png", "Train/dog/0.png"}),
        frozenset({"Train/cat/near.jpg", "valid/cat/1.png"}),
        frozenset({"Train/bird/near.jpg", "Train/bird/1.png"}),
    }
    printed = text(rich_tables(report.tables()))
    printed.encode("utf-8")
    assert "\x1b" not in printed
    assert all(beginning in printed for _, _, beginning, _ in HOSTILE)
    assert "Findings: 9 errors, 10 warnings, 5 notes" in printed
    # the user's files are unchanged, and there is no new one
    assert snapshot(root) == before


def test_a_sound_folder(tmp_path):
    report = report_of(fill(tmp_path, "a", "b", count=3))
    assert report.sound
    assert (report.findings, report.twins) == ((), ())
    assert report.counts == {"all": {"a": 3, "b": 3}}
    printed = text(rich_tables(report.tables()))
    assert "Findings: none" in printed
    assert "The data are sound." in printed


def test_long_lists_are_cut_on_the_terminal_alone(tmp_path):
    fill(tmp_path, "a", "b", count=3)
    for index in range(14):
        (tmp_path / "a" / f"e{index:02d}.png").touch()
    report = report_of(tmp_path)
    printed = text(rich_tables(report.tables()))
    assert "e09.png" in printed
    assert "e10.png" not in printed
    assert "and 4 more; all with --json" in printed
    assert len(report.to_dict()["findings"][0]["paths"]) == 14


def test_classes(tmp_path):
    fill(tmp_path / "one", "a", count=3)
    assert found(report_of(tmp_path / "one"))["one-class"] == ("error", [])
    fill(tmp_path / "few", "a", count=2)
    fill(tmp_path / "few", "b", count=21)
    report = found(report_of(tmp_path / "few"))
    assert report == {"uneven": ("warning", []), "few": ("warning", ["a"])}
    fill(tmp_path / "held", "test/a", "test/b")
    assert found(report_of(tmp_path / "held"))["no-train"] == ("error", [])
    for label in "ab":
        (tmp_path / "none" / label).mkdir(parents=True)
        (tmp_path / "none" / label / "x.png").touch()
    report = report_of(tmp_path / "none")
    assert found(report)["no-image"] == ("error", [])
    assert (report.median_side, report.counts) == (0, {})


def test_a_class_spelt_otherwise_is_hinted_at(tmp_path):
    fill(tmp_path, "train/Cat", "train/dog", "val/cat", "val/dog")
    errors = [finding for finding in report_of(tmp_path).findings if finding.severity == "error"]
    message = "1 class in val but not in train: cat (did you mean Cat?)"
    assert errors == [Finding("error", "unknown-class", message, ("cat",), "rename or remove")]


def test_a_class_whose_training_images_are_all_bad_is_unknown(tmp_path):
    fill(tmp_path, "train/a", "train/b", "val/a", "val/b", "val/c")
    (tmp_path / "train" / "c").mkdir()
    (tmp_path / "train" / "c" / "x.png").touch()
    assert found(report_of(tmp_path))["unknown-class"] == ("error", ["c"])


@pytest.mark.parametrize(
    "edit",
    [saved_again, resized, lambda image: ImageEnhance.Brightness(image).enhance(1.1), lambda image: image.copy()],
    ids=["saved again", "resized", "brightened", "another format"],
)
def test_near_duplicates_are_found(tmp_path, edit):
    fill(tmp_path, "a", "b", count=30)
    save(tmp_path / "b" / "near.bmp", edit(Image.open(tmp_path / "a" / "7.png")))
    report = report_of(tmp_path)
    assert found(report) == {"near": ("note", ["a/7.png ~ b/near.bmp"])}
    assert report.twins == (("a/7.png", "b/near.bmp"),)


@pytest.mark.parametrize(
    ("size", "warns"),
    [((40, 30), False), ((60, 40), False), ((30, 50), False), ((160, 90), True), ((40, 200), True), ((1, 90), True)],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_images_of_which_the_centre_crop_leaves_out_much(tmp_path, size, warns, orientation):
    for label in "ab":
        fill(tmp_path, label)
        oriented(tmp_path / label / "long.png", picture(7 + ord(label), size), orientation)
    found = [finding for finding in report_of(tmp_path).findings if finding.kind == "cropped"]
    assert [finding.severity for finding in found] == ["warning"] * warns
    if warns:
        assert found[0].paths == ("a/long.png", "b/long.png")
        assert found[0].message.startswith("2 images so long that the centre crop leaves out more than 40 %")
        assert "--resize letterbox" in found[0].cure


def test_flat_and_recoloured_images_are_no_near_duplicates(tmp_path):
    fill(tmp_path, "a", "b", count=3)
    for grey in (100, 101, 102):
        save(tmp_path / "a" / f"flat{grey}.png", Image.new("RGB", (40, 32), (grey,) * 3))
    red, green, blue = picture(5).split()
    save(tmp_path / "a" / "colour.png", Image.merge("RGB", (red, green, blue)))
    save(tmp_path / "a" / "darker.png", picture(5).point(lambda value: value // 2))
    assert set(found(report_of(tmp_path))) == {"flat"}


def test_many_copies_and_many_alike_end(tmp_path):
    fill(tmp_path, "a", "b", count=3)
    content = (tmp_path / "a" / "0.png").read_bytes()
    for index in range(300):
        (tmp_path / "a" / f"copy{index}.png").write_bytes(content)
    report = report_of(tmp_path)
    assert [len(group) for group in report.twins] == [301]


def test_groups_with_a_common_member_are_joined():
    assert joined([]) == []
    assert joined([[5]]) == [[5]]
    assert joined([[7, 1], [4, 2], [9, 3, 4], [1, 8], []]) == [[1, 7, 8], [2, 3, 4, 9]]
    assert joined([["b", "c"], ["a"], ["c", "d"]]) == [["a"], ["b", "c", "d"]]


def test_the_cache_is_used_until_a_file_changes(tmp_path, monkeypatch):
    root, cache = fill(tmp_path / "data", "a", "b"), tmp_path / "cache"
    read = []
    really = probe.read_entry

    def noted(source, sample):
        read.append(sample.path)
        return really(source, sample)

    monkeypatch.setattr(probe, "read_entry", noted)
    first = report_of(root, cache)
    assert len(read) == 6
    read.clear()
    assert report_of(root, cache) == first
    assert read == []
    cut(root / "a" / "1.png")
    assert found(report_of(root, cache))["truncated"] == ("error", ["a/1.png"])
    assert read == ["a/1.png"]
    read.clear()
    (root / "a" / "1.png").write_bytes((root / "a" / "0.png").read_bytes())
    os.utime(root / "a" / "1.png", ns=(1, 1))
    assert report_of(root, cache).twins == (("a/0.png", "a/1.png"),)
    assert read == ["a/1.png"]
    # with another limit, no entry counts
    read.clear()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert len(unusable(report_of(root, cache).findings)) == 6
    assert len(read) == 6


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"head": 1}', b"\xff\x00", "entries", "size"])
def test_a_damaged_cache_is_passed_over(tmp_path, damage):
    root, cache = fill(tmp_path / "data", "a", "b"), tmp_path / "cache"
    expected = report_of(root, cache)
    (file,) = cache.iterdir()
    if damage == "entries":
        stored = json.loads(file.read_text())
        faults = iter([None, 7, [1], [*stored["entries"]["a/2.png"][:-1], "!"], {}, "text"])
        stored["entries"] = {path: next(faults) for path in stored["entries"]}
        damage = json.dumps(stored).encode()
    if damage == "size":  # possible, and untrue
        stored = json.loads(file.read_text())
        stored["entries"]["a/2.png"][2][3] += 1
        damage = json.dumps(stored).encode()
    file.write_bytes(damage)
    assert report_of(root, cache) == expected
    assert len(json.loads(file.read_text())["entries"]) == 6


def test_a_cache_that_cannot_be_written_or_lies_in_the_data(tmp_path):
    root = fill(tmp_path / "data", "a", "b")
    before = snapshot(root)
    (tmp_path / "file").touch()
    for cache in (tmp_path / "file", root, root / "a" / "cache"):
        assert report_of(root, cache).sound
    assert snapshot(root) == before


def test_the_user_cache_is_where_the_user_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    examine(find_source(str(fill(tmp_path / "data", "a", "b"))))
    (file,) = (tmp_path / "own" / "whatwhere").iterdir()
    assert file.suffix == ".json"
    assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0


def test_progress_ends_at_the_number_of_images(tmp_path):
    seen = []
    fill(tmp_path, "a", "b", count=40)
    examine(find_source(str(tmp_path)), cache=None, progress=lambda *numbers: seen.append(numbers))
    assert seen == [(64, 80), (80, 80)]


def test_a_built_in_set():
    report = examine(find_source("digits"), cache=None)
    assert report.sound
    assert report.counts["train"]["3"] == 92
    assert report.median_side == 8
    assert report.modes == {"L": 1797}
    assert len(found(report)["near-leak"][1]) < 5


def test_neither_listing_nor_examining_imports_torch(tmp_path):
    fill(tmp_path, "a", "b")
    # the package itself imports torch, so an empty one takes its place
    code = f"""
import sys, types
package = types.ModuleType("whatwhere")
package.__path__ = [{str(Path(probe.__file__).parents[2])!r}]
sys.modules["whatwhere"] = package
from whatwhere.data.sources.find import find_source
from whatwhere.data.doctor.findings import unusable
from whatwhere.data.doctor.report import examine
assert examine(find_source({str(tmp_path)!r}), cache=None).sound
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


@pytest.fixture
def sign_digits(images):
    return images / "sign-digits"


def test_different_photos_are_no_near_duplicates(sign_digits):
    report = examine(find_source(str(sign_digits)), cache=None)
    assert report.sound
    assert report.twins == ()


def test_classes_that_are_all_too_small_are_an_error_and_one_of_many_a_warning(tmp_path):
    fill(tmp_path / "all", "a", "b", count=1)
    fill(tmp_path / "one", "a", "b", count=5)
    fill(tmp_path / "one", "c", count=1)
    severities = []
    for name in ("all", "one"):
        report = report_of(tmp_path / name, tmp_path / "cache")
        severities.append([finding.severity for finding in report.findings if finding.kind == "few"])
    assert severities == [["error"], ["warning"]]


@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".gif", {}), (".tif", {}), (".png", {}), (".webp", {"lossless": True})],
)
def test_a_file_of_several_images_is_told(tmp_path, suffix, options):
    fill(tmp_path, "a", "b", count=3)
    several = tmp_path / "a" / f"several{suffix}"
    picture(7).save(several, save_all=True, append_images=[picture(8), picture(9)], **options)
    picture(10).save(tmp_path / "a" / f"one{suffix}", **options)
    (finding,) = report_of(tmp_path).findings
    assert (finding.severity, finding.kind, finding.paths) == ("warning", "several", (f"a/several{suffix}",))
    assert finding.message == "1 file with several images, as an animation or pages, of which only the first is used"


def test_damage_behind_the_first_image_of_a_file_is_no_fault(tmp_path):
    fill(tmp_path, "a", "b", count=3)
    several = tmp_path / "a" / "several.gif"
    picture(7).save(several, save_all=True, append_images=[picture(8)])
    first = tmp_path / "one.gif"
    picture(7).save(first)
    several.write_bytes(several.read_bytes()[: first.stat().st_size + 40])
    first.unlink()
    assert report_of(tmp_path).sound


def test_the_last_line_says_what_was_found(tmp_path):
    fill(tmp_path, "a", "b", count=3)
    (tmp_path / "notes.txt").touch()

    def last():
        return text(rich_tables(report_of(tmp_path).tables())).strip().splitlines()[-1].strip()

    assert last() == "The data are sound."
    picture(7).save(tmp_path / "a" / "really.jpg", format="PNG")
    assert last() == "No error; see the 1 warning above."
    (tmp_path / "b" / "wrong.png").write_bytes((tmp_path / "a" / "0.png").read_bytes())
    assert last() == "The data are not sound: each error would spoil a result."


def test_a_split_of_which_no_image_can_be_used_is_told(tmp_path):
    for path in fill(tmp_path, "train/a", "train/b", "test/a", "test/b").glob("test/*/*"):
        cut(path)
    assert "1 split of which no image can be used: test" in {item.message for item in report_of(tmp_path).findings}
