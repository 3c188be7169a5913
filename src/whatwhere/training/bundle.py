"""A trained network to take along: weights, architecture, class names and preprocessing, as safetensors and JSON."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.gate import Start
from ..base.errors import UserError, check_factor
from ..base.files import remove_parts, write_bytes, write_json, writing
from ..base.words import brief, cause, short
from ..data.preprocess import Preprocessing
from ..models.resnet import ResNet
from ..networks import weights
from ..networks.create import MOST_WIDTH
from ..networks.libraries import as_published, full_name, is_as_published, is_other
from ..networks.named import check_network, create_network, is_attentive
from .config import is_import_path

FORMAT = "whatwhere bundle 1"
DESCRIPTION = "bundle.json"
# of `ResNet`, which no shape shows; weights may have brought them
_MODEL_OPTIONS = ("stride_in_1x1", "ceil_pool", "replace_stride_with_dilation")


@dataclass(frozen=True)
class Bundle:
    """A network with what is needed to use it on images.

    Attributes:
        model: In evaluation mode; returns logits in the order of `classes`.
        architecture: Its name, as `insert.named.create_network` knows it.
        classes: Names of the classes.
        preprocessing: From an image to what the network takes.
        info: What training noted: the epoch and its figures on the validation images.
        attention: The attention of a plain network, a name or MODULE:NAME; empty for that in the architecture's name.
        width_factor: How many times as wide its stages are.
        at: Where its attention stands, if not in its own place.
    """

    model: nn.Module
    architecture: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    info: dict[str, Any]
    attention: str = ""
    width_factor: float = 1.0
    at: str = ""

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Return the classes' probabilities (N, classes), float32, for uint8 pixels (N, 3, S, S)."""
        device = next(self.model.parameters()).device
        logits: Tensor = self.model(self.preprocessing.normalize(pixels.to(device)))
        return logits.float().softmax(1).cpu()


