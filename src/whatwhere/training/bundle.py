"""A trained network to take along: weights, architecture, class names and preprocessing, as safetensors and JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec.structs import replace
from torch import Tensor, nn

from ..base.code import held_apart
from ..base.documents import parse_json, read_json
from ..base.errors import UserError
from ..base.files import Unreadable, read_file, remove_parts, write_bytes, write_json, writing
from ..base.words import brief, cause, short
from ..data.preprocess import NewerError, Preprocessing
from ..networks.factory import checked, create, num_params
from ..networks.inference import optimize_for_inference
from ..networks.spec import NetworkSpec, is_import_path, read_spec
from ..networks.weights.files import StateDict, read_metadata, read_state_dict, tensors_to_bytes
from ..networks.weights.fit import has_attention, starts_as_identity
from ..networks.weights.translate import METADATA_KEY, is_affordable

# 3 has a preprocessing with a version: what reads 2 would pass over the new fields
FORMAT, _OLD_FORMATS = "whatwhere bundle 3", ("whatwhere bundle 1", "whatwhere bundle 2")
DESCRIPTION = "bundle.json"
WEIGHTS_NAME = re.compile(r"weights-[0-9a-f]{12}\.safetensors")


@dataclass(frozen=True)
class Bundle:
    """A network with what is needed to use it on images."""

    model: nn.Module  # in evaluation mode; returns logits in the order of `classes`
    spec: NetworkSpec
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    info: dict[str, Any]  # the epoch and its figures on the validation images
    digest: str = ""  # SHA-256 of the file of weights that it was read from

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Return the classes' probabilities (N, classes), float32, for uint8 pixels (N, 3, S, S)."""
        device = next(self.model.parameters()).device
        with held_apart("the network"):
            logits: Tensor = self.model(self.preprocessing.normalize(pixels.to(device)))
        return logits.float().softmax(1).cpu()

    def prepared(self, pixels: Tensor) -> tuple[Bundle, Tensor]:
        """Return this bundle with its network prepared by `optimize_for_inference`, and the probabilities of `pixels`.

        If these, uint8 (N, 3, S, S), get other probabilities then, the bundle itself is returned.
        """
        expected = self.probabilities(pixels)
        example = self.preprocessing.normalize(pixels[:1].to(next(self.model.parameters()).device))
        try:
            found = dataclasses.replace(self, model=optimize_for_inference(self.model, example))
            is_same = bool((found.probabilities(pixels) - expected).abs().max() < 1e-4)
        except Exception:  # it only saves time, and a user's network may raise anything
            is_same = False
        return found if is_same else self, expected


def save_bundle(folder: Path, bundle: Bundle) -> None:
    """Write a bundle into `folder`; one that is there already is whole until the new one is.

    Raises:
        UserError: It cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    told = {
        "network": msgspec.to_builtins(bundle.spec),
        "classes": list(bundle.classes),
        "preprocessing": bundle.preprocessing.to_dict(),
    }
    # The file of the weights says it too: its tensors fit networks that compute something else, and its checksum shows
    # whether one of the two was changed.
    # One entry: safetensors keeps no order, so that two could change the digest.
    content = tensors_to_bytes(bundle.model.state_dict(), {METADATA_KEY: json.dumps(told)})
    digest = hashlib.sha256(content).hexdigest()
    name = f"weights-{digest[:12]}.safetensors"
    write_bytes(folder / name, content)
    description = {
        "format": FORMAT,
        "weights": name,
        "sha256": digest,
        **told,
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

    The network is one of whatwhere, torchvision or timm by name; nothing in the files is executed or imported.

    Args:
        path: Where it is.
        device: Where the network is to compute.
        attention: For a network that was trained with an attention by import path, what that path named: a callable
            from a channel count to a module. The file names it; the caller imports it.

    Raises:
        UserError: There is none, it is damaged, or it needs an `attention` that is not given, or the other way round.
    """
    file = _file_of(path)
    if file is None:
        raise UserError(f"no bundle at {str(path)!r}; give the folder of a run of `whatwhere train`, or its best/")
    folder = file.parent
    found, spec, preprocessing, is_first = _described(file)
    with _damage_of(folder):
        content = read_file(folder / Path(found.weights).name)
        if hashlib.sha256(content).hexdigest() != found.sha256:
            raise ValueError("the checksum of the weights differs")
    found.check_told(folder)
    _check_attention(spec.attention, attention, folder)
    state = read_state_dict(folder / Path(found.weights).name)
    specs = [spec]
    if is_first and spec.attention_name and has_attention(state) and starts_as_identity(state):
        # format 1 does not say how the attention started; an attention of the user's may have a parameter `mix` too
        specs.insert(0, replace(spec, start="identity"))
    for candidate in specs:
        model = _network(candidate, attention, state)
        if model is not None:
            network = model.to(device).eval()
            return Bundle(network, candidate, tuple(found.classes), preprocessing, found.info, found.sha256)
    raise UserError(f"the weights in {str(folder)!r} are not those of {spec.describe()}")


