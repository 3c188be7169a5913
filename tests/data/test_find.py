import gzip
import os
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from image_files import bomb, cut, fill, picture, save
from whatwhere.base.errors import UserError
from whatwhere.base.words import printable, spelling, spelt_alike
from whatwhere.data.doctor.report import examine
from whatwhere.data.images import ImageError
from whatwhere.data.sources.find import find_source
from whatwhere.data.sources.named import DATASETS, SPLITS_OF, BuiltInSource
from whatwhere.data.sources.source import Sample, class_name, split_of
from whatwhere.data.split import prepare


def listed(source):
    return [(sample.path, sample.label, sample.split) for sample in source.samples]


def found(source):
    return {finding.kind: finding.paths for finding in source.findings}


@pytest.fixture
def refuses(refused):
    def check(data, **options):
        with refused() as caught:
            find_source(str(data), **options)
        return str(caught.value)

    return check


def csv_file(folder, text, name="list.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def test_class_folders(tmp_path):
    fill(tmp_path, "dog", "cat", count=2)
    source = find_source(str(tmp_path))
    assert listed(source) == [
        ("cat/0.png", "cat", None),
        ("cat/1.png", "cat", None),
        ("dog/0.png", "dog", None),
        ("dog/1.png", "dog", None),
    ]
    assert (source.name, source.root, source.findings, source.splits) == (str(tmp_path), tmp_path, (), ())
    with source.open(source.samples[0]) as image:
        assert image.size == (40, 32)
    assert source.content(source.samples[0]) == (tmp_path / "cat/0.png").read_bytes()


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train", "val", "test"), ("train", "val", "test")),
        (("Training", "VALIDATION", "Testing"), ("train", "val", "test")),
        (("trn", "dev", "tst"), ("train", "val", "test")),
        (("training_set", "test-set"), ("train", "test")),
        (("train", "valid"), ("train", "val")),
    ],
)
def test_split_folders_in_the_usual_spellings(tmp_path, names, splits):
    fill(tmp_path, *(f"{name}/{label}" for name in names for label in ("a", "b")), count=1)
    source = find_source(str(tmp_path))
    assert source.splits == splits
    expected = sorted((f"{name}/{c}/0.png", c, s) for name, s in zip(names, splits, strict=True) for c in "ab")
    assert listed(source) == expected


def test_two_spellings_of_one_split_are_refused(tmp_path, refuses):
    fill(tmp_path, "train/a", "val/a", "Valid/a", count=1)
    refuses(tmp_path)


def test_a_class_called_train_is_a_class(tmp_path):
    fill(tmp_path, "bus", "train", count=1)
    assert listed(find_source(str(tmp_path))) == [("bus/0.png", "bus", None), ("train/0.png", "train", None)]


def test_split_folders_without_classes_are_refused(tmp_path, refuses):
    fill(tmp_path, "train", "val", count=1)
    refuses(tmp_path)


def test_folders_beside_splits_are_left_out_aloud(tmp_path):
    fill(tmp_path, "train/a", "train/b", "extra/a", "test", count=1)
    (tmp_path / "empty").mkdir()
    source = find_source(str(tmp_path))
    assert source.splits == ("train",)
    assert len(source.samples) == 2
    assert found(source) == {"beside": ("extra", "test")}
    assert source.findings[0].severity == "warning"


def test_a_wrapper_is_gone_into(tmp_path):
    fill(tmp_path, "outer/inner/a", "outer/inner/b", "__MACOSX/inner/a", count=1)
    save(tmp_path / "__MACOSX" / "._inner.jpg")
    source = find_source(str(tmp_path))
    assert [path for path, _, _ in listed(source)] == ["outer/inner/a/0.png", "outer/inner/b/0.png"]
    assert [finding.kind for finding in source.findings] == ["hidden", "wrapper", "wrapper"]
    assert {finding.severity for finding in source.findings} == {"note"}


def test_a_wrapper_around_splits_and_a_lone_train_folder(tmp_path):
    fill(tmp_path, "set/train/a", "set/train/b", count=1)
    assert find_source(str(tmp_path)).splits == ("train",)
    assert find_source(str(tmp_path / "set")).splits == ("train",)
    assert find_source(str(tmp_path / "set" / "train")).splits == ()


def test_nested_folders_belong_to_the_class(tmp_path):
    fill(tmp_path, "a", "a/x/y", "b/train", "b/val", count=1)
    source = find_source(str(tmp_path))
    assert [label for _, label, _ in listed(source)] == ["a", "a", "b", "b"]
    assert found(source) == {"nested": ("a/x/y", "b/train", "b/val"), "split-in-class": ("b/train", "b/val")}


