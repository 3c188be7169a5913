"""What a training run is: every option, its default by image size, YAML, and the check of each value. No torch here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..base.errors import UserError, check_factor, check_integer, is_number
from ..base.words import brief, cause, suggest
from ..networks.spec import MAX_WIDTH_FACTOR, NetworkSpec, is_import_path

_LARGE = 1e4  # beyond the range of any sensible value, within that of all arithmetic with it
SMALL_SIZE = 64  # up to here images are padded and cropped by whole pixels, above they are cropped at any scale
CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "amp": ("none", "bf16", "fp16"),
    "crop": ("pad", "resized"),
    "class_weights": ("none", "balanced"),
    "cache": ("auto", "none", "memory", "device"),
    "best_by": ("accuracy", "balanced_accuracy", "loss", "last"),
}
# what may differ between a run and its continuation: where it runs and how it is watched, not what it computes
FREE = frozenset({"data_dir", "device", "workers", "cache", "download", "check", "save_minutes", "tensorboard"})


# what tells the runs of a comparison apart, which chooses it for each
TELLS_APART = frozenset({"model", "seed", "attention", "attention_kwargs", "width_factor"})


def option(default: Any, panel: str, help: str, usual: str = "no", metavar: str | None = None) -> Any:
    """Return a dataclass field for an option with what `train --help` says of it, `usual` being the default."""
    text = f"{help} (default: {usual})"
    metadata = {"panel": panel, "help": text, "metavar": metavar, "kind": type(default)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained; `loop.Trainer` takes it.

    SGD with Nesterov momentum or AdamW, linear warm-up, then cosine decay to zero; no decay on norms, biases, gates'
    scalars. A batch is what one step sees, over all processes and all pieces of `accumulate`.

    Raises:
        UserError: An option out of its range.
    """

    epochs: int = option(40, "Common", "Passes over the training images.", "100; fine-tuning: 30")
    batch_size: int = option(
        25, "Common", "Images a step, over all processes.", "128, above 64 px 64, fewer of few images"
    )
    lr: float = option(0.05, "Common", "Peak learning rate.", "in proportion to the batch size, by optimizer and start")
    optimizer: str = option("sgd", "Recipe", "sgd (Nesterov) or adamw.", "sgd")
    momentum: float = option(0.9, "Recipe", "Momentum of SGD.", "0.9")
    weight_decay: float = option(5e-4, "Recipe", "On weights; never norms, biases, scalars.", "sgd 5e-4, adamw 0.05")
    warmup_epochs: float = option(3.0, "Recipe", "Epochs of linear rise.", "a tenth of all, at most 5")
    label_smoothing: float = option(0.0, "Recipe", "Share of the target spread over all classes.", "0.1")
    mixup: float = option(0.0, "Recipe", "Alpha of mixup, arXiv 1710.09412; 0 is off.", "0.1")
    cutmix: float = option(0.0, "Recipe", "Alpha of CutMix, arXiv 1905.04899; 0 is off.", "0")
    ema: float = option(0.0, "Recipe", "Decay of the averaged weights, which are then what is kept; 0 is off.", "0.998")
    clip_grad: float = option(0.0, "Recipe", "Largest norm of the gradient; 0 is off.", "0; adamw 1")
    accumulate: int = option(1, "Recipe", "Compute a batch in so many pieces: less memory, same step.", "1")
    early_stop: int = option(0, "Recipe", "Stop after so many epochs without a better validation; 0 is off.", "0")
    class_weights: str = option("none", "Recipe", "balanced: each class counts the same in the loss.", "none")
    amp: str = option("none", "Machine", "Automatic mixed precision: none, bf16, fp16.", "bf16 on a GPU that has it")
    channels_last: bool = option(False, "Machine", "Memory format of the images.", "yes")

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name in CHOICES and getattr(self, field.name) not in CHOICES[field.name]:
                value = getattr(self, field.name)
                raise UserError(f"{field.name} must be one of {', '.join(CHOICES[field.name])}, got {brief(value)}")
        for name in ("epochs", "batch_size", "accumulate"):
            check_integer(name, getattr(self, name))
        check_integer("early_stop", self.early_stop, least=0)
        _check_range("lr", self.lr, 0, _LARGE)
        _check_range("momentum", self.momentum, 0, 1)
        _check_range("ema", self.ema, 0, 1)
        _check_range("label_smoothing", self.label_smoothing, 0, 1)
        for name in ("weight_decay", "warmup_epochs", "mixup", "cutmix", "clip_grad"):
            _check_range(name, getattr(self, name), 0, _LARGE)
        for name in ("mixup", "cutmix"):
            if 0 < getattr(self, name) < 1e-3:  # torch's Beta distribution ends there
                raise UserError(f"{name} must be 0 or at least 0.001, got {brief(getattr(self, name))}")


@dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """A training run in full: what `run.json` keeps, and what a YAML file may set under the same names.

    Raises:
        UserError: An option out of its range.
    """

    data: str = dataclasses.field(default="", metadata={"panel": "Data", "help": "", "metavar": None, "kind": str})
    model: str = option(
        "",
        "Common",
        "Network: ours (see `whatwhere models`), or one of torchvision or timm by name.",
        "cbam_resnext29_32x4d, above 64 px cbam_resnext50_32x4d",
    )
    attention: str = option(
        "",
        "Recipe",
        "For a plain network (the default is then plain): cbam, se or another, or MODULE:NAME, code of yours that is "
        "imported.",
        "none",
    )
    attention_kwargs: dict[str, Any] = option(  # noqa: RUF009 - a field
        {}, "Recipe", 'Keyword arguments of the attention, such as {"reduction": 8, "form": "timm"}.', "none", "JSON"
    )
    at: str = option(
        "",
        "Recipe",
        "Where that attention stands: blocks, stages, or patterns of module names.",
        "its paper's place",
        "PLACE",
    )
    image_size: int = option(32, "Common", "Height and width that the network sees.", "by the images: 32 to 224")
    seed: int = option(0, "Common", "Fixes start, order, augmentation and split.", "0")
    workers: int = option(0, "Common", "Processes that read images; they change no result.", "by the machine")
    device: str = option("cpu", "Common", "cpu, cuda, cuda:1, mps.", "the best there is")

    pretrained: str = option(
        "", "Recipe", "Start from weights: `imagenet`, or a file (.safetensors, .pth).", "none", "WEIGHTS"
    )
    width_factor: float = option(1.0, "Recipe", "All stages so many times as wide, for networks of equal size.", "1")
    drop_rate: float = option(0.0, "Recipe", "Dropout before the classifier.", "0")
    drop_path_rate: float = option(0.0, "Recipe", "Stochastic depth, arXiv 1603.09382.", "0")
    crop: str = option(
        "pad", "Recipe", "pad: pad and crop; resized: crop of any scale.", "up to 64 px pad, else resized"
    )
    crop_scale: float = option(0.35, "Recipe", "Least share of the area that a resized crop shows.", "0.35")
    hflip: float = option(0.5, "Recipe", "Probability of a horizontal flip; 0 where left and right differ.", "0.5")
    rand_augment: int = option(
        0, "Recipe", "Magnitude of RandAugment, 0 (off) to 30, arXiv 1909.13719.", "5; above 64 px 7"
    )
    random_erasing: float = option(0.0, "Recipe", "Probability of random erasing, arXiv 1708.04896.", "0.1")
    best_by: str = option(
        "accuracy", "Recipe", "Chooses the epoch: by its accuracy, balanced_accuracy, loss, or the last.", "accuracy"
    )

    val_fraction: float = option(0.15, "Data", "Share held out for choosing the epoch where DATA has no val.", "0.15")
    test_fraction: float = option(0.15, "Data", "Share held out for the end where DATA has no split at all.", "0.15")
    group_from: str = option(
        "", "Data", "Pattern in the path; images that share its match stay in one part.", "none", "REGEX"
    )
    skip_bad: bool = option(False, "Data", "Leave out files that the check finds bad.")
    check: bool = option(True, "Data", "Check every image first (the result is kept).", "yes")
    cache: str = option(
        "auto", "Data", "Decoded images kept: none, memory, device (small images).", "auto: if they fit"
    )
    path_column: str = option("", "Data", "Column of the paths in a CSV.", "by name", "NAME")
    label_column: str = option("", "Data", "Column of the labels in a CSV.", "by name", "NAME")
    data_dir: str = option("", "Data", "Folder of torchvision's data sets.", "data", "DIR")
    download: bool = option(False, "Data", "Download a torchvision dataset that is not there.")

    compile: bool = option(False, "Machine", "torch.compile the network.")
    sync_bn: bool = option(False, "Machine", "Norm statistics over all processes.")
    deterministic: bool = option(False, "Machine", "Deterministic algorithms on a GPU too, slower.")
    save_minutes: float = option(10.0, "Machine", "Minutes between checkpoints within an epoch.", "10")
    tensorboard: bool = option(False, "Machine", "Write TensorBoard files too.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in fields(self):
            if field.metadata["kind"] is str and not isinstance(getattr(self, field.name), str):
                raise UserError(f"{field.name} must be text, got {brief(getattr(self, field.name))}")
        check_integer("image_size", self.image_size)
        if not 8 <= self.image_size <= 4096:
            raise UserError(f"image_size must be from 8 to 4096 pixels, got {self.image_size}")
        check_integer("workers", self.workers, least=0)
        if self.workers > 256:
            raise UserError(f"workers must be at most 256, about as many as there are cores, got {self.workers}")
        kwargs = self.attention_kwargs
        if not isinstance(kwargs, dict) or not all(isinstance(name, str) for name in kwargs):
            raise UserError(f"attention_kwargs must be keyword arguments such as {{reduction: 8}}, got {brief(kwargs)}")
        if self.skip_bad and not self.check:
            raise UserError("skip_bad needs the check, which finds the bad files; leave out --no-check")
        check_integer("rand_augment", self.rand_augment, least=0)
        for name in ("drop_rate", "drop_path_rate", "val_fraction", "test_fraction"):
            _check_range(name, getattr(self, name), 0, 1)
        for name in ("hflip", "random_erasing", "crop_scale"):
            _check_range(name, getattr(self, name), 0, math.nextafter(1, 2))
        _check_range("save_minutes", self.save_minutes, 0, math.inf)
        check_factor("width_factor", self.width_factor, MAX_WIDTH_FACTOR)
        if self.rand_augment > 30:
            raise UserError(f"rand_augment is a magnitude from 0 to 30, got {self.rand_augment}")
        if self.crop_scale == 0:
            raise UserError("crop_scale must be above 0: the least share of the area that a crop shows")
        if self.cache == "device" and self.crop != "pad":
            raise UserError("cache=device needs crop=pad, images of one size; give cache=memory")
        if self.best_by == "last" and self.early_stop:
            raise UserError("early_stop waits for a better epoch, and best_by=last compares none; give one of them")

    def network(self, num_classes: int = 1000) -> NetworkSpec:
        """Return the description of the network that the run trains."""
        return network_of(vars(self), num_classes)


def network_of(options: Mapping[str, Any], num_classes: int = 1000) -> NetworkSpec:
    """Return the description of the network that the options of a run name."""
    kept = {name: options[name] for name in ("attention", "attention_kwargs", "at", "width_factor") if name in options}
    return NetworkSpec(
        name=options["model"],
        **kept,
        num_classes=num_classes,
        model_kwargs={name: options[name] for name in ("drop_rate", "drop_path_rate") if options.get(name)},
    )


def _check_range(name: str, value: float, least: float, below: float) -> None:
    if not is_number(value) or not least <= value < below:
        upper = "finite" if below == math.inf else "at most 1" if 1 < below < 2 else f"below {below:g}"
        raise UserError(f"{name} must be at least {least} and {upper}, got {brief(value)}")


OPTIONS = {field.name: field for field in fields(Config) if field.name != "data"}


def default_of(name: str) -> Any:
    """Return the default of an option, before it is chosen by images and machine."""
    field = OPTIONS[name]
    return {} if field.metadata["kind"] is dict else field.default


def defaults(
    given: Mapping[str, Any], *, image_size: int, num_images: int, on_gpu: bool, bf16: bool, num_cores: int
) -> dict[str, Any]:
    """Return a value for each option that `given` leaves open, chosen by images, start, optimizer and machine.

    The network has CBAM, unless another attention is given for it.

    Batches of 128 images (of at most 64 px) or 64 (larger), halved, down to 16, where an
    epoch had fewer than 10 of them.

    The learning rate is in proportion to the batch size: for SGD 0.1 at 128 images (of at most 64 px) or at 256
    (larger), a tenth of that from pretrained weights; for AdamW 1e-3 at 256, a tenth from pretrained weights.
    """
    small, pretrained = image_size <= SMALL_SIZE, bool(given.get("pretrained"))
    adamw = given.get("optimizer", "sgd") == "adamw"
    batch_size = 128 if small else 64
    while batch_size > 16 and num_images < 10 * batch_size:
        batch_size //= 2
    batch_size = given.get("batch_size", batch_size)
    rate_at_256 = 1e-3 if adamw else 0.2 if small else 0.1
    epochs = given.get("epochs", 30 if pretrained else 100)
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
    # what is no number is refused by Config, in one place
    return value if is_number(value) else 0


def image_size_for(median_side: int) -> int:
    """Return the image size for images whose shorter side has this median: the largest usual one not above it."""
    return max((size for size in (32, 64, 96, 128, 160, 192, 224) if size <= median_side), default=32)


def read_config(path: Path) -> dict[str, Any]:
    """Return the options of a YAML file: a mapping from option names (dashes or underscores) to values.

    Raises:
        UserError: No such file, not YAML, an unknown option, a value of the wrong kind, or an attention that is code to
            import, which no file may have run.
    """
    import yaml

    if path.exists() and not path.is_file():
        raise UserError(f"the configuration {str(path)!r} is no file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the configuration {str(path)!r}: {error.strerror}") from error
    # ValueError: not UTF-8, an impossible date, thousands of digits
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
            f"attention {brief(result['attention'])} in {str(path)!r} is code, that no file may have run; give "
            "--attention on the command line"
        )
    return result


def _converted(name: str, value: Any, path: Path) -> Any:
    kind = OPTIONS[name].metadata["kind"]
    if kind is float:
        # YAML 1.1 takes 1e-3 for text
        converted: Any = _parsed(float, value)
    elif kind is str:
        # an unquoted `no` or `none: off` arrives as a truth value; only text and numbers are names
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
