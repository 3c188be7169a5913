"""Data sets by name: scikit-learn's digits and torchvision's."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...base.errors import UserError
from ...base.words import cause, printable
from ..images import errors_of
from .source import Finding, Sample, Source, class_name

DEFAULT_DIR = "data"
NUM_DIGITS_TO_TRAIN = 897

_Splits = Mapping[str, Mapping[str, Any]]
_TRAIN_FLAG: _Splits = {"train": {"train": True}, "test": {"train": False}}
_TRAIN_TEST: _Splits = {"train": {"split": "train"}, "test": {"split": "test"}}
_TRAIN_VAL_TEST: _Splits = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
_WHOLE: _Splits = {"all": {}}
# class of torchvision.datasets -> its arguments for each split
SPLITS_OF: dict[str, _Splits] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "QMNIST", "USPS"), _TRAIN_FLAG),
    **dict.fromkeys(("SVHN", "STL10", "Food101", "GTSRB", "StanfordCars"), _TRAIN_TEST),
    **dict.fromkeys(("Flowers102", "DTD", "FGVCAircraft", "PCAM", "RenderedSST2"), _TRAIN_VAL_TEST),
    **dict.fromkeys(("EuroSAT", "SUN397", "Caltech101", "Caltech256"), _WHOLE),
    "Country211": {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "Imagenette": {"train": {"split": "train"}, "val": {"split": "val"}},
}
# torchvision creates these folders even if it downloads nothing
_FOLDERS = {"Caltech101": "caltech101", "Caltech256": "caltech256"}
DATASETS = {name.lower(): name for name in SPLITS_OF}


@dataclass(frozen=True)
class BuiltInSource(Source):
    """Images of a library's data set, by split: `images[split][index]` is an image, or a tuple that begins with one."""

    images: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def open(self, sample: Sample) -> Image.Image:
        """Return the image of a sample.

        Raises:
            ImageError: The library cannot read its file.
        """
        split, index = sample.path.split("/")
        with errors_of(sample.path):
            item: Any = self.images[split][int(index)]
            if isinstance(item, tuple):
                item = item[0]
            return item if isinstance(item, Image.Image) else Image.fromarray(item)

    def content(self, sample: Sample) -> bytes:
        """Return the mode, size and pixels of a sample as bytes.

        Raises:
            ImageError: The library cannot read its file.
        """
        image = self.open(sample)
        # some data sets open a file and leave it to the caller to decode it
        with errors_of(sample.path):
            return f"{image.mode} {image.size} ".encode() + image.tobytes()


def sklearn_digits() -> Any:
    """Return scikit-learn's digits: `images` (1797, 8, 8) with 17 grey levels from 0 to 16, and `target` (1797,).

    The file is ordered by writer: the first `NUM_DIGITS_TO_TRAIN` images and the others have but one or two writers in
    common.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise UserError("the digits come with scikit-learn: pip install 'whatwhere[demo]'") from error
    return load_digits()


def digits_source(name: str) -> Source:
    """Return scikit-learn's digits: 8x8, grey; 897 in train, 900 by other writers in test."""
    digits = sklearn_digits()
    pixels = (digits.images * (255 / 16)).round().astype("uint8")
    labels = [str(label) for label in digits.target]
    parts = {"train": slice(NUM_DIGITS_TO_TRAIN), "test": slice(NUM_DIGITS_TO_TRAIN, None)}
    samples = _samples({split: labels[part] for split, part in parts.items()})
    return BuiltInSource(name, None, samples, (), {split: pixels[part] for split, part in parts.items()})


def torchvision_source(name: str, key: str, data_dir: str | None, download: bool) -> Source:
    """Return torchvision's data set `key` of `DATASETS`, from the folder `data_dir`.

    Raises:
        UserError: It is not there and `download` is off, or the download fails.
    """
    dataset = DATASETS[key]
    folder = Path(os.path.expanduser(DEFAULT_DIR if data_dir is None else data_dir))
    sets = {split: _load(dataset, folder, options, download) for split, options in SPLITS_OF[dataset].items()}
    by_split = {split: _labels(part) for split, part in sets.items()}
    where = printable(str(folder))
    finding = Finding("note", "built-in", f"{dataset} is read by torchvision from the folder {where}")
    return BuiltInSource(name, None, _samples(by_split), (finding,), sets)


def _samples(by_split: Mapping[str, Sequence[str]]) -> tuple[Sample, ...]:
    samples = [
        Sample(f"{split}/{index:0{max(5, len(str(len(labels))))}d}", label, None if split == "all" else split)
        for split, labels in by_split.items()
        for index, label in enumerate(labels)
    ]
    return tuple(sorted(samples, key=lambda sample: sample.path))


def _load(dataset: str, folder: Path, options: Mapping[str, Any], download: bool) -> Any:
    from torchvision import datasets

    make = getattr(datasets, dataset)
    where = printable(str(folder))
    if (folder / _FOLDERS.get(dataset, "")).is_dir():
        try:
            return make(str(folder), **options)
        except ModuleNotFoundError as error:
            raise UserError(f"{dataset} needs a package that is not installed: pip install {error.name}") from error
        except Exception as error:  # reading damaged files may raise anything
            is_absent = isinstance(error, (RuntimeError, OSError)) and "is not found" not in str(error)
            if not is_absent or "h5py" in str(error):
                raise UserError(f"{dataset} cannot be read: {cause(error)}") from error
            # missing, or incomplete
    if not download:
        raise UserError(
            f"{dataset} is not in the folder {where}, where torchvision would look for it; give "
            "its folder with --data-dir, or fetch it with --download"
        )
    try:
        # torchvision prints as it unpacks, and standard output is for the result
        with contextlib.redirect_stdout(sys.stderr):
            folder.mkdir(parents=True, exist_ok=True)
            return make(str(folder), download=True, **options)
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(
            f"{dataset} could not be downloaded to {where} ({cause(error)}); put its files there, "
            "or give another folder with --data-dir"
        ) from error


def _labels(dataset: Any) -> list[str]:
    """Return the class name of each image; without decoding the images if the data set has a known list of labels."""
    name = next((name for name in ("targets", "labels", "_labels", "y") if hasattr(dataset, name)), None)
    held = getattr(dataset, name) if name else (item[1] for item in getattr(dataset, "_samples", dataset))
    # QMNIST has eight numbers for an image: the first is its digit
    indices = [int(label if np.ndim(label) == 0 else label[0]) for label in held]
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    if names is None:
        width = len(str(max(indices, default=0)))
        return [f"{index:0{width}d}" for index in indices]
    # Imagenette names a class by its synonyms
    texts = [class_name(str(name[0] if isinstance(name, (tuple, list)) else name)) for name in names]
    unique = [text if texts.count(text) == 1 else f"{text} ({index})" for index, text in enumerate(texts)]
    return [unique[index] for index in indices]