@pytest.mark.parametrize("above", ["", "train/"])
def test_folders_that_come_back_in_every_class_may_be_the_classes(tmp_path, above):
    fill(tmp_path, *(f"{above}fold{n}/{name}" for n in (1, 2) for name in ("cat", "dog", f"only{n}")), count=1)
    source = find_source(str(tmp_path))
    assert {label for _, label, _ in listed(source)} == {"fold1", "fold2"}
    assert found(source)["regrouped"] == (f"{above}fold1/cat", f"{above}fold1/dog")
    (finding,) = (finding for finding in source.findings if finding.kind == "regrouped")
    assert finding.severity == "warning"
    assert "if they are the classes, put them at the top" in finding.sentence()
    # an image beside them says that the folder is a class
    fill(tmp_path, f"{above}fold2", count=1)
    assert "regrouped" not in found(find_source(str(tmp_path)))


def test_what_is_left_out_is_named(tmp_path):
    fill(tmp_path, "a", "b", count=1)
    save(tmp_path / "stray.jpg")
    save(tmp_path / "a" / ".hidden.jpg")
    save(tmp_path / "a" / ".ipynb_checkpoints" / "copy.png")
    save(tmp_path / "a" / "@eaDir" / "thumb.jpg")
    save(tmp_path / "a" / "nameless", format="PNG")
    save(tmp_path / "a" / "wrong.dat", format="JPEG")
    bomb(tmp_path / "a" / "bomb")
    for name in ("a/IMG_1.CR2", "a/x.nef", "a/Thumbs.db", "LICENSE", "b/notes.txt", "b/labels.json"):
        (tmp_path / name).write_bytes(b"something")
    (tmp_path / "c").mkdir()
    os.mkfifo(tmp_path / "b" / "pipe.jpg")
    source = find_source(str(tmp_path))
    assert [path for path, _, _ in listed(source)] == ["a/0.png", "b/0.png"]
    assert found(source) == {
        "convert": ("a/IMG_1.CR2", "a/x.nef"),
        "suffix": ("a/bomb", "a/nameless", "a/wrong.dat"),
        "stray": ("stray.jpg",),
        "empty-class": ("c",),
        "special": ("b/pipe.jpg",),
        "hidden": ("a/.hidden.jpg", "a/.ipynb_checkpoints", "a/@eaDir"),
        "other": ("LICENSE", "a/Thumbs.db", "b/labels.json", "b/notes.txt"),
    }
    assert [finding.severity for finding in source.findings] == ["error"] + ["warning"] * 4 + ["note"] * 2


def test_suffixes_in_any_case(tmp_path):
    names = ["1.JPG", "2.Jpeg", "3.jpe", "4.JFIF", "5.PNG", "6.bmp", "7.gif", "8.webp", "9.tif", "a.TIFF", "b.ppm"]
    for name in [*names, "c.pgm", "d.PBM"]:
        save(tmp_path / "a" / name, format="PNG")
    assert len(find_source(str(tmp_path)).samples) == 13


def test_links_are_followed_once(tmp_path):
    fill(tmp_path / "data", "a", "b", count=1)
    fill(tmp_path, "elsewhere", count=1)
    (tmp_path / "data/c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/a/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/a/self").symlink_to(tmp_path / "data/a")
    (tmp_path / "data/b/deep").mkdir()
    (tmp_path / "data/b/deep/x").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/b/deep/y").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/b/gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "data/b/file.png").symlink_to(tmp_path / "elsewhere/0.png")
    source = find_source(str(tmp_path / "data"))
    paths = ["a/0.png", "b/0.png", "b/deep/x/0.png", "b/file.png", "c/0.png"]
    assert [path for path, _, _ in listed(source)] == paths
    assert found(source)["link"] == ("a/loop", "a/self", "b/deep/y", "b/gone.png")


def test_links_between_many_folders_end(tmp_path):
    names = [f"n{index}" for index in range(12)]
    fill(tmp_path, *(f"{top}/{name}" for top in ("a", "b") for name in names), count=1)
    for name in names:
        for other in names:
            if other != name:
                (tmp_path / "a" / name / other).symlink_to(tmp_path / "a" / other)
    assert len({label for _, label, _ in listed(find_source(str(tmp_path)))}) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems take no such names")
def test_names_that_are_not_utf8(tmp_path):
    fill(tmp_path, "a", "b\udcff", count=1)
    save(tmp_path / "a" / "x\udce9.png")
    source = find_source(str(tmp_path))
    assert [label for _, label, _ in listed(source)] == ["a", "a", "b\\xff"]
    with source.open(source.samples[1]) as image:
        assert image.size == (40, 32)
    printable(source.samples[1].path).encode()


