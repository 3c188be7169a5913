"""From options and images to what a run works on: resolved options, network, batches."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import UserError
from ..base.processes import num_cores
from ..data.augment import Augmentation
from ..data.batches import EvaluationBatches, Order, Reader, TrainBatches, label_numbers
from ..data.preprocess import Preprocessing, preprocessing_for
from ..data.split import Prepared
from ..data.store import Store, decode_all, num_bytes, room
from ..networks.factory import create, read_pretrained, settled
from ..networks.libraries import normalization
from ..networks.spec import NetworkSpec
from .config import OPTIONS, Config, defaults, image_size_for
from .distributed import Team


def resolve(data: str, given: Mapping[str, Any], prepared: Prepared, team: Team) -> Config:
    """Return the run's options: those given, the others chosen by image size, start and machine.

    Raises:
        UserError: An option out of its range, or batches too small for so many processes and pieces.
    """
    on_gpu = team.device.type == "cuda"
    cores = num_cores()
    chosen = defaults(
        given,
        image_size=given.get("image_size", image_size_for(prepared.median_side)),
        num_images=len(prepared.parts["train"]),
        on_gpu=on_gpu,
        bf16=on_gpu and torch.cuda.is_bf16_supported(including_emulation=False),
        num_cores=max(1, cores // team.local_world_size),
    )
    return Config(data=data, **{**chosen, **given, "device": given.get("device") or team.device.type})


def build_model(
    config: Config, num_classes: int, attention: Callable[..., nn.Module] | None = None
) -> tuple[nn.Module, NetworkSpec]:
    """Return the network of a run at its start, on the CPU, and its description.

    Args:
        config: The options of the run.
        num_classes: Width of the classifier.
        attention: What `config.attention` names, where that is an import path.
    """
    spec = config.network(num_classes)
    loaded = read_pretrained(spec, config.pretrained == "imagenet" or config.pretrained or False)
    spec = settled(spec, loaded, attention)
    return create(spec, pretrained=loaded, seed=config.seed, attention=attention), spec


@dataclass
class Material:
    """The images of a run, as batches."""

    order: Order
    preprocessing: Preprocessing
    train: TrainBatches
    evaluation: dict[str, EvaluationBatches]
    class_weights: Tensor | None
    cache: str


def build_material(config: Config, prepared: Prepared, team: Team, *, with_test: bool) -> Material:
    """Return the batches of `prepared` for this process, the images decoded ahead where the options say so.

    `with_test` says whether there are any of the test images.

    Raises:
        UserError: An image that cannot be read, or batches too small for so many processes and pieces.
    """
    # weights expect what they were trained with
    trained_with = normalization(config.model) if config.pretrained else None
    preprocessing = preprocessing_for(config.image_size, *(trained_with or ()))
    train = prepared.parts["train"]
    order = Order(len(train), config.batch_size, config.seed)
    _check_batches(config, order, team)
    augment = Augmentation(
        preprocessing, config.crop, config.crop_scale, config.hflip, config.rand_augment, config.random_erasing
    )
    train_reader = Reader(prepared.source, train, preprocessing, whole=config.crop == "resized")
    readers = {
        part: Reader(prepared.source, prepared.parts[part], preprocessing, whole=False)
        for part in (("val", "test") if with_test else ("val",))
        if prepared.parts[part]
    }
    processes = team.local_world_size
    cache = config.cache
    if cache == "auto":
        cache = _cache(config.crop, train_reader, list(readers.values()), team.device, processes)

    def images(reader: Reader) -> Store | Reader:
        if cache == "none":
            return reader
        num_threads = max(1, num_cores() // processes)
        return decode_all(reader, num_workers=config.workers, num_threads=num_threads)

    place: dict[str, Any] = {
        "device": team.device,
        "rank": team.rank,
        "world_size": team.world_size,
        "num_workers": config.workers,
    }
    labels = {part: label_numbers(samples, prepared.classes) for part, samples in prepared.parts.items()}
    return Material(
        order,
        preprocessing,
        TrainBatches(images(train_reader), labels["train"], order, augment, on_device=cache == "device", **place),
        {
            part: EvaluationBatches(images(reader), labels[part], preprocessing, 2 * config.batch_size, **place)
            for part, reader in readers.items()
        },
        _class_weights(labels["train"], len(prepared.classes)) if config.class_weights == "balanced" else None,
        cache,
    )


def _cache(crop: str, train: Reader, others: list[Reader], device: torch.device, processes: int) -> str:
    """Return where decoded images are kept: on a GPU if of one size, in memory, or nowhere."""
    train_bytes, other_bytes = num_bytes(train), sum(map(num_bytes, others))
    host = torch.device("cpu")
    # decoding ahead fills the memory of the machine first, and a second time while it packs
    if 2 * (train_bytes + other_bytes) > room(host, processes):
        return "none"
    return "device" if device.type == "cuda" and crop == "pad" and train_bytes <= room(device, 1) else "memory"


def _check_batches(config: Config, order: Order, team: Team) -> None:
    if config.batch_size > order.num_samples:
        raise UserError(
            f"batch_size {config.batch_size:,} is more than the {order.num_samples:,} training images; give fewer"
        )
    smallest = order.num_samples // order.steps_per_epoch // team.world_size // config.accumulate
    if smallest < 2:
        raise UserError(
            f"batches of {order.num_samples // order.steps_per_epoch} images leave fewer than 2 to each of "
            f"{team.world_size} processes x {config.accumulate} pieces, and a norm needs 2; raise --batch-size"
        )


def _class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Return weights in inverse proportion to the classes' numbers, of mean 1 over the images."""
    counts = torch.bincount(labels, minlength=num_classes).float()
    return len(labels) / (num_classes * counts.clamp(min=1))


def describe(config: Config, given: Mapping[str, Any], prepared: Prepared, model: nn.Module, team: Team) -> list[str]:
    """Return what a run will do, as lines: images, network, every option, those that were given marked with *."""
    counts = ", ".join(f"{len(samples):,} {part}" for part, samples in prepared.parts.items() if samples)
    num_params = sum(p.numel() for p in model.parameters())
    size = config.image_size
    processes = f", {team.world_size} processes" if team.world_size > 1 else ""
    lines = [
        f"images: {counts}; {len(prepared.classes)} classes",
        f"network: {config.network().describe()}, {num_params:,} parameters, {size} x {size} px, "
        f"on {device_name(team.device)}{processes}",
    ]
    for panel in dict.fromkeys(field.metadata["panel"] for field in OPTIONS.values()):
        texts = [
            f"{name} {_shown(getattr(config, name))}{'*' if name in given else ''}"
            for name, field in OPTIONS.items()
            if field.metadata["panel"] == panel and getattr(config, name) != ""
        ]
        lines += textwrap.wrap(f"{panel.lower()}: {', '.join(texts)}", 110, subsequent_indent="  ")
    return [*lines, "(* given; the others chosen by image size, start and machine)"]


def _shown(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value}"


def device_name(device: torch.device) -> str:
    """Return the name of a device for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)" if device.type == "cpu" else device.type
