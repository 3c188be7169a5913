"""The options of a training run: their types and bounds, their defaults by image size, YAML. No torch here."""

# ruff: noqa: RUF009 - option() returns a field

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from ..base.errors import UserError, is_number
from ..base.words import brief, cause, suggest
from ..networks.spec import MAX_WIDTH_FACTOR, NetworkSpec, is_import_path

SMALL_SIZE = 64  # up to here images are padded and cropped by whole pixels, above they are cropped at any scale

_Positive = Annotated[int, Meta(ge=1, lt=2**31)]
_Count = Annotated[int, Meta(ge=0, lt=2**31)]
_Amount = Annotated[float, Meta(ge=0, lt=1e4)]  # above any sensible value, and safe in arithmetic
_Rate = Annotated[float, Meta(ge=0, lt=1)]
_Minutes = Annotated[float, Meta(ge=0, le=1e9)]
_Probability = Annotated[float, Meta(ge=0, le=1)]
# options that may differ between a run and its continuation: they change no result
FREE = frozenset({"data_dir", "device", "workers", "cache", "download", "check", "save_minutes", "tensorboard"})
# options that a comparison sets for each of its runs
TELLS_APART = frozenset({"model", "seed", "attention", "attention_kwargs", "width_factor"})


def option(default: Any, panel: str, help: str, usual: str = "no", metavar: str | None = None) -> Any:
    """Return a dataclass field for an option with its text in `train --help`; `usual` is the default in words."""
    text = f"{help} (default: {usual})"
    metadata = {"panel": panel, "help": text, "metavar": metavar, "kind": type(default)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The options of `Trainer`.

    SGD with Nesterov momentum or AdamW; linear warm-up, then cosine decay to zero; no weight decay on parameters of
    fewer than two dimensions (norms, biases, scalars). A batch is all images of a step, over all processes and pieces.

    Raises:
        UserError: An option out of its range.
    """

    epochs: _Positive = option(40, "Common", "Passes over the training images.", "100; fine-tuning: 30")
    batch_size: _Positive = option(
        25, "Common", "Images in a step, over all processes.", "128, above 64 px 64, less for few images"
    )
    lr: _Amount = option(
        0.05, "Common", "Peak learning rate.", "in proportion to the batch size, by optimizer and start"
    )
    optimizer: Literal["sgd", "adamw"] = option("sgd", "Recipe", "sgd (Nesterov) or adamw.", "sgd")
    momentum: _Rate = option(0.9, "Recipe", "Momentum of SGD.", "0.9")
    weight_decay: _Amount = option(
        5e-4, "Recipe", "Weight decay; not on norms, biases and scalars.", "sgd 5e-4, adamw 0.05"
    )
    warmup_epochs: _Amount = option(3.0, "Recipe", "Epochs of linear rise.", "a tenth of all, at most 5")
    label_smoothing: _Rate = option(0.0, "Recipe", "Part of the target spread over all classes.", "0.1")
    mixup: _Amount = option(0.0, "Recipe", "Alpha of mixup, arXiv 1710.09412; 0 is off.", "0.1")
    cutmix: _Amount = option(0.0, "Recipe", "Alpha of CutMix, arXiv 1905.04899; 0 is off.", "0")
    ema: _Rate = option(
        0.0, "Recipe", "Decay of the averaged weights, which are evaluated and kept; 0 is off.", "0.998"
    )
    clip_grad: _Amount = option(0.0, "Recipe", "Largest norm of the gradient; 0 is off.", "0; adamw 1")
    accumulate: _Positive = option(
        1, "Recipe", "Number of pieces that a batch is computed in: less memory, same step.", "1"
    )
    early_stop: _Count = option(0, "Recipe", "Stop after so many epochs without a better validation; 0 is off.", "0")
    class_weights: Literal["none", "balanced"] = option(
        "none", "Recipe", "balanced: each class counts the same in the loss.", "none"
    )
    amp: Literal["none", "bf16", "fp16"] = option(
        "none", "Machine", "Automatic mixed precision: none, bf16, fp16.", "bf16 on a GPU that has it"
    )
    channels_last: bool = option(False, "Machine", "Memory format of the images.", "yes")

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
    model: str = option(
        "",
        "Common",
        "Network: one of `whatwhere models`, or one of torchvision or timm by name.",
        "on a GPU cbam_resnext29_32x4d, above 64 px cbam_resnext50_32x4d; on a CPU cbam_resnet20, above 64 px "
        "cbam_resnet18",
    )
    attention: str = option(
        "",
        "Recipe",
        "Attention to put into a plain network: cbam, se or another, or MODULE:NAME, your own code, which is imported.",
        "none",
    )
    attention_kwargs: dict[str, Any] = option(
        {}, "Recipe", 'Keyword arguments of the attention, such as {"reduction": 8, "form": "timm"}.', "none", "JSON"
    )
    at: str = option(
        "",
        "Recipe",
        "Where the attention stands: blocks, stages, or patterns of module names.",
        "its paper's place",
        "PLACE",
    )
    image_size: Annotated[int, Meta(ge=8, le=4096)] = option(
        32, "Common", "Height and width of the network's input.", "by the images: 32 to 224"
    )
    seed: int = option(0, "Common", "Seed of the start, the order, the augmentation and the split.", "0")
    workers: Annotated[int, Meta(ge=0, le=256)] = option(
        0, "Common", "Processes that read images; they change no result.", "by the machine"
    )
    device: str = option("cpu", "Common", "cpu, cuda, cuda:1, mps.", "the best there is")

    pretrained: str = option(
        "", "Recipe", "Start from weights: `imagenet`, or a file (.safetensors, .pth).", "none", "WEIGHTS"
    )
    width_factor: Annotated[float, Meta(gt=0, le=MAX_WIDTH_FACTOR)] = option(
        1.0, "Recipe", "Factor on the width of all stages, for networks of equal size.", "1"
    )
    drop_rate: _Rate = option(0.0, "Recipe", "Dropout before the classifier.", "0")
    drop_path_rate: _Rate = option(0.0, "Recipe", "Stochastic depth, arXiv 1603.09382.", "0")
    crop: Literal["pad", "resized"] = option(
        "pad", "Recipe", "pad: pad and crop; resized: crop of any scale.", "up to 64 px pad, else resized"
    )
    crop_scale: Annotated[float, Meta(gt=0, le=1)] = option(
        0.35, "Recipe", "Smallest part of the area in a resized crop.", "0.35"
    )
    hflip: _Probability = option(
        0.5, "Recipe", "Probability of a horizontal flip; 0 where left and right differ.", "0.5"
    )
    rand_augment: Annotated[int, Meta(ge=0, le=30)] = option(
        0, "Recipe", "Magnitude of RandAugment, 0 (off) to 30, arXiv 1909.13719.", "5; above 64 px 7"
    )
    random_erasing: _Probability = option(0.0, "Recipe", "Probability of random erasing, arXiv 1708.04896.", "0.1")
    best_by: Literal["accuracy", "balanced_accuracy", "loss", "last"] = option(
        "accuracy", "Recipe", "How the best epoch is chosen: accuracy, balanced_accuracy, loss, or last.", "accuracy"
    )

    val_fraction: _Rate = option(0.15, "Data", "Part held out to choose the epoch, if DATA has no val.", "0.15")
    test_fraction: _Rate = option(0.15, "Data", "Part held out for the test, if DATA has no split.", "0.15")
    group_from: str = option(
        "", "Data", "Pattern in the path; images with the same match stay together.", "none", "REGEX"
    )
    skip_bad: bool = option(False, "Data", "Leave out files that the check finds bad.")
    check: bool = option(True, "Data", "Check every image first (the result is kept).", "yes")
    cache: Literal["auto", "none", "memory", "device"] = option(
        "auto", "Data", "Decoded images kept: none, memory, device (small images).", "auto: if they fit"
    )
    path_column: str = option("", "Data", "Column of the paths in a CSV.", "by name", "NAME")
    label_column: str = option("", "Data", "Column of the labels in a CSV.", "by name", "NAME")
    data_dir: str = option("", "Data", "Folder of torchvision's data sets.", "data", "DIR")
    download: bool = option(False, "Data", "Download a torchvision dataset that is not there.")

    compile: bool = option(False, "Machine", "torch.compile the network.")
    sync_bn: bool = option(False, "Machine", "Norm statistics over all processes.")
    deterministic: bool = option(False, "Machine", "Deterministic algorithms on a GPU too, slower.")
    save_minutes: _Minutes = option(10.0, "Machine", "Minutes between checkpoints within an epoch.", "10")
    tensorboard: bool = option(False, "Machine", "Write TensorBoard files too.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.skip_bad and not self.check:
            raise UserError("skip_bad needs the check, which finds the bad files; leave out --no-check")
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


def _expected(kind: Any) -> str:
    """Return a type in words: "a whole number of at least 1 and below 2**31"."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is dict:
        return "keyword arguments such as {reduction: 8}"
    if get_origin(kind) is not Annotated:
        return {bool: "true or false", int: "a whole number", str: "text"}[kind]
    base, meta = get_args(kind)
    lower = f"above {meta.gt:g}" if meta.gt is not None else f"of at least {meta.ge:g}"
    upper = f"at most {meta.le:g}" if meta.le is not None else f"below {'2**31' if base is int else f'{meta.lt:g}'}"
    return f"{'a whole number' if base is int else 'a number'} {lower} and {upper}"


OPTIONS = {field.name: field for field in fields(Config) if field.name != "data"}
CHOICES = {name: get_args(kind) for name, kind in _KINDS.items() if get_origin(kind) is Literal}


def default_of(name: str) -> Any:
    """Return the default of an option in `Config`."""
    field = OPTIONS[name]
    return {} if field.metadata["kind"] is dict else field.default


def defaults(
    given: Mapping[str, Any],
    *,
    image_size: int,
    num_images: int,
    on_cpu: bool,
    on_gpu: bool,
    bf16: bool,
    num_cores: int,
) -> dict[str, Any]:
    """Choose the options that are not in `given` by images, start, optimizer and machine.

    The network has CBAM, unless another attention is given for it. On a CPU it has no grouped convolutions, which are
    slow there: at 32 px ResNet-20 trains some twenty times as many images a second as ResNeXt-29.

    The batch size is 128 for images of at most 64 px, else 64. It is halved, down to 16, while an epoch has fewer than
    10 batches.

    The learning rate is in proportion to the batch size. For SGD it is 0.1 at batch size 128 for images of at most
    64 px, else 0.1 at 256; for AdamW it is 1e-3 at 256. With pretrained weights it is a tenth.
    """
    small, pretrained = image_size <= SMALL_SIZE, bool(given.get("pretrained"))
    adamw = given.get("optimizer", "sgd") == "adamw"
    batch_size = 128 if small else 64
    while batch_size > 16 and num_images < 10 * batch_size:
        batch_size //= 2
    batch_size = given.get("batch_size", batch_size)
    rate_at_256 = 1e-3 if adamw else 0.2 if small else 0.1
    epochs = given.get("epochs", 30 if pretrained else 100)
    if on_cpu:
        backbone = "resnet20" if small and not pretrained else "resnet18"
    else:
        backbone = "resnext29_32x4d" if small and not pretrained else "resnext50_32x4d"
    chosen = {
        "model": backbone if given.get("attention") else f"cbam_{backbone}",
        "image_size": image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": float(f"{rate_at_256 * _number(batch_size) / 256 * (0.1 if pretrained else 1):.4g}"),
        "optimizer": "sgd",
        "weight_decay": 0.05 if adamw else 5e-4,
        "warmup_epochs": min(5, _number(epochs) // 10),
        "label_smoothing": 0.1,
        "mixup": 0.1,
        "ema": 0.998,
        "clip_grad": 1.0 if adamw else 0.0,
        "crop": "pad" if small else "resized",
        "rand_augment": 5 if small else 7,
        "random_erasing": 0.1,
        "amp": "bf16" if on_gpu and bf16 else "none",
        "channels_last": True,
        "workers": max(0, min(8, num_cores - 1)) if on_gpu else min(2, num_cores - 1),
    }
    return {name: value for name, value in chosen.items() if name not in given}


def _number(value: Any) -> Any:
    # Config refuses other values later
    return value if is_number(value) else 0


def image_size_for(median_side: int) -> int:
    """Return the largest usual image size that is not above the median of the shorter sides of the images."""
    return max((size for size in (32, 64, 96, 128, 160, 192, 224) if size <= median_side), default=32)


def read_config(path: Path) -> dict[str, Any]:
    """Read options from a YAML file: a mapping from option names (with dashes or underscores) to values.

    Raises:
        UserError: No such file, not YAML, an unknown option, a value of the wrong type, or an attention by import path:
            whatwhere never imports code that a file names.
    """
    import yaml

    if path.exists() and not path.is_file():
        raise UserError(f"the configuration {str(path)!r} is not a file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the configuration {str(path)!r}: {error.strerror}") from error
    # ValueError: not UTF-8, an impossible date, or a number of thousands of digits
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"the configuration {str(path)!r} is not YAML: {cause(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"the configuration {str(path)!r} must map options to values, such as `epochs: 100`")
    result = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in OPTIONS:
            hint = suggest(name, list(OPTIONS)) or "; `whatwhere train --help` names them all"
            raise UserError(f"unknown option {brief(key)} in {str(path)!r}{hint}")
        if name in result:
            raise UserError(f"{name} stands twice in {str(path)!r}, with dashes and with underscores")
        result[name] = _converted(name, value, path)
    if is_import_path(result.get("attention", "")):
        raise UserError(
            f"attention {brief(result['attention'])} in {str(path)!r} is an import path, and whatwhere never "
            "imports code that a file names; give --attention on the command line"
        )
    return result


def _converted(name: str, value: Any, path: Path) -> Any:
    kind = OPTIONS[name].metadata["kind"]
    if kind is float:
        # YAML 1.1 takes 1e-3 for text
        converted: Any = _parsed(float, value)
    elif kind is str:
        # YAML reads an unquoted `no` as false: only text and numbers are taken as text
        converted = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None
    else:
        converted = value if type(value) is kind else None
    if converted is None:
        kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}
        raise UserError(f"{name} in {str(path)!r} must be {kinds[kind]}, got {brief(value)}")
    return converted


def _parsed(kind: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, bool):
        return None
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        return None