def test_an_accent_stored_in_two_ways_is_one_class(tmp_path):
    fill(tmp_path, "train/caf\u00e9", "val/cafe\u0301", "train/b", "val/b", count=1)
    assert {label for _, label, _ in listed(find_source(str(tmp_path)))} == {"b", "caf\u00e9"}
    assert class_name("a\x1b[31m") == "a\\x1b[31m"
    assert class_name("a\u202egpj.exe") == "a\\u202egpj.exe"
    assert class_name("\u0645\u200c\u0627") == "\u0645\u200c\u0627"


@pytest.mark.parametrize("name", ["train", "TRAIN ", "training", "Train Data"])
def test_spellings(name):
    assert split_of(name) == "train"
    assert split_of("trains") is None


def test_folders_without_anything_to_train_on(tmp_path, refuses):
    refuses(tmp_path)
    save(tmp_path / "a.png")
    refuses(tmp_path)


def test_nothing_fits(tmp_path, monkeypatch, refuses):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    refuses("picture")
    csv_file(tmp_path, "", "a_index.csv")
    refuses("a_index.cvs")
    refuses("CIFAR-10")
    refuses("torchvision/FashionMNST")
    refuses("")
    refuses("no\0path")
    refuses("~nobody-of-this-name/photos")
    (tmp_path / "a.zip").touch()
    refuses("a.zip")
    (tmp_path / "a.npy").touch()
    refuses("a.npy")
    refuses("pictures", label_column="y")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_files(tmp_path, delimiter, mark, end):
    fill(tmp_path, "x", count=2)
    lines = [("Image", "Class", "Split"), ("x/0.png", "cat, tabby; grey", "Training"), ("./x//1.png", "dog", "val")]
    text = end.join(delimiter.join(f'"{cell}"' for cell in line) for line in lines)
    source = find_source(str(csv_file(tmp_path, mark + text)))
    assert listed(source) == [("x/0.png", "cat, tabby; grey", "train"), ("x/1.png", "dog", "val")]
    assert source.root == tmp_path
    assert [finding.kind for finding in source.findings] == ["columns"]


def test_csv_paths_elsewhere(tmp_path):
    fill(tmp_path, "x", "lists", count=1)
    here, there = tmp_path / "lists" / "0.png", tmp_path / "x" / "0.png"
    text = f"path\tlabel\n{here}\ta\n{there}\tb\n..\\x\\0.png\tb\n"
    source = find_source(str(csv_file(tmp_path / "lists", text, "list.tsv")))
    assert {label: source.file(sample).resolve() for sample in source.samples for label in [sample.label]} == {
        "a": here,
        "b": there,
    }
    assert source.samples[-1].path == "0.png"


def test_csv_faults_are_named_with_their_lines(tmp_path):
    fill(tmp_path, "x", count=6)
    rows = [
        "x/0.png,a,train",
        "x/none.png,a,train",
        ",a,train",
        "x/1.png, ,train",
        "",
        "x/0.png,a,train",
        "x/2.png,a,train",
        "x/2.png,b,train",
        "x/3.png,a,train",
        "x/3.png,a,test",
        "x/4.png,a,fold1",
        "x/5.png,a,train,more",
    ]
    source = find_source(str(csv_file(tmp_path, "file,target,subset\n" + "\n".join(rows))))
    assert listed(source) == [("x/0.png", "a", "train"), ("x/3.png", "a", "test")]
    assert found(source) == {
        "missing": ("x/none.png (line 3)",),
        "no-path": ("line 4",),
        "no-label": ("x/1.png (line 5)",),
        "row": ("x/5.png (line 13)",),
        "bad-split": ("x/4.png (line 12)",),
        "two-labels": ("x/2.png (line 8: a; line 9: b)",),
        "two-splits": ("x/3.png (line 10: train; line 11: test)",),
        "repeated": ("x/0.png (lines 2, 7)",),
        "empty-class": ("b",),
        "columns": (),
    }
    assert [finding.severity for finding in source.findings] == [*["error"] * 7, "note", "warning", "note"]


def test_all_rows_of_an_image_under_several_labels_are_named(tmp_path):
    fill(tmp_path, "x", count=3)
    rows = ["x/0.png,a", "x/1.png,a", "x/0.png,b", "./x/0.png,a", "x/0.png,c", "x/2.png,b"]
    source = find_source(str(csv_file(tmp_path, "path,label\n" + "\n".join(rows))))
    assert found(source)["two-labels"] == ("x/0.png (lines 2, 5: a; line 4: b; line 6: c)",)
    assert listed(source) == [("x/1.png", "a", None), ("x/2.png", "b", None)]


