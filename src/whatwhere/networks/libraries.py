"""Networks of torchvision and timm: build them, read and load their weights."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..attention import ATTENTION
from ..base.errors import UserError
from ..base.randomness import seeded
from ..base.words import brief, cause, suggest
from ..models.initialization import resolve_seed
from .spec import OWN_NETWORKS
from .weights.files import StateDict, Wanted, check_finite, read_file, torchvision_state_dict, warn_of_left_out
from .weights.fit import compare, is_attention_key
from .weights.layouts import EFFICIENTNETS, efficientnet_names, is_of_efficientnet_pytorch, lacks_squeeze
from .weights.translate import METADATA_KEY, Weights, described

LIBRARIES = ("torchvision", "timm")
# further outputs in training, which no loss here uses
_ONE_OUTPUT = {
    "torchvision:googlenet": {"aux_logits": False, "init_weights": True},
    "torchvision:inception_v3": {"aux_logits": False},
}
Channels = tuple[float, float, float]
_FURTHER_OUTPUTS = ("aux1.", "aux2.", "AuxLogits.")


def full_name(name: str) -> str:
    """Return a network's name with its library: `timm:NAME`, `torchvision:NAME`, or NAME alone for one of whatwhere.

    Raises:
        UserError: No library has the network, or timm is asked for and not installed.
    """
    if not isinstance(name, str):
        raise UserError(f"the name of a network must be text, such as 'resnet50', got {brief(name)}")
    if name in OWN_NETWORKS:
        return name
    library, colon, own = name.partition(":")
    if colon and library not in LIBRARIES:
        raise UserError(f"unknown library {brief(library)} in {brief(name)}; known: {', '.join(LIBRARIES)}")
    if not colon:
        own = name
    tried: dict[str, list[str]] = {}
    for known in (library,) if colon else LIBRARIES:
        tried[known] = _names(known, required=bool(colon))
        if own in tried[known]:
            return f"{known}:{own}"
    if not colon:
        tried["whatwhere"] = list(OWN_NETWORKS)
    if is_of_ultralytics(name):
        raise UserError(
            f"{brief(name)} is a network of Ultralytics, which its own trainer trains: "
            "YOLO(...).train(trainer=whatwhere.ultralytics.trainer('cbam')); `whatwhere attend` takes its YAML"
        )
    if own in other_tasks():
        raise UserError(
            f"{brief(name)} is no classifier, it detects or segments; `whatwhere attend` and `summary` take it, and "
            "attend(model, ...) in Python"
        )
    attention, _, plain = own.partition("_")
    if attention in ATTENTION and (library_of := next((known for known in tried if plain in tried[known]), "")):
        raise UserError(
            f"{brief(name)} is no name of a network: attention is in the names of whatwhere's own networks only; give "
            f"the network {library_of}:{plain} with the attention {attention}"
        )
    hint = suggest(own, [other for names in tried.values() for other in names])
    if own.lower().startswith("yolo"):
        hint = "; names of Ultralytics' networks end in .yaml, such as yolo11n.yaml"
    raise UserError(f"unknown network {brief(name)}{hint or '; `whatwhere models` names those of whatwhere'}")


def _names(library: str, *, required: bool) -> list[str]:
    if library == "torchvision":
        import torchvision

        return list(torchvision.models.list_models(torchvision.models))
    try:
        with quiet():
            import timm
    except ModuleNotFoundError as error:
        if required:
            raise UserError("networks of timm need timm; install it: pip install timm") from error
        return []
    names: list[str] = timm.list_models()
    return names


def other_tasks() -> list[str]:
    """Return the names of torchvision's networks that detect or segment."""
    from torchvision import models

    return [*models.list_models(models.detection), *models.list_models(models.segmentation)]


def is_of_ultralytics(name: str) -> bool:
    """Return whether a name is that of a YAML or a checkpoint of Ultralytics."""
    return name.lower().endswith((".yaml", ".yml", ".pt"))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings during the block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations in other libraries
        yield


def create(
    name: str, *, num_classes: int = 1000, in_channels: int = 3, seed: int | None = None, **options: Any
) -> nn.Module:
    """Build a network of torchvision or timm.

    Args:
        name: As `full_name` returns it.
        num_classes: Width of the classifier.
        in_channels: Channels of the images; timm only.
        seed: The initial weights are a function of it; None draws one from torch's default generator.
        **options: Further arguments of the library: `drop_rate` and `drop_path_rate` of timm. Rates of 0 are left out,
            as not every network takes them.

    Raises:
        UserError: The network cannot be built.
    """
    library, _, own = name.partition(":")
    options = {key: value for key, value in options.items() if value or key not in ("drop_rate", "drop_path_rate")}
    if in_channels != 3:
        options["in_chans"] = in_channels
    if library == "torchvision" and options:
        given = ", ".join(options).replace("in_chans", "in_channels")
        raise UserError(f"{given} cannot be given for networks of torchvision; leave it out")
    seed = resolve_seed(seed)
    model: nn.Module
    try:
        with seeded(seed, "construction"), quiet():
            if library == "torchvision":
                import torchvision

                one_output = _ONE_OUTPUT.get(name, {})
                model = torchvision.models.get_model(own, weights=None, num_classes=num_classes, **one_output)
            else:
                import timm

                model = timm.create_model(own, pretrained=False, num_classes=num_classes, **options)
    # the libraries report impossible options and sizes in these ways
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"{name} cannot be built: {cause(error)}") from error
    return model


