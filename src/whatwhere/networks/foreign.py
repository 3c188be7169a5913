"""Networks that `attend` and `summary` take and `train` does not: detectors, YOLO, code of the user.

Their names come from the command line alone, never from a file: a name can run the user's code.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from ..base.code import imported, raised, told
from ..base.documents import read_yaml
from ..base.errors import UserError
from ..base.limits import NETWORK_REPEATS, NETWORK_SIZES
from ..base.modules import is_ultralytics_wrapper
from ..base.randomness import seeded
from ..base.words import brief, cause
from ..insert.attend import attend
from .factory import create
from .libraries import LIBRARIES, is_of_ultralytics, other_tasks, quiet
from .spec import OWN_NETWORKS, NetworkSpec, is_import_path

USUAL_INPUT_SIZE, _OF_DETECTORS = (3, 224, 224), (3, 640, 640)


def create_any(spec: NetworkSpec, *, num_classes: int | None, seed: int) -> nn.Module:
    """Build the network `spec` as `create` does, or one of another kind.

    The kinds, by name:

    - `yolo11n.yaml`, or the path of such a file: Ultralytics builds it;
    - a detector or a segmentation network of torchvision, by name;
    - MODULE:NAME, code of the user: a function or a class that returns a network, or a network.

    Args:
        spec: The description; its `num_classes` does not count.
        num_classes: None takes the number that the network has by itself, 1000 for a classifier.
        seed: As in `create`.

    Raises:
        UserError: No such network, an error in the user's code, a file that Ultralytics cannot read, or
            Ultralytics is not installed.
    """
    if not is_foreign(spec.name):
        return create(replace(spec, num_classes=num_classes or 1000), seed=seed)
    with seeded(seed, "construction"):
        model = _built(spec.name, {} if num_classes is None else {"num_classes": num_classes})
    if not spec.attention:
        return model
    return attend(
        model, spec.attention, at=spec.at or None, start="paper", attention_kwargs=spec.attention_kwargs, seed=seed
    )


def is_foreign(name: str) -> bool:
    """Return whether a network is of another kind than those of `create`."""
    if name in OWN_NETWORKS:
        return False
    return is_of_ultralytics(name) or is_code(name) or name.removeprefix("torchvision:") in other_tasks()


def is_code(name: str) -> bool:
    """Return whether the name of a network is MODULE:NAME, rather than LIBRARY:NAME."""
    return is_import_path(name) and name.partition(":")[0] not in LIBRARIES and not is_of_ultralytics(name)


def usual_input_size(model: nn.Module) -> tuple[int, int, int]:
    """Return the usual size of an image: 3x640x640 for a detector of torchvision or Ultralytics, else 3x224x224."""
    module, name = type(model).__module__, type(model).__name__
    is_yolo = module.startswith("ultralytics.") and name != "ClassificationModel"
    return _OF_DETECTORS if is_yolo or module.startswith("torchvision.models.detection") else USUAL_INPUT_SIZE


def _built(name: str, options: dict[str, Any]) -> nn.Module:
    if is_of_ultralytics(name):
        return _of_ultralytics(name, options)
    if is_code(name):
        return _of_user(name, options)
    import torchvision

    own = name.removeprefix("torchvision:")
    try:
        with quiet():
            model: nn.Module = torchvision.models.get_model(own, weights=None, weights_backbone=None, **options)
        return model
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} cannot be built: {cause(error)}") from error


def _of_user(path: str, options: dict[str, Any]) -> nn.Module:
    found = imported(path, "network", "my_networks:build")
    if isinstance(found, nn.Module):
        if options:
            raise UserError(f"network {brief(path)} is built already, with its number of classes; leave out --classes")
        made: Any = found
    elif not callable(found):
        kind = type(found).__name__
        raise UserError(f"network {brief(path)} is of type {kind}; give a function or a class that returns a network")
    else:
        _check_call(path, found, options)
        with told(f"network {brief(path)}: calling it"):
            made = found(**options)
    if isinstance(made, nn.Module) and is_ultralytics_wrapper(made):
        made = vars(made)["_modules"].get("model")
    if not isinstance(made, nn.Module):
        raise UserError(f"network {brief(path)} must return a torch.nn.Module, got a {type(made).__name__}")
    return made


def _check_call(path: str, found: Callable[..., Any], options: dict[str, Any]) -> None:
    """Raise UserError if a function or class cannot be called with `options`."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return  # code in C, such as `dict`, has none: the call tells
    try:
        signature.bind(**options)
    except TypeError as error:
        given, advice = (
            ("num_classes alone", "leave out --classes") if options else ("no argument", "give one that can")
        )
        raise UserError(f"network {brief(path)} cannot be called with {given}: {cause(error)}; {advice}") from error