SPELT = [
    ("cat", "Cat", "CAT"),
    ("hot dog", "hot_dog", "Hot-Dog"),
    ("0", "0.0", "00", "\uff10"),
    ("caf\u00e9", "CAFE\u0301"),
    ("cat", "c\u200bat"),
    ("none", "None"),
]
APART = [("0", "1", "10", "-1"), ("A-", "A"), ("c", "c++", "c#"), ("1.5", "15"), ("v1.0", "v1"), ("", "0")]


@pytest.mark.parametrize("names", SPELT)
def test_spellings_of_one_name(names):
    assert spelt_alike([*names, "other"]) == [sorted(names)]
    assert len({spelling(name) for name in names}) == 1


@pytest.mark.parametrize("names", APART)
def test_names_that_are_not_alike(names):
    assert spelt_alike(names) == []


@given(st.text())
def test_a_spelling_has_one_key(name):
    assert spelling(spelling(name)) == spelling(name)
    assert spelling(f" {name}") == spelling(name)


def test_labels_spelt_in_several_ways_are_told(tmp_path):
    """The rows of the table of cats and dogs that were six classes in silence."""
    fill(tmp_path, "x", count=10)
    labels = ["cat", "Cat", "dog", "dog", "cat", "CAT ", "cat", "Dog", "dog ", "bird"]
    text = "".join(f"x/{number}.png,{label}\n" for number, label in enumerate(labels))
    source = find_source(str(csv_file(tmp_path, f"file,label\n{text}")))
    assert found(source)["spelling"] == (
        "CAT (1 image) = Cat (1 image) = cat (3 images)",
        "Dog (1 image) = dog (3 images)",
    )
    finding = next(finding for finding in source.findings if finding.kind == "spelling")
    assert finding.severity == "warning"
    assert "give images of one class one spelling" in finding.sentence()


def test_class_folders_spelt_in_two_ways_are_told(tmp_path):
    fill(tmp_path, "train/cat", "train/Cat", "train/dog", "test/cat", "test/dog", count=1)
    assert found(find_source(str(tmp_path)))["spelling"] == ("Cat (1 image) = cat (2 images)",)


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "-nan", "<NA>", "NaT", "#N/A"])
def test_what_programs_write_for_a_missing_label_is_no_class(tmp_path, cell):
    fill(tmp_path, "x", count=3)
    source = find_source(str(csv_file(tmp_path, f"path,label\nx/0.png,a\nx/1.png,{cell}\nx/2.png,b\n")))
    assert [label for _, label, _ in listed(source)] == ["a", "b"]
    assert found(source)["no-label"] == ("x/1.png (line 3)",)
    assert "without a label in the column 'label'" in {item.kind: item for item in source.findings}["no-label"].message
    assert next(finding for finding in source.findings if finding.kind == "no-label").severity == "error"


@pytest.mark.parametrize("name", ["none", "None", "NA", "n/a", "null"])
def test_a_class_that_may_be_a_missing_label_is_told(tmp_path, name):
    fill(tmp_path, "x", count=3)
    source = find_source(str(csv_file(tmp_path, f"path,label\nx/0.png,a\nx/1.png,{name}\nx/2.png,b\n")))
    assert name in [label for _, label, _ in listed(source)]
    assert found(source)["missing-label"] == (f"{name} (1 image)",)


def test_a_class_folder_that_a_program_named_nan_is_told(tmp_path):
    fill(tmp_path, "a", "b", "nan", "None", count=1)
    assert found(find_source(str(tmp_path)))["missing-label"] == ("None (1 image)", "nan (1 image)")


def test_the_columns_that_were_taken_are_told(tmp_path):
    fill(tmp_path, "x", count=1)
    source = find_source(str(csv_file(tmp_path, "id,Image,class,label,Split\n7,x/0.png,a,b,train\n")))
    (note,) = source.findings
    assert (note.severity, note.kind) == ("note", "columns")
    assert note.sentence() == (
        "CSV file: paths from the column 'Image', labels from 'label', splits from 'Split'; "
        "others with --path-column, --label-column and --split-column"
    )
    source = find_source(str(csv_file(tmp_path, "Image,class,label\nx/0.png,a,b\n")), label_column="class")
    assert source.findings[0].message.endswith("labels from 'class'; no column of splits")


@pytest.mark.parametrize(
    ("header", "options", "expected"),
    [
        ("path,set", {"label_column": "set"}, ("x/0.png", "cat", None)),
        ("path,Dataset,split", {"label_column": "dataset"}, ("x/0.png", "cat", "train")),
        ("subset,label", {"path_column": "subset"}, ("x/0.png", "cat", None)),
        ("photo,image", {"label_column": "image"}, ("x/0.png", "cat", None)),
        # the labels have no known name, but a known name of paths
        ("image_id,y", {"path_column": "image_id"}, ("x/0.png", "cat", None)),
    ],
)
def test_a_column_is_taken_once(tmp_path, header, options, expected):
    fill(tmp_path, "x", count=1)
    row = ",".join(("x/0.png", "cat", "train")[: len(header.split(","))])
    assert listed(find_source(str(csv_file(tmp_path, f"{header}\n{row}\n")), **options)) == [expected]


