"""A trained network to take along: weights, architecture, class names and preprocessing, as safetensors and JSON."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import weights
from ..data.preprocess import Preprocessing
from ..errors import UserError
from ..files import remove_parts, write_bytes, write_json, writing
from ..models import create_model

FORMAT = "whatwhere bundle 1"
DESCRIPTION = "bundle.json"


@dataclass(frozen=True)
class Bundle:
    """A network with what is needed to use it on images.

    Attributes:
        model: In evaluation mode; returns logits in the order of `classes`.
        architecture: Its name, as `create_model` knows it.
        classes: Names of the classes.
        preprocessing: From an image to what the network takes.
        info: What training noted: the epoch and its figures on the validation images.
    """

    model: nn.Module
    architecture: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    info: dict[str, Any]

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
    content = weights.tensors_to_bytes(bundle.model.state_dict())
    digest = hashlib.sha256(content).hexdigest()
    name = f"weights-{digest[:12]}.safetensors"
    write_bytes(folder / name, content)
    description = {
        "format": FORMAT,
        "weights": name,
        "sha256": digest,
        "architecture": bundle.architecture,
        "classes": list(bundle.classes),
        "preprocessing": asdict(bundle.preprocessing),
        "info": bundle.info,
    }
    write_json(folder / DESCRIPTION, description)
    for old in folder.glob("weights-*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)
    remove_parts(folder)


def load_bundle(path: Path, device: torch.device | str = "cpu") -> Bundle:
    """Read a bundle: its folder, its `bundle.json`, or the folder of a run, whose best network it then is.

    The architecture is one of ours by name; nothing in the files is executed.

    Raises:
        UserError: There is none, or it is damaged.
    """
    description_file = _find(path)
    folder = description_file.parent
    try:
        description = json.loads(description_file.read_bytes())
        if description["format"] != FORMAT:
            raise ValueError(f"its format is {description['format']!r}, not {FORMAT!r}")
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
    # damaged JSON makes the reader and the conversions raise nearly anything
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the bundle {str(folder)!r} is damaged ({reason})") from error
    state = weights.read_state_dict(file)
    identity = weights.has_attention(state) and weights.starts_as_identity(state)
    options: dict[str, Any] = {"attention_kwargs": {"start": "identity"}} if identity else {}
    model = create_model(architecture, num_classes=len(classes), seed=0, **options)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"the weights in {str(folder)!r} are not those of {architecture}") from error
    return Bundle(model.to(device).eval(), architecture, classes, preprocessing, info)


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
