import shutil

import numpy as np
import pytest
from PIL import Image

from image_files import cut, fill, save
from whatwhere.data.split import fingerprint, prepare


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def refuses(refused):
    def check(data, **options):
        with refused() as caught:
            prepare(str(data), seed=0, **options)
        return str(caught.value)

    return check


def paths(prepared, part):
    return [sample.path for sample in prepared.parts[part]]


def test_a_folder_without_splits(tmp_path):
    root = fill(tmp_path / "data", "b", "a", count=20)
    prepared = prepare(str(root), seed=3)
    assert prepared.classes == ("a", "b")
    assert [len(prepared.parts[part]) for part in ("train", "val", "test")] == [28, 6, 6]
    assert (prepared.left_out, prepared.median_side, prepared.source.name) == ({}, 32, str(root))
    assert prepared.report.sound


def test_twins_are_kept_together(tmp_path):
    root = fill(tmp_path / "data", "a", "b", count=4)
    for index in range(8):
        (root / "a" / f"copy{index}.png").write_bytes((root / "a" / "0.png").read_bytes())
    for seed in range(5):
        parts = prepare(str(root), seed=seed).parts
        assert sorted(sum("copy" in sample.path for sample in samples) for samples in parts.values()) == [0, 0, 8]


def test_bad_images_stop_or_are_left_out(tmp_path, refuses):
    root = fill(tmp_path / "my data", "a", "b", count=10)
    for index in range(4):
        cut(root / "a" / f"{index}.png")
    (root / "b" / "0.png").write_bytes(b"")
    refuses(root)
    prepared = prepare(str(root), seed=0, skip_bad=True)
    assert prepared.left_out == dict.fromkeys([f"a/{index}.png" for index in range(4)], "truncated") | {
        "b/0.png": "empty"
    }
    assert sum(map(len, prepared.parts.values())) == 15


def test_skip_bad_keeps_the_test_set_whole(tmp_path, refuses):
    root = fill(tmp_path / "data", *(f"{part}/{c}" for part in ("train", "val", "test") for c in "ab"))
    for source, copies in {"test/a/0": ["train/b/copy", "val/a/copy"], "val/a/1": ["train/a/copy"]}.items():
        for copy in copies:
            (root / f"{copy}.png").write_bytes((root / f"{source}.png").read_bytes())
    refuses(root)
    prepared = prepare(str(root), seed=0, skip_bad=True)
    assert prepared.left_out == dict.fromkeys(("train/a/copy.png", "train/b/copy.png", "val/a/copy.png"), "leak")
    assert [len(prepared.parts[part]) for part in ("train", "val", "test")] == [6, 6, 6]


def test_what_leaving_out_does_not_mend(tmp_path, refuses):
    root = fill(tmp_path / "data", "train/a", "train/b", "test/a", "test/b", "test/c")
    assert "--skip-bad" not in refuses(root, skip_bad=True)
    # the only training image of c is a copy of a test image
    (root / "train" / "c").mkdir()
    (root / "train" / "c" / "0.png").write_bytes((root / "test" / "c" / "0.png").read_bytes())
    refuses(root, skip_bad=True)
    refuses(fill(tmp_path / "other", "train/a", "train/b", "test/c"), check=False)


def test_errors_of_the_listing_count_without_a_check(tmp_path, refuses):
    root = fill(tmp_path / "data", "a", "b", count=20)
    (root / "a" / "x.nef").touch()
    refuses(root, check=False)
    for check in (False, True):
        prepared = prepare(str(root), seed=0, check=check, skip_bad=True)
        assert sum(map(len, prepared.parts.values())) == 40
        assert prepared.left_out == {"a/x.nef": "convert"}


def test_without_a_check_only_headers_are_read(tmp_path):
    root = fill(tmp_path / "data", "a", "b", count=60)
    cut(root / "a" / "0.png", 0.9)
    prepared = prepare(str(root), seed=0, check=False)
    assert prepared.report is None
    assert prepared.median_side == 32
    assert not (tmp_path / "cache").exists()


def test_the_options_reach_the_split_and_the_list(tmp_path):
    root = fill(tmp_path / "data", "x", count=40)
    lines = [f"x/{index}.png,{'ab'[index % 2]}" for index in range(40)]
    (root / "list.csv").write_text("\n".join(["where,what", *lines]))
    prepared = prepare(
        str(root / "list.csv"),
        seed=0,
        val_fraction=0.3,
        test_fraction=0,
        group_from=r"x/(\d)",
        path_column="where",
        label_column="what",
    )
    assert paths(prepared, "test") == []
    groups = {part: {path[2] for path in paths(prepared, part)} for part in ("train", "val")}
    assert groups["train"] & groups["val"] == set()