@pytest.mark.parametrize(
    ("lines", "lost"),
    [
        ({2: 'a/1.png,a,"5 inch'}, None),  # to the end of the file
        ({2: 'a/1.png,"a,x'}, None),
        ({2: 'a/1.png,a,5"" wide "or so"'}, {}),  # quotes inside a cell without quotes are letters
        ({2: 'a/1.png,a,"two', 4: 'a/3.png,a,three"'}, {"break": ("line 4",)}),
        ({2: 'a/1.png,"a', 4: 'x",a,three'}, {"quote": ("line 4",)}),
        ({2: '"a/1.png', 4: 'x",a,three'}, {"quote": ("line 4",)}),
    ],
)
def test_a_quote_too_many_swallows_no_row_in_silence(tmp_path, lines, lost):
    fill(tmp_path, "a", "b")
    for number in range(6):
        picture(number).save(tmp_path / "a" / f"{number}.png")
    rows = ["path,label,note", *(lines.get(line, f"a/{line - 1}.png,a,x") for line in range(2, 7)), "b/0.png,b,x"]
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    if lost is None:
        with pytest.raises(UserError, match=r"line 7 of .* is not CSV: unexpected end of data"):
            find_source(str(tmp_path / "list.csv"))
        return
    source = find_source(str(tmp_path / "list.csv"))
    assert {kind: paths for kind, paths in found(source).items() if kind != "columns"} == lost
    assert {sample.label for sample in source.samples} == {"a", "b"}


def test_csv_columns_by_name(tmp_path, refuses):
    fill(tmp_path, "x", count=1)
    path = csv_file(tmp_path, "where,what\nx/0.png,a\n")
    refuses(path)
    refuses(path, path_column="where")
    refuses(path, path_column="where", label_column="whot")
    assert listed(find_source(str(path), path_column="Where", label_column="what")) == [("x/0.png", "a", None)]


@pytest.mark.parametrize("header", ["path,label,label", "Path,path,label", "path,label,Split,split"])
def test_csv_columns_of_one_name_are_refused(tmp_path, header, refuses):
    fill(tmp_path, "x", count=1)
    refuses(csv_file(tmp_path, f"{header}\nx/0.png,a,train,test\n"))


def test_a_first_line_with_an_image_is_no_header(tmp_path):
    fill(tmp_path, "x", count=2)
    file = csv_file(tmp_path, "x/0.png,a\nx/1.PNG,b\n")
    for options in ({}, {"path_column": "x/0.png", "label_column": "a"}):
        with pytest.raises(UserError, match=r"has no header: its first line names an image, 'x/0\.png'; write a line"):
            find_source(str(file), **options)


def test_csv_files_that_cannot_be_used(tmp_path, refuses):
    refuses(csv_file(tmp_path, ""))
    refuses(csv_file(tmp_path, "path,label\n"))
    refuses(csv_file(tmp_path, "path,label\nx,y\n"))
    refuses(csv_file(tmp_path, "path,label\n\xe9,y\n", encoding="latin-1"))
    refuses(csv_file(tmp_path, "path,label\n" + "x" * 200_000 + ",y\n"))


SPLIT = "path,label,{}\nx/0.png,a,{}\nx/1.png,b,{}\nx/2.png,b,{}\nx/3.png,a,{}\n"


def parts(source):
    return [split for _, _, split in listed(source)]


@pytest.mark.parametrize("name", ["phase", "mode", "type", "fold", "train_test", "X"])
def test_the_column_of_splits_is_known_by_its_cells(tmp_path, name):
    fill(tmp_path, "x", count=4)
    path = csv_file(tmp_path, SPLIT.format(name, "train", "Validation", "test", "train"))
    source = find_source(str(path))
    assert parts(source) == ["train", "val", "test", "train"]
    assert source.findings[-1].message.endswith(f"splits from '{name}'")
    source = find_source(str(path), split_column="none")
    assert parts(source) == [None] * 4
    assert [finding.kind for finding in source.findings] == ["columns"]


def test_a_column_of_one_split_only_is_none(tmp_path):
    fill(tmp_path, "x", count=4)
    source = find_source(str(csv_file(tmp_path, SPLIT.format("vehicle", "train", "train", "", "train"))))
    assert (parts(source), len(source.findings)) == ([None] * 4, 1)


