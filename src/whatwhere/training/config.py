"""The options of a training run: their types and bounds, their defaults by images and steps, YAML. No torch here."""

# ruff: noqa: RUF009 - _option() returns a field

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from ..base.documents import read_yaml
from ..base.errors import UserError
from ..base.words import brief, number_in, option, suggest
from ..networks.spec import MAX_WIDTH_FACTOR, NetworkSpec, is_import_path, parse_arguments

SMALL_SIZE = 64  # up to here images are padded and cropped by whole pixels, above they are cropped at any scale
# the networks for CIFAR's 32 px keep the full resolution at first: at 64 px they take longer than the larger networks
CIFAR_SIZE = 48
FEW_STEPS, FLIP_STEPS = 2000, 1200  # up to the first there is less augmentation, above the second there are flips

_Positive = Annotated[int, Meta(ge=1, lt=2**31)]
_Count = Annotated[int, Meta(ge=0, lt=2**31)]
_Amount = Annotated[float, Meta(ge=0, lt=1e4)]  # above any sensible value, and safe in arithmetic
_Rate = Annotated[float, Meta(ge=0, lt=1)]
_Minutes = Annotated[float, Meta(ge=0, le=1e9)]
_Probability = Annotated[float, Meta(ge=0, le=1)]
# options that may differ between a run and its continuation: they change no result
FREE = frozenset({"data_dir", "device", "workers", "cache", "download", "check", "save_minutes", "tensorboard"})
_TYPED = frozenset({"data", "out", "resume", "config", "dry_run", "json"})  # what no YAML file may hold
# options that a comparison sets for each of its runs
TELLS_APART = frozenset({"model", "seed", "attention", "attention_kwargs", "width_factor"})
# options that runs and comparisons of earlier versions lack, with what these did
ADDED = {"near_duplicates": "together", "max_value": 65535, "resize": "crop", "split_column": "", "train_images": 0}