def _of_ultralytics(name: str, options: dict[str, Any]) -> nn.Module:
    if not name.lower().endswith((".yaml", ".yml")):
        raise UserError(
            f"{brief(name)} is a pickle, and reading it would run what is in it; give the network's YAML, such as "
            "yolo11n.yaml, or MODULE:NAME, a function of yours that returns YOLO('yolo11n.pt').model"
        )
    if "://" in name:
        raise UserError(f"{brief(name)} is an address; download the file and give its path")
    try:
        # its messages are no part of the result, and at its first start it reports a new file of settings
        with contextlib.redirect_stdout(io.StringIO()), quiet():
            from ultralytics import RTDETR, YOLO
            from ultralytics.nn.tasks import yaml_model_load
    except ModuleNotFoundError as error:
        raise UserError(f"{brief(name)} needs Ultralytics; install it: pip install ultralytics") from error
    try:
        with contextlib.redirect_stdout(sys.stderr), quiet():
            if os.path.isfile(name):
                read_yaml(Path(name))  # refuses what would take for ever to read
            config = yaml_model_load(name)
            _check_activation(name, config.get("activation"))
            _check_layers(name, config)
            # both read such a file, but neither builds the other's networks
            kind = RTDETR if "RTDETRDecoder" in config["head"][-1] else YOLO
            with _bounded(name):
                model: nn.Module = kind(name).model
                return type(model)(name, nc=options["num_classes"], verbose=False) if options else model
    except UserError:
        raise
    except Exception as error:  # it reports a file that is missing or wrong in many ways
        raise UserError(f"Ultralytics cannot build {brief(name)}: {raised(error)}") from error


def _check_activation(name: str, activation: object) -> None:
    """Raise UserError unless the activation in a YAML is a layer of torch.nn: Ultralytics runs that text as code."""
    if activation is None:
        return
    with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        call = ast.parse(activation, mode="eval").body if isinstance(activation, str) else None
        if isinstance(call, ast.Call):
            for value in (*call.args, *(keyword.value for keyword in call.keywords)):
                ast.literal_eval(value)
            library, _, layer = ast.unparse(call.func).rpartition(".")
            if library in ("nn", "torch.nn") and isinstance(getattr(nn, layer, None), type):
                return
    raise UserError(f"the activation in {brief(name)} is {brief(activation)}; give a layer of torch, such as nn.ReLU()")


def _check_layers(name: str, config: dict[str, Any]) -> None:
    """Raise UserError unless each layer in a YAML is one of few, and a class of layers.

    Ultralytics calls whatever a YAML names in its own module: a function that loads a pickle or installs a package too,
    and whole networks, which read another YAML.
    """
    import torchvision
    from ultralytics.nn import tasks

    libraries = {"": tasks, "nn": nn, "torchvision.ops": torchvision.ops}
    num_layers = 0
    for _, repeats, layer, _ in [*config["backbone"], *config["head"]]:
        library, _, own = str(layer).rpartition(".")
        found: Any = getattr(libraries.get(library), own, None)
        is_layer = isinstance(found, type) and issubclass(found, nn.Module)
        if not is_layer or issubclass(found, (tasks.BaseModel, tasks.Ensemble)):
            raise UserError(
                f"{brief(name)} has the layer {brief(layer)}; give a layer of ultralytics.nn.modules, nn.NAME or "
                "torchvision.ops.NAME"
            )
        num_layers += repeats
    depths = [values[0] for values in (config.get("scales") or {}).values()]
    if num_layers * max(1, config.get("depth_multiple", 1), *depths) > NETWORK_REPEATS:
        raise UserError(f"{brief(name)} repeats layers more than {NETWORK_REPEATS:,} times in all; repeat fewer")


@contextlib.contextmanager
def _bounded(name: str) -> Iterator[None]:
    """Raise UserError when the modules that are built in the block become too many or too large."""
    counts = dict.fromkeys(NETWORK_SIZES, 0)

    def check(what: str, number: int) -> None:
        if number > NETWORK_SIZES[what]:
            raise UserError(f"{brief(name)} has more than {NETWORK_SIZES[what]:,} {what}; make the network smaller")

    def count(what: str, number: int) -> None:
        counts[what] += number
        check(what, counts[what])

    def count_buffer(_: nn.Module, __: str, buffer: torch.Tensor | None) -> None:
        count("values of buffers", 0 if buffer is None else buffer.numel())

    class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class is untyped
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            """Count one buffer before torch writes it, as zeros and ones are; that of `empty` costs nothing."""
            arguments = function._schema.arguments
            if arguments and arguments[0].name == "size" and "empty" not in function.name():
                check("values of buffers", math.prod(args[0]))
            return function(*args, **(kwargs or {}))

    # called before the initial weights are written
    handles = (
        register_module_module_registration_hook(lambda *_: count("modules", 1)),
        register_module_parameter_registration_hook(lambda *given: count("parameters", given[-1].numel())),
        register_module_buffer_registration_hook(count_buffer),
    )
    try:
        with Allocations():  # type: ignore[no-untyped-call]
            yield
    finally:
        for handle in handles:
            handle.remove()