def test_several_columns_of_splits_are_refused(tmp_path, refuses):
    fill(tmp_path, "x", count=4)
    path = csv_file(tmp_path, SPLIT.format("phase,fold", "train,val", "val,train", "test,test", "train,train"))
    refuses(path)
    refuses(path, split_column="folds")
    assert parts(find_source(str(path), split_column="Fold")) == ["val", "train", "test", "train"]


@pytest.mark.parametrize(
    ("name", "others", "expected"),
    [
        ("set", ("val", "train", "test", "train"), ["val", "train", "test", "train"]),
        ("dataset", ("ours", "ours", "theirs", "ours"), ["train", "val", "test", "train"]),
    ],
)
def test_a_known_name_counts_before_the_cells_if_it_holds_splits(tmp_path, name, others, expected):
    fill(tmp_path, "x", count=4)
    rows = [f"{first},{second}" for first, second in zip(("train", "val", "test", "train"), others, strict=True)]
    assert parts(find_source(str(csv_file(tmp_path, SPLIT.format(f"phase,{name}", *rows))))) == expected


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("is_train", ("True", "False", "True", "True")),
        ("isTest", ("0", "1", "0", "1")),
        ("train", ("yes", "no", "yes", "")),
        ("test_set", ("1.0", "0.0", "0.0", "1.0")),
        ("phase", ("train", "holdout", "test", "train")),
    ],
)
def test_a_column_that_may_hold_the_splits_is_told(tmp_path, name, cells):
    fill(tmp_path, "x", count=4)
    path = csv_file(tmp_path, SPLIT.format(name, *cells))
    source = find_source(str(path))
    assert parts(source) == [None] * 4
    assert source.findings[0].sentence() == (
        "ignored 1 column that may hold the splits, but in other words than train, val and test: "
        f"{name}; write these words, or give --split-column none"
    )
    assert "no-split" not in found(find_source(str(path), split_column="none"))


def test_columns_of_figures_are_no_splits(tmp_path):
    fill(tmp_path, "x", count=4)
    for name, cells in (("train_loss", "0123"), ("is_male", "0110"), ("is_train", "1111")):
        assert "no-split" not in found(find_source(str(csv_file(tmp_path, SPLIT.format(name, *cells)))))


def test_words_that_are_no_splits_are_shown_and_lost_splits_told(tmp_path, refuses):
    fill(tmp_path, "x", count=4)
    path = csv_file(tmp_path, SPLIT.format("split", "train", "holdout", "2", "") + "x/9.png,a,test\n")
    faults = {finding.kind: finding for finding in find_source(str(path)).findings}
    assert faults["bad-split"].message == (
        "3 rows of the CSV file (all that have 'holdout', '2', '' in the column 'split' instead of train, val or test)"
    )
    assert faults["empty-split"].message == "1 split of the CSV file without a row that can be used: test"
    path = csv_file(tmp_path, SPLIT.format("split", "train", "holdout", "2", ""))
    with pytest.raises(UserError, match="'holdout', '2', ''"):
        prepare(str(path), seed=0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("C:\\Users\\me\\x\\0.png", "foreign"),
        ("d:/x/0.png", "foreign"),
        ("\\\\server\\x\\0.png", "foreign"),
        ("/home/nobody/x/0.png", "foreign"),
        ("X/0.PNG", "case"),
        ("x\\0.PNG", "case"),
        ("x/../X/0.Png", "case"),
        ("x/0.PNG/x", "missing"),
        ("x/7.png", "missing"),
    ],
)
def test_a_path_without_a_file_is_told_why(tmp_path, name, kind):
    fill(tmp_path, "x", count=4)
    path = csv_file(tmp_path, f"path,label\n{name},a\nx/1.png,b\n")
    if (tmp_path / "X").exists():
        pytest.skip("upper and lower case are one here")
    first = find_source(str(path)).findings[0]
    assert (first.kind, first.paths) == (kind, (f"{name} (line 2)",))
    if kind == "case":
        assert "such as 'x/0.png'; write the paths as the files are named" in first.sentence()
    if kind == "foreign":
        assert "as if of another machine; write the paths relative to the CSV file's folder" in first.sentence()


def test_an_empty_column_of_splits_is_none(tmp_path):
    fill(tmp_path, "x", count=1)
    source = find_source(str(csv_file(tmp_path, "path,label,split\nx/0.png,a,\n")))
    assert listed(source) == [("x/0.png", "a", None)]


def test_the_digits(monkeypatch, tmp_path, refuses):
    monkeypatch.chdir(tmp_path)
    source = find_source("digits")
    assert source.root is None
    assert [sum(sample.split == split for sample in source.samples) for split in ("train", "test")] == [897, 900]
    sample = next(item for item in source.samples if item.path == "test/00012")
    from sklearn.datasets import load_digits

    assert sample.label == str(load_digits().target[909])
    image = source.open(sample)
    assert (image.mode, image.size) == ("L", (8, 8))
    assert np.abs(np.asarray(image) / 255 * 16 - load_digits().images[909]).max() < 0.04
    (tmp_path / "digits").mkdir()
    refuses("digits")


