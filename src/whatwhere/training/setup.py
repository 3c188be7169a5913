"""The pieces that a run is built from: checked options, images, network, batches, trainer."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import socket
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from msgspec.structs import replace
from torch import nn

from ..attention import attention_by_path
from ..base.code import held_apart
from ..base.errors import UserError
from ..base.modules import undisturbed
from ..base.processes import num_cores
from ..base.screen import Screen
from ..base.words import brief, cause, few, short
from ..data.augment import Augmentation
from ..data.batches import EvaluationBatches, Order, Reader, TrainBatches, label_numbers
from ..data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, preprocessing_for
from ..data.split import Prepared, prepare
from ..data.store import Store, decode_all, free_memory, num_bytes, room
from ..networks.factory import checked, create, read_pretrained, settled
from ..networks.libraries import normalization
from ..networks.spec import NetworkSpec, is_import_path
from ..ops import native
from .bundle import DESCRIPTION, WEIGHTS_NAME, weights_of
from .config import OPTIONS, Config, augmentation_in_words, defaults, image_size_for, network_of
from .distributed import Team
from .run_folder import training_images
from .trainer import Trainer

Cache = Literal["auto", "none", "memory", "device"]


def check_given(data: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[..., nn.Module] | None]:
    """Check the options before the images are read: their ranges, and whether the network can be built.

    Returns them with the full name of the network, and the imported attention if an import path is given. Where the
    weights to start from are a bundle's or a run's, they are its file, and its network is the default.
    """
    Config(data=data, **given)
    given, network = with_file_of_weights(given)
    if network is not None and "model" not in given:
        own = {name: getattr(network, name) for name in ("attention", "attention_kwargs", "at", "width_factor")}
        if not {"model", "attention"} & given.keys() and is_import_path(network.attention):
            text = short(network.attention, 200)
            raise UserError(
                f"the weights {brief(given['pretrained'], 200)} were trained with the attention {brief(text)}, and "
                f"whatwhere never imports code that a file names; give --attention {text} too"
            )
        given = {"model": network.name, **own, **given}
    text = given.get("attention", "")
    attention = attention_by_path(text) if is_import_path(text) else None
    # the default network takes the same options as this one
    spec = checked(network_of({"model": "resnext50_32x4d", **given}), pretrained=given.get("pretrained") or False)
    if spec.is_own and attention is None and (spec.width_factor != 1 or spec.attention_kwargs):
        with torch.device("meta"):
            create(replace(spec, at=""), seed=0)  # the width may leave a group no channel; an argument may be unknown
    check_machine(given)
    return {**given, "model": spec.name} if "model" in given else dict(given), attention


def check_machine(given: Mapping[str, Any]) -> None:
    """Check what the options need beside torch, before anything is computed."""
    if given.get("tensorboard") and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs TensorBoard: pip install 'whatwhere[tensorboard]'")
    if given.get("deterministic"):
        # cuBLAS reads it when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def with_file_of_weights(given: Mapping[str, Any]) -> tuple[dict[str, Any], NetworkSpec | None]:
    """Return the options with the file of the weights in place of the run or bundle that holds it, and its network.

    The network is None where the weights are none of ours.
    """
    trained = _trained(given.get("pretrained", ""))
    return (dict(given), None) if trained is None else ({**given, "pretrained": str(trained[0])}, trained[1])


def _trained(pretrained: str) -> tuple[Path, NetworkSpec, Preprocessing] | None:
    """Return what the option `pretrained` names, if it is a bundle or a run of ours."""
    return weights_of(Path(pretrained)) if pretrained not in ("", "imagenet") else None


def with_those_of_weights(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options, with what a bundle that the weights are from says of its images where it is not given."""
    trained = _trained(given.get("pretrained", ""))
    if trained is None:
        return dict(given)
    taken = trained[2]
    return {"resize": taken.resize_mode, "image_size": taken.image_size, "max_value": taken.max_value, **given}