def _option(panel: str, default: Any, help: str, usual: str = "no", metavar: str | None = None) -> Any:
    """Return a dataclass field for an option with its text in `train --help`; `usual` is the default in words."""
    metadata = {"panel": panel, "help": f"{help} (default: {usual})", "metavar": metavar, "kind": type(default)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


_common, _recipe, _data, _machine = (partial(_option, panel) for panel in ("Common", "Recipe", "Data", "Machine"))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The options of `Trainer`.

    SGD with Nesterov momentum or AdamW; linear warm-up, then cosine decay to zero; no weight decay on parameters of
    fewer than two dimensions (norms, biases, scalars) and on those that `no_weight_decay` names. A batch is all images
    of a step, over all processes and pieces.

    Raises:
        UserError: An option out of its range.
    """

    epochs: _Positive = _common(40, "Passes over the training images.", "100; fine-tuning: 30")
    batch_size: _Positive = _common(
        25, "Images in a step, over all processes.", "128, above 64 px 64, less for few images"
    )
    lr: _Amount = _common(0.05, "Peak learning rate.", "0.1; above 64 px 0.025; by batch size, optimizer and start")
    optimizer: Literal["sgd", "adamw"] = _recipe("sgd", "sgd (Nesterov) or adamw.", "sgd")
    momentum: _Rate = _recipe(0.9, "Momentum of SGD.", "0.9")
    weight_decay: _Amount = _recipe(5e-4, "Weight decay; not on norms, biases and scalars.", "sgd 5e-4, adamw 0.05")
    warmup_epochs: _Amount = _recipe(3.0, "Epochs of linear rise.", "a tenth of all, at most 5")
    label_smoothing: _Rate = _recipe(0.0, "Part of the target spread over all classes.", "0.1")
    mixup: _Amount = _recipe(0.0, "Alpha of mixup, arXiv 1710.09412; 0 is off.", "0.1; few steps 0")
    cutmix: _Amount = _recipe(0.0, "Alpha of CutMix, arXiv 1905.04899; 0 is off.", "0")
    ema: _Rate = _recipe(0.0, "Decay of the averaged weights, which are evaluated and kept; 0 is off.", "0.998")
    clip_grad: _Amount = _recipe(0.0, "Largest norm of the gradient; 0 is off.", "0; adamw 1")
    accumulate: _Positive = _recipe(1, "Number of pieces that a batch is computed in: less memory, same step.", "1")
    early_stop: _Count = _recipe(0, "Stop after so many epochs without a better validation; 0 is off.", "0")
    class_weights: Literal["none", "balanced"] = _recipe(
        "none", "balanced: each class counts the same in the loss.", "none"
    )
    amp: Literal["none", "bf16", "fp16"] = _machine(
        "none", "Automatic mixed precision: none, bf16, fp16.", "bf16 on a GPU that has it"
    )
    channels_last: bool = _machine(False, "Memory format of the images.", "yes")

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            try:
                msgspec.convert(value, _KINDS[field.name])
            except (msgspec.ValidationError, OverflowError) as error:
                raise UserError(f"{field.name} must be {_expected(_KINDS[field.name])}, got {brief(value)}") from error
        for name in ("mixup", "cutmix"):
            if 0 < getattr(self, name) < 1e-3:  # torch's Beta distribution needs more
                raise UserError(f"{name} must be 0 or at least 0.001, got {brief(getattr(self, name))}")


@dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """All options of a training run: `run.json` keeps them, and a YAML file may set them by the same names.

    Raises:
        UserError: An option out of its range.
    """

    data: str = dataclasses.field(default="", metadata={"panel": "Data", "help": "", "metavar": None, "kind": str})
    model: str = _common(
        "",
        "Network: one of `whatwhere models`, or one of torchvision or timm by name.",
        "on a GPU cbam_resnext29_32x4d, above 48 px cbam_resnext50_32x4d; on a CPU cbam_resnet20, above 48 px "
        "cbam_resnet18",
    )
    attention: str = _recipe(
        "",
        "Attention to put into a plain network: cbam, se or another, or MODULE:NAME, your own code, which is imported.",
        "none",
    )
    attention_kwargs: dict[str, Any] = _recipe(
        {}, 'Keyword arguments of the attention, such as {"reduction": 8, "form": "timm"}.', "none", "JSON"
    )
    at: str = _recipe(
        "", "Where the attention stands: blocks, stages, or patterns of module names.", "its paper's place", "PLACE"
    )
    image_size: Annotated[int, Meta(ge=8, le=4096)] = _common(
        32, "Height and width of the network's input.", "by the images: 32 to 224"
    )
    seed: int = _common(0, "Seed of the start, the order, the augmentation and the split.", "0")
    workers: Annotated[int, Meta(ge=0, le=256)] = _common(
        0, "Threads that read images; they change no result.", "by the machine"
    )
    device: str = _common("cpu", "cpu, cuda, cuda:1, mps.", "the best there is")

    pretrained: str = _recipe(
        "", "Start from weights: `imagenet`, a file (.safetensors, .pth) or the folder of a run.", "none", "WEIGHTS"
    )
    width_factor: Annotated[float, Meta(gt=0, le=MAX_WIDTH_FACTOR)] = _recipe(
        1.0, "Factor on the width of all stages, for networks of equal size.", "1"
    )
    drop_rate: _Rate = _recipe(0.0, "Dropout before the classifier.", "0")
    drop_path_rate: _Rate = _recipe(0.0, "Stochastic depth, arXiv 1603.09382.", "0")
    resize: Literal["crop", "letterbox", "squash"] = _recipe(
        "crop",
        "How images become square: crop the centre, letterbox (all of it, the rest filled), squash (all of it, "
        "stretched).",
        "crop; after --pretrained BUNDLE, that of the bundle",
    )
    crop: Literal["pad", "resized"] = _recipe(
        "pad", "In training, pad: pad and crop; resized: crop of any scale.", "up to 64 px pad, else resized"
    )
    crop_scale: Annotated[float, Meta(gt=0, le=1)] = _recipe(
        0.35, "Smallest part of the area in a resized crop.", "0.35"
    )
    hflip: _Probability = _recipe(
        0.5, "Probability of a horizontal flip; 0 where left and right differ.", "0.5; few steps 0"
    )
    rand_augment: Annotated[int, Meta(ge=0, le=30)] = _recipe(
        0, "Magnitude of RandAugment, 0 (off) to 30, arXiv 1909.13719.", "5; above 64 px 7; few steps 3"
    )
    random_erasing: _Probability = _recipe(0.0, "Probability of random erasing, arXiv 1708.04896.", "0.1; few steps 0")
    best_by: Literal["accuracy", "balanced_accuracy", "loss", "last"] = _recipe(
        "accuracy", "How the best epoch is chosen: accuracy, balanced_accuracy, loss, or last.", "accuracy"
    )

    val_fraction: _Rate = _data(0.15, "Part held out to choose the epoch, if DATA has no val.", "0.15")
    test_fraction: _Rate = _data(0.15, "Part held out for the test, if DATA has no split.", "0.15")
    train_images: _Count = _data(
        0, "Train on so many images only, drawn by the seed, with as many fewer validation images; 0: all.", "0", "N"
    )
    group_from: str = _data("", "Pattern in the path; images with the same match stay together.", "none", "REGEX")
    near_duplicates: Literal["together", "free"] = _data(
        "together",
        "Images that are nearly the same: together in one part, or free, as pictures of a fixed camera should be.",
        "together",
    )
    max_value: Annotated[int, Meta(ge=1, le=65535)] | Literal["auto"] = _data(
        65535,
        "16-bit grey images: the value that is white, such as 4095 for a camera of 12 bits; auto: by the largest value "
        "of all images.",
        "65535",
        "N|auto",
    )
    skip_bad: bool = _data(False, "Leave out files and rows that the check finds bad.")
    check: bool = _data(True, "Check every image first (the result is kept).", "yes")
    cache: Literal["auto", "none", "memory", "device"] = _data(
        "auto", "Decoded images kept: none, memory, device (small images).", "auto: if they fit"
    )
    path_column: str = _data("", "Column of the paths in a CSV.", "by name", "NAME")
    label_column: str = _data("", "Column of the labels in a CSV.", "by name", "NAME")
    split_column: str = _data("", "Column of train, val and test in a CSV; none: no splits.", "by name", "NAME")
    data_dir: str = _data("", "Folder of torchvision's data sets.", "data", "DIR")
    download: bool = _data(False, "Download a torchvision dataset that is not there.")

    compile: bool = _machine(False, "torch.compile the network.")
    sync_bn: bool = _machine(False, "Norm statistics over all processes.")
    deterministic: bool = _machine(False, "Deterministic algorithms on a GPU too, slower.")
    save_minutes: _Minutes = _machine(10.0, "Minutes between checkpoints within an epoch.", "10")
    tensorboard: bool = _machine(False, "Write TensorBoard files too.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.skip_bad and not self.check:
            raise UserError("skip_bad needs the check, which finds the bad files; leave out --no-check")
        if self.max_value == "auto" and not self.check:
            raise UserError("max_value auto needs the check, which reads all images; leave out --no-check, or give N")
        if self.cache == "device" and self.crop != "pad":
            raise UserError("cache=device needs crop=pad, images of one size; give cache=memory")
        if self.best_by == "last" and self.early_stop:
            raise UserError("early_stop waits for a better epoch, and best_by=last compares none; give one of them")

    def network(self, num_classes: int = 1000) -> NetworkSpec:
        """Return the spec of the network that the run trains."""
        return network_of(vars(self), num_classes)


def network_of(options: Mapping[str, Any], num_classes: int = 1000) -> NetworkSpec:
    """Return the spec of the network that the options of a run name."""
    kept = {name: options[name] for name in ("attention", "attention_kwargs", "at", "width_factor") if name in options}
    return NetworkSpec(
        name=options["model"],
        **kept,
        num_classes=num_classes,
        model_kwargs={name: options[name] for name in ("drop_rate", "drop_path_rate") if options.get(name)},
    )


_KINDS = get_type_hints(Config, include_extras=True)
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}


def _expected(kind: Any) -> str:
    """Return a type in words: "a whole number of at least 1 and below 2**31"."""
    if get_origin(kind) is Literal:
        words = get_args(kind)
        return f"one of {', '.join(words)}" if len(words) > 1 else words[0]
    if get_origin(kind) is Union:
        return " or ".join(map(_expected, get_args(kind)))
    if get_origin(kind) is dict:
        return "keyword arguments such as {reduction: 8}"
    if get_origin(kind) is not Annotated:
        return _WORDS[kind]
    base, meta = get_args(kind)
    lower = f"above {meta.gt:g}" if meta.gt is not None else f"of at least {meta.ge:g}"
    upper = f"at most {meta.le:g}" if meta.le is not None else f"below {'2**31' if base is int else f'{meta.lt:g}'}"
    return f"{_WORDS[base]} {lower} and {upper}"


OPTIONS = {field.name: field for field in fields(Config) if field.name != "data"}
NUMBER_OR_AUTO = frozenset(name for name, kind in _KINDS.items() if get_origin(kind) is Union)
CHOICES = {name: get_args(kind) for name, kind in _KINDS.items() if get_origin(kind) is Literal}


def defaults(
    given: Mapping[str, Any], *, image_size: int, num_images: int, device: str, bf16: bool, num_cores: int
) -> dict[str, Any]:
    """Choose the options that are not in `given`, which are within their ranges, by images, start and machine.

    The network has CBAM, unless another attention is given for it. Up to 48 px it is one for small images, which keeps
    their resolution in its first stage; larger images get one whose first layers reduce them. At 64 px the first kind
    takes 1.7 times as long on a CPU (ResNet-20 beside ResNet-18), and on a GPU it has nine times the MACs. On a CPU it
    has no grouped convolutions, which are slow there: at 32 px ResNet-20 trains some twenty times as many images a
    second as ResNeXt-29.

    The batch size is 128 for images of at most 64 px, else 64. It is halved, down to 16, while an epoch has fewer than
    10 batches; with fewer than 16 training images it is their number.

    The learning rate at batch size 128 (above 64 px: 64) is 0.1 (0.025) for SGD and 5e-4 (2.5e-4) for AdamW; with
    pretrained weights and more than 2,000 steps it is a tenth. It is in proportion to the batch size, with one
    exception: a batch that is smaller because the images are few keeps the rate. The noise of SGD goes with lr *
    num_images / batch_size (Smith and Le, arXiv 1710.06451), so fewer images want a smaller batch at the same rate; a
    lower one learns little in few steps.

    A training with at most 2,000 steps has less augmentation: no mixup, no random erasing and RandAugment of magnitude
    3; with at most 1,200 steps no flips either. It learns more of the images themselves (`benchmarks/recipe.py`
    compares them).
    """
    small, pretrained = image_size <= SMALL_SIZE, bool(given.get("pretrained"))
    adamw = given.get("optimizer", "sgd") == "adamw"
    full = usual = 128 if small else 64
    while usual > 16 and num_images < 10 * usual:
        usual //= 2
    usual = max(1, min(usual, num_images))
    batch_size = given.get("batch_size", usual)
    epochs = given.get("epochs", 30 if pretrained else 100)
    steps = num_steps(epochs, batch_size, num_images)
    few = steps <= FEW_STEPS
    rate = (full / 256) * (1e-3 if adamw else 0.2 if small else 0.1) * (0.1 if pretrained and not few else 1)
    small_net, large_net = ("resnet20", "resnet18") if device == "cpu" else ("resnext29_32x4d", "resnext50_32x4d")
    backbone = small_net if image_size <= CIFAR_SIZE and not pretrained else large_net
    chosen = {
        "model": backbone if given.get("attention") else f"cbam_{backbone}",
        "image_size": image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": float(f"{rate * max(batch_size / full, min(1, batch_size / usual)):.4g}"),
        "optimizer": "sgd",
        "weight_decay": 0.05 if adamw else 5e-4,
        "warmup_epochs": min(5, epochs // 10),
        "label_smoothing": 0.1,
        "mixup": 0.0 if few else 0.1,
        "ema": 0.998,
        "clip_grad": 1.0 if adamw else 0.0,
        "crop": "pad" if small else "resized",
        "hflip": 0.0 if steps <= FLIP_STEPS else 0.5,
        "rand_augment": 3 if few else 5 if small else 7,
        "random_erasing": 0.0 if few else 0.1,
        "amp": "bf16" if device == "cuda" and bf16 else "none",
        "channels_last": True,
        "workers": max(0, min(8, num_cores - 1)) if device == "cuda" else min(2, num_cores - 1),
    }
    return {name: value for name, value in chosen.items() if name not in given}


def num_steps(epochs: int, batch_size: int, num_images: int) -> int:
    """Return the number of steps of a training: ceil(num_images / batch_size) in each epoch."""
    return epochs * math.ceil(num_images / batch_size)


def augmentation_in_words(config: Config, num_images: int) -> str:
    """Return which augmentation `defaults` chooses, and why, for `num_images` images to train on."""
    steps = num_steps(config.epochs, config.batch_size, num_images)
    if steps > FEW_STEPS:
        return f"usual augmentation for {steps:,} steps (above {FEW_STEPS:,})"
    if steps > FLIP_STEPS:
        return f"less augmentation for {steps:,} steps (at most {FEW_STEPS:,})"
    return f"less augmentation and no flips for {steps:,} steps (at most {FLIP_STEPS:,})"


def image_size_for(median_side: int) -> int:
    """Return the largest usual image size that is not above the median of the sides of the images.

    That is their shorter sides for `resize` "crop", else the longer ones: a letterbox would lose detail along them.
    """
    return max((size for size in (32, 64, 96, 128, 160, 192, 224) if size <= median_side), default=32)


def read_config(path: Path) -> dict[str, Any]:
    """Read options from a YAML file: a mapping from option names (with dashes or underscores) to values.

    Raises:
        UserError: No such file, not YAML, an unknown option, a value of the wrong type, or an attention by import path:
            whatwhere never imports code that a file names.
    """
    content = read_yaml(path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"the configuration {str(path)!r} must map options to values, such as `epochs: 100`")
    result = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name in _TYPED:
            typed = "DATA" if name == "data" else option(name)
            raise UserError(f"{brief(key)} in {str(path)!r} belongs on the command line; give {typed} there")
        if name not in OPTIONS:
            hint = suggest(name, list(OPTIONS)) or "; `whatwhere train --help` names them all"
            raise UserError(f"unknown option {brief(key)} in {str(path)!r}{hint}")
        if name in result:  # with a dash and with an underscore
            raise UserError(f"{name} is in {str(path)!r} twice; keep one of them")
        result[name] = _converted(name, value, path)
    if is_import_path(result.get("attention", "")):
        raise UserError(
            f"attention {brief(result['attention'])} in {str(path)!r} is an import path, and whatwhere never "
            "imports code that a file names; give --attention on the command line"
        )
    return result


def _converted(name: str, value: Any, path: Path) -> Any:
    kind = OPTIONS[name].metadata["kind"]
    if kind is dict and isinstance(value, str):  # as it stands on the command line
        return parse_arguments(value, f"{name} in {str(path)!r}:")
    # YAML reads an unquoted 7 as a number, and 1e-3 as text
    if kind in (str, float) and type(value) in (int, str):
        with contextlib.suppress(ValueError, OverflowError):
            return number_in(value) if kind is float and isinstance(value, str) else kind(value)
    if type(value) is not kind and not (name in NUMBER_OR_AUTO and value == "auto"):
        raise UserError(f"{name} in {str(path)!r} must be {_WORDS[kind]}, got {brief(value)}")
    return value