def weights_of(path: Path) -> tuple[Path, NetworkSpec, Preprocessing] | None:
    """Return the file of weights of a bundle or of a run's best network, the network, and what it takes.

    `path` is as in `load_bundle`, or the file of weights itself, wherever it lies and whatever its name is; None where
    it is no bundle, or one of an old version without its `bundle.json`.
    """
    file = _file_of(path) or (_file_of(path.parent) if path.is_file() else None)
    if file is not None:
        found, spec, preprocessing, _ = _described(file)
        weights = file.parent / Path(found.weights).name
        if path.is_dir() or path.name in (file.name, weights.name):
            if weights.is_file():
                found.check_told(file.parent)
            return weights, spec, preprocessing
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    said = read_metadata(path).get(METADATA_KEY, "")
    if '"preprocessing"' not in said:  # of another program, or of an old version
        return None
    with _damage_of(path):
        told = parse_json(said, _Told)
        return path, read_spec(told.network), Preprocessing.of(told.preprocessing)


def _file_of(path: Path) -> Path | None:
    """Return the `bundle.json` at `path`: that file, one in the folder, or that of the folder of a run."""
    files = (path, path / DESCRIPTION, path / "best" / DESCRIPTION)
    return next((file for file in files if file.is_file() and file.suffix == ".json"), None)


def _described(file: Path) -> tuple[_Description, NetworkSpec, Preprocessing, bool]:
    """Return the content of a `bundle.json`, its network and preprocessing, and whether it is of the first format."""
    with _damage_of(file.parent):
        said = read_json(file, dict[str, Any])
        if said["format"] not in (FORMAT, *_OLD_FORMATS):
            is_ours = re.fullmatch(r"whatwhere bundle \d+", said["format"])
            raise (NewerError if is_ours else ValueError)(f"its format is {brief(said['format'])}, not {FORMAT!r}")
        is_first = said["format"] == _OLD_FORMATS[0]
        if is_first:
            kept = ("attention", "at", "width_factor", "model_kwargs", "as_published")
            network = {"name": said.get("architecture"), "num_classes": len(said.get("classes", ()))}
            said["network"] = network | {name: said[name] for name in kept if name in said}
        found = msgspec.convert(said, _Description)
        spec, preprocessing = read_spec(found.network), Preprocessing.of(found.preprocessing)
        found.check_network(spec)
    return found, spec, preprocessing, is_first


@contextlib.contextmanager
def _damage_of(folder: Path) -> Iterator[None]:
    """Raise UserError where a file of a bundle cannot be read."""
    try:
        yield
    except NewerError as error:
        raise UserError(
            f"the bundle {str(folder)!r} is of a newer version of whatwhere ({error}); pip install --upgrade whatwhere"
        ) from error
    except Unreadable:
        raise
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"the bundle {str(folder)!r} is damaged ({cause(error)})") from error


class _Description(msgspec.Struct):
    """What `bundle.json` holds."""

    format: str
    weights: str
    sha256: str
    network: dict[str, Any]
    classes: Annotated[list[str], msgspec.Meta(min_length=1)]
    preprocessing: dict[str, Any]
    info: dict[str, Any]

    def check_network(self, spec: NetworkSpec) -> None:
        if spec.num_classes != len(self.classes):
            raise ValueError(f"it names {len(self.classes)} classes, and its network has {spec.num_classes}")
        if spec.in_channels != 3:
            raise ValueError(f"its network takes images of {spec.in_channels} channels, not of 3")

    def check_told(self, folder: Path) -> None:
        """Raise UserError where the file of the weights tells another network, other classes or preprocessing."""
        said = read_metadata(folder / Path(self.weights).name).get(METADATA_KEY, "{}")
        with _damage_of(folder):
            # bundles of old versions tell the network alone, those of the first format in other words
            told = {} if self.format == _OLD_FORMATS[0] else parse_json(said, dict[str, Any])
            for name in told.keys() & {"network", "classes", "preprocessing"}:
                if told[name] != getattr(self, name):
                    raise ValueError(f"{DESCRIPTION} and {self.weights} differ in {name}")


class _Told(msgspec.Struct):
    """What the file of the weights tells of them."""

    network: dict[str, Any]
    preprocessing: dict[str, Any]


def _check_attention(named: str, given: Callable[..., nn.Module] | None, folder: Path) -> None:
    if is_import_path(named) and given is None:
        text = short(named, 200)
        raise UserError(
            f"the network in {str(folder)!r} was trained with the attention {brief(text)}; whatwhere never imports "
            f"code that a file names: give --attention {text}, or load_bundle(..., attention={text.partition(':')[2]})"
        )
    if given is not None and not is_import_path(named):
        raise UserError(
            f"the network in {str(folder)!r} needs no imported attention; leave out --attention (in Python `attention`)"
        )


def _network(spec: NetworkSpec, attention: Callable[..., nn.Module] | None, state: StateDict) -> nn.Module | None:
    """Return the network with the weights `state`; None if they are not its own."""
    spec = checked(spec)
    # a small file must not make a huge network
    asked = attention is None and spec.attention_name
    if asked and not is_affordable(state, asked, spec.attention_options):
        return None
    plain = replace(spec, attention="", attention_kwargs={}, at="", start="", replace="") if spec.attention else spec
    if num_params(plain) > sum(map(Tensor.numel, state.values())):
        return None
    model = create(spec, seed=0, attention=attention)
    try:
        model.load_state_dict(state)
    except RuntimeError:
        return None
    return model