def prepare_images(data: str, given: Mapping[str, Any], screen: Screen, *, for_further_seeds: bool = False) -> Prepared:
    """Find, check and split the images of DATA, as `prepare` does; show problems as warnings.

    Raises:
        UserError: As `prepare`; or weights to start from were trained on images that are held out here,
            `for_further_seeds` with any seed.
    """
    given = with_those_of_weights(given)
    names = (
        "val_fraction",
        "test_fraction",
        "train_images",
        "near_duplicates",
        "max_value",
        "skip_bad",
        "check",
        "download",
    )
    texts = ("group_from", "path_column", "label_column", "split_column", "data_dir")  # "" where they are not given
    prepared = prepare(
        data,
        seed=given.get("seed", 0),
        progress=lambda done, total: screen.progress("checking the images", done, total),
        **{name: given[name] for name in names + texts if given.get(name, "") != ""},
    )
    heeded = {"cropped": given.get("resize", "crop") != "crop", "uneven": given.get("class_weights") == "balanced"}
    for finding in (prepared.report or prepared.source).findings:
        if finding.can_skip:
            screen.warn(f"--skip-bad left out {finding.message}: {few(finding.paths, 5)}")
        elif finding.severity == "warning" and not heeded.get(finding.kind):
            screen.warn(f"{finding.sentence()} (`whatwhere check` names them)")
        elif finding.kind == "columns":
            screen.line(finding.sentence())
    _check_held_out(given.get("pretrained", ""), prepared, for_further_seeds)
    if prepared.uneven:
        screen.warn(prepared.uneven)
    for part, samples in prepared.parts.items():
        missing = sorted(set(prepared.classes) - {sample.label for sample in samples})
        if samples and missing:
            screen.warn(
                f"no {part} images of {few(missing)}: too few images, or near duplicates and groups that stay "
                f"together; the {part} figures leave {'it' if len(missing) == 1 else 'them'} out"
            )
    return prepared


def _check_held_out(pretrained: str, prepared: Prepared, for_further_seeds: bool) -> None:
    if pretrained in ("", "imagenet"):
        return
    drawn_again = for_further_seeds and bool(prepared.drawn)
    parts = prepared.parts if drawn_again else ("val", "test")
    held_out = [sample for part in parts for sample in prepared.parts.get(part, ())]
    num_known = training_images(Path(pretrained)).count(prepared.source, held_out, prepared.report)
    if not num_known:
        return
    what = "images, of which each seed holds out others," if drawn_again else "validation and test images"
    raise UserError(
        f"{num_known} of the {len(held_out)} {what} are among those that the weights {brief(pretrained)} were trained "
        "on, so the figures would be too good; give the split.csv of that run as DATA, or a DATA with a split that "
        "trains on them"
    )


def check_apart(path: Path, prepared: Prepared) -> None:
    """Raise UserError if the folder of a run lies among the images."""
    root = prepared.source.root
    is_folder = root is not None and Path(prepared.source.name).is_dir()
    if root is not None and is_folder and path.absolute().resolve().is_relative_to(root.resolve()):
        raise UserError(f"--out {str(path)!r} lies in the folder of the images; give one elsewhere")


def resolve(data: str, given: Mapping[str, Any], prepared: Prepared, team: Team) -> Config:
    """Return all options of a run: the given ones, and the others chosen by image size, start and machine."""
    Config(data=data, **given)  # the defaults are calculated from these
    given = with_those_of_weights(given)
    side = prepared.median_side if given.get("resize", "crop") == "crop" else prepared.median_long_side
    chosen = defaults(
        given,
        image_size=given.get("image_size", image_size_for(side)),
        num_images=len(prepared.parts["train"]),
        device=team.device.type,
        bf16=team.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False),
        num_cores=max(1, num_cores() // team.local_world_size),
    )
    return Config(
        data=data,
        **{**chosen, **given, "device": given.get("device") or team.device.type, "max_value": prepared.max_value},
    )


def build_model(
    config: Config, num_classes: int, attention: Callable[..., nn.Module] | None = None
) -> tuple[nn.Module, NetworkSpec]:
    """Build the network of a run at its start, on the CPU; return it and its spec.

    `attention` is the imported code where `config.attention` is an import path.

    Raises:
        UserError: As `create`; or the network does not take images of this size, or returns no score for each class.
    """
    spec = config.network(num_classes)
    loaded = read_pretrained(spec, config.pretrained == "imagenet" or config.pretrained or False)
    spec = settled(spec, loaded, attention)
    model = create(spec, pretrained=loaded, seed=config.seed, attention=attention)
    _check_takes(model, spec, config.image_size)
    return model, spec


def _check_takes(model: nn.Module, spec: NetworkSpec, size: int) -> None:
    """Raise UserError unless a network takes images of `size` and returns a score for each class."""
    with torch.no_grad(), undisturbed(model), held_apart("the network"):
        model.eval()
        try:
            output = model(torch.zeros(1, 3, size, size))
        except Exception as error:  # any network may be named, and raises what it likes
            sizes = getattr(model, "pretrained_cfg", {}) or {}  # timm's
            usual = sizes.get("input_size", (0, 0, 0))[-1]
            is_other = usual and usual != size
            another = f"--image-size {usual}" if is_other else "another --image-size, or correct its code"
            raise UserError(
                f"{spec.describe()} does not run on images of {size} x {size} px ({cause(error)}); give {another}"
            ) from error
    if not isinstance(output, torch.Tensor) or output.shape != (1, spec.num_classes):
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise UserError(
            f"{spec.describe()} returns {got} for an image of {size} x {size} px, not one score for each of "
            f"{spec.num_classes} classes; give another network"
        )