def test_the_fingerprint_is_that_of_the_parts(tmp_path):
    root = fill(tmp_path / "data", "a", "b", count=10)
    first = fingerprint(prepare(str(root), seed=0))
    assert fingerprint(prepare(str(root), seed=0, check=False)) == first
    assert fingerprint(prepare(str(root), seed=1)) != first
    save(root / "a" / "\udcff.png")
    other = prepare(str(root), seed=0)
    assert fingerprint(other) != first
    assert len(first) == 64
    # neither the bytes of the images nor their order count
    reordered = {part: samples[::-1] for part, samples in other.parts.items()}
    changed = type(other)(other.source, other.classes, reordered, None, {}, 0)
    assert fingerprint(changed) == fingerprint(other)


@pytest.mark.parametrize(
    ("folders", "options", "drawn"),
    [
        ((), {}, ("val", "test")),
        (("train",), {}, ("val", "test")),
        (("train", "test"), {}, ("val",)),
        (("train", "val"), {}, ()),
        (("train", "val", "test"), {}, ()),
        ((), {"test_fraction": 0.0}, ("val",)),
    ],
)
def test_what_the_seed_drew_is_said(tmp_path, folders, options, drawn):
    root = fill(tmp_path / "data", *(f"{part}/{c}" for part in folders or (".",) for c in "ab"), count=8)
    prepared = prepare(str(root), seed=0, **options)
    assert prepared.drawn == drawn
    # another seed draws another part, and another train with it
    other = prepare(str(root), seed=1, **options)
    differ = {part for part in prepared.parts if prepared.parts[part] != other.parts[part]}
    assert differ == ({"train", *drawn} if drawn else set())


def test_the_digits_have_their_test_set():
    prepared = prepare("digits", seed=0)
    assert prepared.drawn == ("val",)
    assert len(prepared.parts["test"]) == 900
    assert len(prepared.parts["train"]) + len(prepared.parts["val"]) == 897
    assert prepared.classes == tuple("0123456789")


def scene(number, place):
    """A picture of a fixed camera: one scene, and a small thing somewhere."""
    coarse = np.random.default_rng(place).integers(0, 200, (4, 4, 3))
    pixels = coarse.repeat(8, 0).repeat(8, 1).astype(np.uint8)
    pixels[number % 8 : number % 8 + 2, number // 8 : number // 8 + 2] += 30
    return Image.fromarray(pixels)


def camera(root, places):
    for number, place in enumerate(places):
        folder = root / ("empty" if number % 2 else "there")
        folder.mkdir(parents=True, exist_ok=True)
        scene(number, place).save(folder / f"{number:02d}.png")
    return root


def test_pictures_of_a_fixed_camera_can_be_divided_freely(tmp_path, refuses):
    root = camera(tmp_path / "data", [0] * 40)
    refuses(root)
    prepared = prepare(str(root), seed=0, near_duplicates="free")
    assert [len(prepared.parts[part]) for part in ("train", "val", "test")] == [28, 6, 6]
    assert prepared.uneven == ""
    # copies stay together all the same
    for number in range(40, 48):
        shutil.copy(root / "there" / "00.png", root / "there" / f"{number}.png")
    prepared = prepare(str(root), seed=0, near_duplicates="free")
    copies = {f"there/{number}.png" for number in ("00", *range(40, 48))}
    assert sum(bool(copies & {sample.path for sample in part}) for part in prepared.parts.values()) == 1


def test_parts_that_groups_make_uneven_are_told(tmp_path):
    root = camera(tmp_path / "data", [number // 16 for number in range(48)])
    prepared = prepare(str(root), seed=0)
    assert prepared.uneven == (
        "groups of images that must stay in one part make the parts uneven: 16 val, 16 test images, instead of 7 and "
        "7; if they are pictures of one scene, as a fixed camera takes, train with --near-duplicates free"
    )
    assert prepare(str(root), seed=0, near_duplicates="free").uneven == ""


@pytest.mark.parametrize(("classes", "count"), [("ab", 3), ("abcdefghij", 3), ("ab", 20), ("abc", 7)])
def test_parts_that_whole_images_make_uneven_are_not_told(tmp_path, classes, count):
    assert prepare(str(fill(tmp_path / "data", *classes, count=count)), seed=0).uneven == ""