def mnist(folder, name="MNIST"):
    """Write a data set in MNIST's format with 4 training and 2 test images."""
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    for prefix, labels in (("train", [3, 1, 3, 0]), ("t10k", [1, 9])):
        images = np.arange(len(labels) * 784, dtype=np.uint32).astype(np.uint8)
        head = struct.pack(">4I", 0x803, len(labels), 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, len(labels)) + bytes(labels))
        (raw / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(b""))
    return folder


@pytest.mark.parametrize("name", ["mnist", "torchvision/MNIST", "torchvision:Mnist"])
def test_a_torchvision_data_set(tmp_path, name):
    source = find_source(name, data_dir=str(mnist(tmp_path)))
    assert listed(source) == [
        ("test/00000", "1 - one", "test"),
        ("test/00001", "9 - nine", "test"),
        ("train/00000", "3 - three", "train"),
        ("train/00001", "1 - one", "train"),
        ("train/00002", "3 - three", "train"),
        ("train/00003", "0 - zero", "train"),
    ]
    image = source.open(source.samples[3])
    assert (image.mode, image.size, image.getpixel((1, 0))) == ("L", (28, 28), 17)
    assert source.content(source.samples[0]) != source.content(source.samples[1])


def test_the_check_that_is_advised_finds_the_same_table(tmp_path, refused):
    fill(tmp_path, "x", count=2)
    text = "photo,kind,split\nx/0.png,a,train\nx/1.png,b,test\n"
    with refused():
        prepare(str(csv_file(tmp_path, text)), seed=0, path_column="photo", label_column="kind")


def test_a_torchvision_data_set_of_files(tmp_path):
    fill(tmp_path / "eurosat" / "2750", "River", "Forest", count=2)
    source = find_source("eurosat", data_dir=str(tmp_path))
    assert listed(source)[0] == ("all/00000", "Forest", None)
    assert source.splits == ()
    assert source.open(source.samples[0]).size == (40, 32)


def test_a_damaged_file_of_a_torchvision_data_set_is_named_and_can_be_left_out(tmp_path, refused):
    fill(tmp_path / "eurosat" / "2750", "River", "Forest", count=9)
    cut(save(tmp_path / "eurosat" / "2750" / "Forest" / "9.jpg", seed=3))
    source = find_source("eurosat", data_dir=str(tmp_path))
    sample = source.samples[9]
    for read in (source.open, source.content):
        with pytest.raises(ImageError, match="all/00009 is cut short") as caught:
            read(sample)
        assert caught.value.kind == "truncated"
    findings = examine(source, cache=None).findings
    assert [finding.paths for finding in findings if finding.severity == "error"] == [("all/00009",)]
    with refused():
        prepare("eurosat", seed=0, data_dir=str(tmp_path))
    prepared = prepare("eurosat", seed=0, data_dir=str(tmp_path), skip_bad=True)
    assert prepared.left_out == {"all/00009": "truncated"}


def test_a_damaged_file_that_a_data_set_opens_only(tmp_path):
    """Caltech101 leaves the decoding to the caller."""
    cut(save(tmp_path / "a.bmp", seed=3))
    with Image.open(tmp_path / "a.bmp") as image:
        source = BuiltInSource("set", None, (Sample("all/0", "a", None),), (), {"all": [image]})
        with pytest.raises(ImageError, match="all/0 is cut short"):
            source.content(source.samples[0])