@dataclass
class Material:
    """The images of a run, as batches; `cache` says where decoded images are kept."""

    preprocessing: Preprocessing
    train: TrainBatches
    evaluation: dict[str, EvaluationBatches]
    cache: str


def build_material(
    config: Config, prepared: Prepared, preprocessing: Preprocessing, team: Team, *, with_test: bool
) -> Material:
    """Return the batches of this process; images are decoded ahead if `config.cache` says so.

    Without `with_test` the test images are left out.

    Raises:
        UserError: An image that cannot be read, or batches too small for so many processes and pieces.
    """
    order = Order(len(prepared.parts["train"]), config.batch_size, config.seed)
    if config.batch_size > order.num_samples:
        raise UserError(
            f"batch_size {config.batch_size:,} is more than the {order.num_samples:,} training images; give fewer"
        )
    if order.num_samples // order.steps_per_epoch // team.world_size // config.accumulate < 2:
        raise UserError(
            f"batches of {order.num_samples // order.steps_per_epoch} images leave fewer than 2 to each of "
            f"{team.world_size} processes x {config.accumulate} pieces, and BatchNorm needs 2; raise --batch-size"
            f"{', or lower --accumulate' if config.accumulate > 1 else ''}"
        )
    augment = Augmentation(
        preprocessing, config.crop, config.crop_scale, config.hflip, config.rand_augment, config.random_erasing
    )
    readers = _readers(config, prepared, preprocessing, with_test=with_test)
    labels = {part: label_numbers(reader.samples, prepared.classes) for part, reader in readers.items()}
    cache = _cache(config.crop, readers, team) if config.cache == "auto" else config.cache
    images: Mapping[str, Store | Reader] = readers
    if cache != "none":
        num_threads = max(1, num_cores() // team.local_world_size)
        images = {part: decode_all(reader, num_threads=num_threads) for part, reader in readers.items()}
    share = (team.device, config.workers, team.rank, team.world_size)
    evaluation = {
        part: EvaluationBatches(images[part], labels[part], preprocessing, 2 * config.batch_size, *share)
        for part in images
        if part != "train"
    }
    train = TrainBatches(images["train"], labels["train"], order, augment, *share, on_device=cache == "device")
    return Material(preprocessing, train, evaluation, cache)


def chosen_cache(config: Config, prepared: Prepared, team: Team) -> Cache:
    """Return where a run would keep decoded images: "device", "memory" or "none"."""
    readers = _readers(config, prepared, preprocessing_of(config), with_test=True)
    return _cache(config.crop, readers, team) if config.cache == "auto" else config.cache


def preprocessing_of(config: Config) -> Preprocessing:
    """Return what the network takes; pretrained weights need the mean and std that they were trained with.

    Raises:
        UserError: The pretrained weights are a bundle's, and its description is gone.
    """
    trained_with = normalization(config.model) if config.pretrained else None
    if (trained := _trained(config.pretrained)) is not None:
        trained_with = (trained[2].mean, trained[2].std)
    elif WEIGHTS_NAME.fullmatch(Path(config.pretrained).name):
        raise UserError(
            f"the weights {config.pretrained!r} are of a bundle, and its {DESCRIPTION} is not beside them, which says "
            "with which mean and std they were trained; put it there again"
        )
    assert config.max_value != "auto"  # `resolve` has found the number
    mean, std = trained_with or (IMAGENET_MEAN, IMAGENET_STD)
    return preprocessing_for(config.image_size, mean, std, config.max_value, config.resize)


def _readers(config: Config, prepared: Prepared, preprocessing: Preprocessing, *, with_test: bool) -> dict[str, Reader]:
    wanted = ("train", "val", "test") if with_test else ("train", "val")
    return {
        part: Reader(prepared.source, those, preprocessing, whole=part == "train" and config.crop == "resized")
        for part in wanted
        if (those := prepared.parts[part])
    }


def build_trainer(
    config: Config, train: TrainBatches, model: nn.Module, num_classes: int, team: Team, trainer_class: type[Trainer]
) -> Trainer:
    """Return the trainer of `model` on the team's device."""
    model = model.to(team.device)
    if config.sync_bn and team.world_size > 1:
        if team.device.type != "cuda":
            raise UserError("--sync-bn needs a GPU for each process: torch has it for CUDA only; leave it out")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    class_weights = None
    if config.class_weights == "balanced":
        # in inverse proportion to the images of the class, with a mean of 1 over all images
        counts = torch.bincount(train.labels, minlength=num_classes).float()
        class_weights = len(train.labels) / (num_classes * counts.clamp(min=1))
    return trainer_class(
        model,
        config,
        train.order,
        num_classes=num_classes,
        seed=config.seed,
        team=team,
        class_weights=class_weights,
        compile=config.compile,
    )


def _cache(crop: str, readers: Mapping[str, Reader], team: Team) -> Cache:
    """Choose where decoded images are kept: "device" (a GPU, images of one size), "memory" or "none"."""
    # decoding needs the memory twice while it packs the images
    if 2 * sum(map(num_bytes, readers.values())) > room(free_memory(torch.device("cpu")), team.local_world_size):
        return "none"
    if team.device.type == "cuda" and crop == "pad" and num_bytes(readers["train"]) <= room(free_memory(team.device)):
        return "device"
    return "memory"


@contextlib.contextmanager
def deterministic(config: Config) -> Iterator[None]:
    """Use deterministic algorithms if `config.deterministic`; else let cuDNN search for the fastest."""
    before, searching = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(config.deterministic or before)
    torch.backends.cudnn.benchmark = not (config.deterministic or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = searching


def describe(
    config: Config, given: Mapping[str, Any], prepared: Prepared, model: nn.Module, team: Team, *, is_continued: bool
) -> list[str]:
    """Return lines that describe a run: images, network, and all options, with * after those that were given."""
    counts = ", ".join(f"{len(samples):,} {part}" for part, samples in prepared.parts.items() if samples)
    num_params = sum(p.numel() for p in model.parameters())
    processes = f", {team.world_size} processes" if team.world_size > 1 else ""
    size, kind = config.image_size, team.device.type.upper()
    is_chosen = "model" not in given and not is_continued
    chosen = f" (chosen for {size} px on a {kind}; --model names another)" if is_chosen else ""
    counts += f" ({prepared.num_unused:,} not used)" if prepared.num_unused else ""
    lines = [
        f"images: {counts}; {len(prepared.classes)} classes: {few(prepared.classes, 5)}",
        f"network: {config.network().describe()}, {num_params:,} parameters, {size} x {size} px{chosen}, "
        f"on {device_name(team.device)}{processes}",
    ]
    options: dict[str, list[str]] = {}
    for name, field in OPTIONS.items():
        value = getattr(config, name)
        if value != "":
            text = ("no", "yes")[value] if isinstance(value, bool) else value
            options.setdefault(field.metadata["panel"], []).append(f"{name} {text}{'*' if name in given else ''}")
    for panel, texts in options.items():
        lines += textwrap.wrap(f"{panel.lower()}: {', '.join(texts)}", 110, subsequent_indent="  ")
    why = augmentation_in_words(config, len(prepared.parts["train"]))
    others = "those of the run so far" if is_continued else f"chosen by images, steps, start and machine: {why}"
    return [*lines, f"(* given; the others are {others})"]


def device_name(device: torch.device) -> str:
    """Return the name of a device, such as "NVIDIA H100" or "cpu (2 threads)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)" if device.type == "cpu" else device.type


def processor_name() -> str:
    """Return the name of the processor, with the numbers that tell models of one name apart where the system has them.

    Virtual machines call several models "Intel(R) Xeon(R) Processor".
    """
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        first = ""
    lines = (line.partition(":") for line in first.splitlines())
    known = {name.strip(): value.strip() for name, _, value in lines}
    parts = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
    return " ".join(known[part] for part in parts if known.get(part)) or platform.processor() or platform.machine()


def _version() -> str:
    try:
        return version("whatwhere")
    except PackageNotFoundError:  # a copy of the source that was not installed
        return "unknown"


def session(config: Config, team: Team) -> dict[str, Any]:
    """Return the machine and the versions that a run uses, for `run.json`."""
    import PIL
    import torchvision

    return {
        "began": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "whatwhere": _version(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
        "device": device_name(team.device),
        "num_processes": team.world_size,
        "num_threads": torch.get_num_threads(),
        # results are equal to the last bit only with the same instructions
        "instructions": torch.backends.cpu.get_cpu_capability() if team.device.type == "cpu" else "",
        "passes": native.passes() if team.device.type == "cpu" else "Python",
        "workers": config.workers,
    }