def published(name: str) -> StateDict:
    """Return the published weights of a network, downloaded or from its library's cache.

    Raises:
        UserError: The library publishes no weights, or they cannot be downloaded.
    """
    library, _, name = name.partition(":")
    if library == "torchvision":
        return torchvision_state_dict(name)
    import timm

    try:
        with quiet():
            state: StateDict = timm.create_model(name, pretrained=True).state_dict()
        return state
    # timm passes on any exception of the hub, the network or the reader
    except Exception as error:
        raise UserError(f"cannot get timm's weights of {name}: {cause(error)}; give a weights file, or none") from error


def normalization(name: str) -> tuple[Channels, Channels] | None:
    """Return the mean and the standard deviation of the images that timm's weights were trained with, or None.

    None for torchvision and this package, where they are those of ImageNet.
    """
    library, _, own = name.partition(":")
    if library != "timm":
        return None
    import timm

    config = timm.get_pretrained_cfg(own)
    if config is None:
        return None
    mean, std = (tuple(map(float, values)) for values in (config.mean, config.std))
    return (mean, std) if len(mean) == len(std) == 3 else None


def as_published(model: nn.Module, name: str) -> None:
    """Set what torchvision changes with its published weights and no weight shows."""
    if name in _ONE_OUTPUT:
        # from ImageNet's mean and deviation to those of the weights; torch's types know no flags in a module
        model.transform_input = True  # type: ignore[assignment]


def read_weights(name: str, path: str, own: Mapping[str, Tensor]) -> Weights:
    """Read the weights of a network of torchvision or timm, with or without attention, from a file.

    timm's tf_efficientnet_b0 to b8 and tf_efficientnet_lite0 to lite4 also take weights under the names of the package
    efficientnet_pytorch. A warning names tensors that do not belong to the network; they are left out.

    Args:
        name: The network's name, as `full_name` returns it.
        path: The file.
        own: The state dict of the network without attention, for its names and shapes.

    Raises:
        UserError: As `read_file`; or a tensor holds NaN or infinite values, or the weights are those of
            efficientnet_pytorch for another network.
    """
    shapes = {key: value.shape for key, value in own.items() if not key.endswith("num_batches_tracked")}
    renamed = efficientnet_names(own)
    theirs = {key: shapes[ours] for key, ours in renamed.items() if ours in shapes}
    file = read_file(path, Wanted({**shapes, **theirs}, len(shapes) // 2 + 1))
    check_finite(file)
    warn_of_left_out(file)
    state = file.state
    if is_of_efficientnet_pytorch(state):
        # other networks have tensors of the same shapes, but another padding and another eps in their norms; a lite one
        # has those of its sister, but for SE
        fitting = "lite" if lacks_squeeze(state) else "b"
        if not name.startswith(f"timm:tf_efficientnet_{fitting}"):
            raise UserError(
                f"the weights in {path!r} have the names of the package efficientnet_pytorch; they fit timm's "
                f"{EFFICIENTNETS[fitting]}, not {name}"
            )
        state = {renamed.get(key, key): value for key, value in state.items()}
    network = described(state, file.metadata.get(METADATA_KEY, ""))
    return Weights(state, None, network, path, frozenset(own))


def load(name: str, model: nn.Module, state: StateDict, source: str) -> None:
    """Load `state` into `model`, all of it or nothing; a classifier of another number of classes is skipped.

    Args:
        name: The network's name, as `full_name` returns it. Weights of outputs for training alone are skipped.
        model: The network.
        state: The weights.
        source: Where they come from, for error messages.

    Raises:
        UserError: Any other key missing, unexpected or of another shape; the model is left as it was.
    """
    own = model.state_dict()
    if name in _ONE_OUTPUT:
        state = {key: value for key, value in state.items() if not key.startswith(_FURTHER_OUTPUTS)}
    classifier = _classifier(model)
    other = {key for key in classifier & state.keys() if state[key].shape != own[key].shape}
    kept = {key: value for key, value in state.items() if key not in (classifier if other else ())}
    optional = classifier if classifier - kept.keys() == classifier else set()
    optional |= {key for key in own if key.endswith("num_batches_tracked")}
    fit = compare(kept, own, optional)
    if fit.groups:
        raise UserError(f"the weights from {source!r} do not fit this network: {fit.sentence()}")
    model.load_state_dict({**own, **kept})


def _classifier(model: nn.Module) -> set[str]:
    """Return the keys of the layer that computes the logits: the last one with weights that is no attention."""
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not is_attention_key(f"{name}.")
    ]
    if not layers:
        return set()
    name, module = layers[-1]
    return {f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)}