def test_qmnist_has_eight_numbers_for_an_image(tmp_path):
    raw = tmp_path / "QMNIST" / "raw"
    raw.mkdir(parents=True)
    for split, labels in (("train", [3, 1]), ("test", [9])):
        images = np.arange(len(labels) * 784, dtype=np.uint32).astype(np.uint8)
        head = struct.pack(">4I", 0x803, len(labels), 28, 28)
        (raw / f"qmnist-{split}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        rows = np.array([[label, 4, 8, 8, 8, 8, 0, 0] for label in labels], ">i4")
        (raw / f"qmnist-{split}-labels-idx2-int").write_bytes(struct.pack(">3I", 0xC02, *rows.shape) + rows.tobytes())
    source = find_source("qmnist", data_dir=str(tmp_path))
    assert [sample.label for sample in source.samples] == ["9 - nine", "3 - three", "1 - one"]


def test_a_torchvision_data_set_with_an_empty_file_is_a_sentence(tmp_path, refuses):
    raw = mnist(tmp_path) / "MNIST" / "raw"
    (raw / "train-labels-idx1-ubyte").write_bytes(b"")
    refuses("mnist", data_dir=str(tmp_path))


def test_a_torchvision_data_set_that_is_not_there(tmp_path, monkeypatch, refuses):
    monkeypatch.chdir(tmp_path)
    refuses("cifar10")
    for name in sorted(set(DATASETS) - {"pcam"}):  # which first asks for h5py
        refuses(name, data_dir=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_fails(tmp_path, monkeypatch, capsys, refuses):
    from torchvision import datasets

    def fail(*_, download=False, **__):
        print("Downloading ...")
        raise RuntimeError("Error downloading" if download else "Dataset not found")

    monkeypatch.setattr(datasets, "KMNIST", fail)
    refuses("kmnist", data_dir=str(tmp_path / "new"), download=True)
    assert capsys.readouterr().out == ""


def test_every_named_data_set_takes_its_arguments():
    import inspect

    from torchvision import datasets

    assert set(DATASETS.values()) == set(SPLITS_OF)
    for name, splits in SPLITS_OF.items():
        parameters = inspect.signature(getattr(datasets, name)).parameters
        for options in splits.values():
            assert name == "QMNIST" or set(options) <= set(parameters)


def test_sources_can_be_sent_to_another_process(tmp_path):
    fill(tmp_path, "a", "b", count=1)
    mnist(tmp_path / "sets")
    for source in (
        find_source(str(tmp_path / "a" / "..")),
        find_source("digits"),
        find_source("mnist", data_dir=str(tmp_path / "sets")),
    ):
        copy = pickle.loads(pickle.dumps(source))
        assert copy.samples == source.samples
        with copy.open(copy.samples[-1]) as image, source.open(source.samples[-1]) as original:
            assert image.tobytes() == original.tobytes()


def test_a_link_to_itself_costs_nothing_but_itself(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(3):
            save(tmp_path / label / f"{number}.png")
    (tmp_path / "a" / "1a.jpg").symlink_to(tmp_path / "a" / "1b.jpg")
    (tmp_path / "a" / "1b.jpg").symlink_to(tmp_path / "a" / "1a.jpg")
    source = find_source(str(tmp_path))
    assert [sample.path for sample in source.samples] == [
        f"{label}/{number}.png" for label in "ab" for number in range(3)
    ]
    assert {finding.kind: finding.paths for finding in source.findings} == {"link": ("a/1a.jpg", "a/1b.jpg")}


LAYOUTS = {  # the folders of pictures, and the table beside them
    "flat": ((".",), "labels.csv"),
    "one folder": (("images",), "labels.csv"),
    "split folders": (("train", "test"), "train.csv"),
    "a wrapper": (("set/images",), "set/labels.tsv"),
    "elsewhere": (("../pictures",), "labels.csv"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_table_beside_images_is_named_as_what_to_give(tmp_path, layout, monkeypatch):
    folders, table = LAYOUTS[layout]
    monkeypatch.chdir(tmp_path)  # a long path would lose its middle in the sentence
    root = Path("data")
    fill(root, *folders, count=8)
    csv_file(root, "path,label\n", "test.csv")
    beside = [os.path.relpath(root / folder, (root / table).parent) for folder in folders]
    rows = [f"{folder}/{number}.png,{'ab'[number % 2]}" for folder in beside for number in range(8)]
    delimiter = "\t" if table.endswith("tsv") else ","
    csv_file(root, "\n".join(["path,label", *rows]).replace(",", delimiter), table)
    with pytest.raises(UserError) as caught:
        prepare(str(root), seed=0)
    assert str(root / table) in str(caught.value)
    assert prepare(str(root / table), seed=0).parts["train"]


def test_what_a_folder_without_images_holds_is_told(tmp_path, refuses):
    (tmp_path / "photos.zip").write_bytes(b"PK\3\4")
    refuses(tmp_path)
    save(tmp_path / "a" / "1.dat", format="PNG")
    refuses(tmp_path)


def test_an_archive_beside_images_is_told(tmp_path):
    fill(tmp_path, "a", "b", count=1)
    (tmp_path / "more.tar.gz").touch()
    assert found(find_source(str(tmp_path))) == {"archive": ("more.tar.gz",)}


def test_a_beginning_of_an_image_is_not_called_an_image_with_another_suffix(tmp_path):
    """Parts of downloads, and texts that begin as a BMP does."""
    fill(tmp_path, "a", "b", count=1)
    (tmp_path / "a" / "x.png.part").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "a" / "notes").write_text("BMW")
    assert found(find_source(str(tmp_path))) == {"other": ("a/notes", "a/x.png.part")}