def save_bundle(folder: Path, bundle: Bundle) -> None:
    """Write a bundle into `folder`; one that is there already is whole until the new one is.

    Raises:
        UserError: It cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    model_kwargs = _model_kwargs(bundle.model)
    # for those who take the weights alone, which fit a network that computes something else; of two entries safetensors
    # would write either first, and the file's digest would change
    described = {weights.METADATA_KEY: json.dumps({"model_kwargs": model_kwargs})}
    content = weights.tensors_to_bytes(bundle.model.state_dict(), described)
    digest = hashlib.sha256(content).hexdigest()
    name = f"weights-{digest[:12]}.safetensors"
    write_bytes(folder / name, content)
    description = {
        "format": FORMAT,
        "weights": name,
        "sha256": digest,
        "architecture": bundle.architecture,
        "attention": bundle.attention,
        "width_factor": bundle.width_factor,
        "at": bundle.at,
        "model_kwargs": model_kwargs,
        "as_published": is_as_published(bundle.model),
        "classes": list(bundle.classes),
        "preprocessing": asdict(bundle.preprocessing),
        "info": bundle.info,
    }
    write_json(folder / DESCRIPTION, description)
    for old in folder.glob("weights-*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)
    remove_parts(folder)


def load_bundle(
    path: Path, device: torch.device | str = "cpu", *, attention: Callable[..., nn.Module] | None = None
) -> Bundle:
    """Read a bundle: its folder, its `bundle.json`, or the folder of a run, whose best network it then is.

    The architecture is ours, torchvision's or timm's by name, its attention ours by name; nothing in the files is
    executed or imported.

    Args:
        path: Where it is.
        device: Where the network is to compute.
        attention: For a network that was trained with an attention by import path, what that path named: a callable
            from a channel count to a module. The file names it, but it is the caller's to import it.

    Raises:
        UserError: There is none, it is damaged, or it needs an `attention` that is not given, or the other way round.
    """
    description_file = _find(path)
    folder = description_file.parent
    try:
        description = json.loads(description_file.read_bytes())
        if description["format"] != FORMAT:
            raise ValueError(f"its format is {brief(description['format'])}, not {FORMAT!r}")
        file = folder / Path(description["weights"]).name
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != description["sha256"]:
            raise ValueError("the checksum of the weights differs")
        classes = tuple(map(str, description["classes"]))
        size: dict[str, Any] = description["preprocessing"]
        preprocessing = Preprocessing(
            int(size["image_size"]), int(size["resize"]), _three(size["mean"]), _three(size["std"])
        )
        _check_possible(preprocessing)
        architecture, info = str(description["architecture"]), dict(description["info"])
        # a bundle of an older version has neither
        named, width_factor = str(description.get("attention", "")), description.get("width_factor", 1.0)
        at = str(description.get("at", ""))
        model_kwargs = dict(description.get("model_kwargs", {}))
        model_kwargs = {key: model_kwargs[key] for key in _MODEL_OPTIONS if key in model_kwargs}
        is_published = description.get("as_published", False) is True
        check_factor("width_factor", width_factor, MOST_WIDTH)
    # damaged JSON makes the reader and the conversions raise nearly anything
    except Exception as error:
        raise UserError(f"the bundle {str(folder)!r} is damaged ({cause(error)})") from error
    _check_attention(named, attention, folder)
    state = weights.read_state_dict(file)
    model = _network(architecture, len(classes), attention or named or None, at, width_factor, model_kwargs, state)
    if model is None:
        raise UserError(f"the weights in {str(folder)!r} are not those of {architecture}")
    if is_published:
        as_published(model, full_name(architecture))
    return Bundle(model.to(device).eval(), architecture, classes, preprocessing, info, named, width_factor, at)


def _model_kwargs(model: nn.Module) -> dict[str, Any]:
    options = {name: getattr(model, name) for name in _MODEL_OPTIONS} if isinstance(model, ResNet) else {}
    return {name: value for name, value in options.items() if value}


def _check_attention(named: str, given: Callable[..., nn.Module] | None, folder: Path) -> None:
    if is_import_path(named) and given is None:
        text = short(named, 200)
        raise UserError(
            f"the network in {str(folder)!r} was trained with the attention {brief(text)}, code that no file may have "
            f"run; give --attention {text}, or load_bundle(..., attention={text.partition(':')[2]}) in Python"
        )
    if given is not None and not is_import_path(named):
        raise UserError(
            f"the network in {str(folder)!r} has no attention by import path and loads without --attention, or without "
            "`attention` in Python; leave it out"
        )


def _network(
    architecture: str,
    num_classes: int,
    attention: str | Callable[..., nn.Module] | None,
    at: str,
    width_factor: float,
    model_kwargs: dict[str, Any],
    state: weights.StateDict,
) -> nn.Module | None:
    """Return the network with the weights `state`; None if they are not its own."""
    name = check_network(architecture, attention=attention, at=at, width_factor=width_factor)
    options: dict[str, Any] = {"num_classes": num_classes, "width_factor": width_factor, "seed": 0}
    options["model_kwargs"] = model_kwargs
    if width_factor != 1 or is_other(name):
        # a file of a few bytes may not ask for any amount of memory
        with torch.device("meta"):
            model = create_network(name, **options)
        if sum(map(Tensor.numel, model.parameters())) > sum(map(Tensor.numel, state.values())):
            return None
    starts: list[Start | None] = [None]
    if is_attentive(name, attention) and weights.has_attention(state) and weights.starts_as_identity(state):
        # first, because an attention of the user's may have a scalar of its own by the name of ours
        starts.insert(0, "identity")
    for start in starts:
        model = create_network(name, attention=attention, at=at, start=start, **options)
        try:
            model.load_state_dict(state)
            return model
        except RuntimeError:
            continue
    return None


def _find(path: Path) -> Path:
    for candidate in (path, path / DESCRIPTION, path / "best" / DESCRIPTION):
        if candidate.is_file() and candidate.suffix == ".json":
            return candidate
    raise UserError(f"no bundle at {str(path)!r}; give the folder of a run of `whatwhere train`, or its best/")


def _check_possible(preprocessing: Preprocessing) -> None:
    if not 1 <= preprocessing.image_size <= preprocessing.resize:
        raise ValueError(f"its image size is {preprocessing.image_size} of {preprocessing.resize}")
    if not all(map(math.isfinite, preprocessing.mean)) or not all(0 < value < math.inf for value in preprocessing.std):
        raise ValueError(f"its mean is {preprocessing.mean}, its std {preprocessing.std}")


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue
