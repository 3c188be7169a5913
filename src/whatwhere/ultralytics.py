"""Attention in networks that Ultralytics trains: `YOLO("yolo11n.pt").train(trainer=trainer("cbam"), data=...)`.

Ultralytics builds the network anew from its YAML when training begins, so attention that `attend` has put into
`YOLO(...).model` is lost there without a word. `trainer` returns a trainer of Ultralytics that calls `attend` on the
network that is trained, after the pretrained weights were copied into it.
"""

from __future__ import annotations

import base64
import copy
import importlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import nn
from ultralytics.cfg import TASKS
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils import LOGGER, RANK

from .attention import attention_builder, attention_by_path, no_weight_decay
from .attention.gate import Start, largest_mix
from .base.errors import UserError
from .base.files import write_json
from .base.words import brief, few
from .collect.result import told_of_mix
from .collect.ultralytics import RECORD, AttentionRecord, last_line
from .insert import attend, detach
from .insert.attend import Replace, check_options
from .insert.host import inserted_in
from .networks.factory import name_of
from .networks.spec import is_import_path

_MARK = "_attended_"
_LONGEST = 100_000  # bytes of what the name of a class holds
_OTHER_HEADS = {  # networks that a task's usual trainer cannot train: how their last layer begins, the trainer that can
    "RTDETRDecoder": "ultralytics.models.rtdetr.train.RTDETRTrainer",
    "WorldDetect": "ultralytics.models.yolo.world.WorldTrainer",
    "YOLOEDetect": "ultralytics.models.yolo.yoloe.YOLOETrainer",
    "YOLOESegment": "ultralytics.models.yolo.yoloe.YOLOESegTrainer",
}
_PLAIN = (bool, int, float, str, tuple, list)
_NO_SETTINGS = ("training", "inplace", "backend")  # attributes of modules that do not change what is computed
_OPTIONS = ("at", "start", "replace", "attention_kwargs")


def trainer(
    attention: str | Callable[..., nn.Module] | Sequence[Mapping[str, Any]],
    *,
    at: str | Sequence[str] | None = None,
    start: Start = "identity",
    replace: Replace | None = None,
    attention_kwargs: Mapping[str, Any] | None = None,
    base: type[BaseTrainer] | None = None,
) -> Callable[..., BaseTrainer]:
    """Return a trainer for the argument `trainer` of Ultralytics' `train`, which trains the network with attention.

    The network is built and the weights are copied as without attention; then `attend` puts attention in, so that the
    first step starts from what the network computed before. Attention is in the averaged weights (EMA), in `last.pt`
    and in `best.pt`, which load where whatwhere is installed. If the weights have attention already (`resume=True`, or
    training that goes on from `best.pt`), its tensors are copied too. What was put in is written to `attention.json`,
    beside `args.yaml`. Mixing factors and scales of the attention get no weight decay (`no_weight_decay`).

    The attention's initial weights are a function of Ultralytics' `seed`. They take no random numbers of the training:
    runs with the same seed see the same images in the same order, with and without attention.

    Args:
        attention: A name, an import path MODULE:NAME or a callable, as in `attend`; or several attentions: a list of
            dicts with the arguments of `attend`: `[{"attention": "cbam"}, {"attention": "eca", "at": "model.9"}]`.
        at: As in `attend`; names of modules begin with `model.`, as in `YOLO(...).model`.
        start: As in `attend`.
        replace: As in `attend`.
        attention_kwargs: As in `attend`.
        base: A trainer class to extend; None takes that of the model's task (detect, segment, classify, pose, obb).

    Raises:
        UserError: A wrong argument. When training begins: no place for the attention, weights with another attention,
            or `freeze` holds all attention.

    Example:
        >>> from ultralytics import YOLO  # doctest: +SKIP
        >>> from whatwhere.ultralytics import trainer  # doctest: +SKIP
        >>> YOLO("yolo11n.pt").train(trainer=trainer("cbam", at="blocks"), data="coco8.yaml")  # doctest: +SKIP
    """
    given = {"at": at, "start": start, "replace": replace, "attention_kwargs": attention_kwargs}
    steps = _checked(attention, given)
    if base is not None:
        if not (isinstance(base, type) and issubclass(base, BaseTrainer)):
            raise UserError(f"base must be a trainer class of Ultralytics, got {brief(base)}")
        return _attending(base, steps)

    def of_task(*args: Any, **kwargs: Any) -> BaseTrainer:
        # called as a trainer class is: (cfg, overrides, _callbacks)
        overrides = kwargs.get("overrides", args[1] if len(args) > 1 else None) or {}
        return _attending(_trainer_of(overrides.get("task")), steps)(*args, **kwargs)

    return of_task


def _checked(attention: Any, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the arguments of each call of `attend`."""
    if isinstance(attention, str) or not isinstance(attention, Sequence):
        steps = [{"attention": attention, **options}]
    else:
        given = [name for name, value in options.items() if value not in (None, "identity")]
        if given:
            raise UserError(f"with a list of attentions, give {few(given, 4)} in the dict of each")
        for step in attention:
            if not isinstance(step, Mapping) or "attention" not in step or not set(step) <= {"attention", *_OPTIONS}:
                raise UserError(
                    "each attention of a list is a dict such as {'attention': 'cbam', 'at': 'blocks'}; it may also "
                    f"have 'start', 'replace' and 'attention_kwargs'; got {brief(step)}"
                )
        steps = [{**options, **step} for step in attention]
    if not steps:
        raise UserError("the list of attentions is empty")
    for step in steps:
        # copies: the class stays as it is when the user changes a list or a dict later
        step.update(copy.deepcopy({name: step.get(name) for name in _OPTIONS}))
        step["attention_kwargs"] = check_options(*(step[name] for name in _OPTIONS))
        named = step["attention"]
        is_path = isinstance(named, str) and is_import_path(named)
        step["attention"] = attention_by_path(named) if is_path else attention_builder(named)
    return steps


def _trainer_of(task: str | None) -> type[BaseTrainer]:
    """Return Ultralytics' trainer class for a task."""
    if not task:
        raise UserError("no task is given; give base, such as base=ultralytics.models.yolo.detect.DetectionTrainer")
    if task not in TASKS:
        raise UserError(
            f"Ultralytics has no task {brief(task)}; for a network with a trainer of its own, give base, the class of "
            "that trainer, such as base=ultralytics.models.yolo.world.WorldTrainer"
        )
    name = _module_of(task)
    return next(
        value
        for value in vars(importlib.import_module(name)).values()
        if isinstance(value, type) and issubclass(value, BaseTrainer) and value.__module__ == name
    )


def _module_of(task: str) -> str:
    return f"ultralytics.models.yolo.{task}.train"


def _attending(base: type[BaseTrainer], steps: list[dict[str, Any]]) -> type[BaseTrainer]:
    """Return `base` with attention.

    On several GPUs, Ultralytics starts processes that import the trainer's class by its name from this module. So the
    name holds what the class is made from, and `__getattr__` makes it again. A class that is made from what has no
    import path, such as a lambda, has a plain name: Ultralytics must then send the class itself, as newer versions do.
    """
    content = {"base": f"{base.__module__}:{base.__qualname__}", "steps": _named(steps)}
    name = f"{base.__name__}{_MARK}"
    try:
        text = json.dumps(content)
        packed = base64.b32encode(zlib.compress(text.encode())).decode().rstrip("=").lower()
        again, builders = _unpacked(packed), [step["attention"] for step in steps]
        # another process has another __main__
        if "__main__:" not in text and again[0] is base and [step["attention"] for step in again[1]] == builders:
            name += packed
    except (TypeError, ValueError, UserError):  # no JSON, no import path
        pass
    if name not in _CLASSES:
        made = type(name, (_Attending, base), {"__module__": __name__, "steps": steps, "__doc__": _Attending.__doc__})
        if name.endswith(_MARK):
            return made
        _CLASSES[name] = made
    return _CLASSES[name]


_CLASSES: dict[str, type[BaseTrainer]] = {}  # by name, so that each name is one class, as pickle asks


def _unpacked(packed: str) -> tuple[type[BaseTrainer], list[dict[str, Any]]]:
    """Return the arguments of `_attending` that a name holds."""
    coded = base64.b32decode(packed.upper() + "=" * (-len(packed) % 8))
    content = json.loads(zlib.decompressobj().decompress(coded, _LONGEST))
    module, _, qualname = content["base"].partition(":")
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, BaseTrainer)):
        raise UserError(f"{brief(content['base'])} is no trainer class of Ultralytics")
    return found, _checked(content["steps"], {})


def __getattr__(name: str) -> Any:
    _, mark, packed = name.partition(_MARK)
    if name in _CLASSES:
        return _CLASSES[name]
    if mark and packed:
        try:
            return _attending(*_unpacked(packed))
        except (ImportError, UserError):  # a module of the user that this process cannot import
            raise
        except Exception:  # a name from elsewhere may hold anything
            pass
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _named(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the steps with names and import paths of attentions, as JSON values."""
    return [{**step, "attention": name_of(step["attention"])} for step in steps]


class _Attending(BaseTrainer):  # type: ignore[misc]  # Ultralytics has no types
    """Mixin for a trainer of Ultralytics; it overrides what Ultralytics documents for own trainers."""

    steps: list[dict[str, Any]]

    def get_model(self, cfg: Any = None, weights: nn.Module | None = None, verbose: bool = True) -> nn.Module:
        """Return the network with attention and with the weights of a plain or an attended network."""
        self._check_can_train(cfg)
        theirs = _attentions(weights) if isinstance(weights, nn.Module) else {}
        # ours are put in behind the plain network's weights, so that as many of these fit as without attention
        plain = detach(copy.deepcopy(weights)) if weights is not None and theirs else weights
        model: nn.Module = super().get_model(cfg, plain, verbose)
        # large enough for all strides; the places do not depend on the size
        size = 4 * max(32, int(torch.as_tensor(getattr(model, "stride", 32)).max()))
        example = torch.zeros(1, self.data.get("channels", 3), size, size)
        for step in self.steps:
            attend(model, **step, example=example, seed=self.args.seed)
        ours = _attentions(model)
        if theirs:
            _copy(theirs, ours)
        self._warn_of_classes(ours)
        if verbose and RANK in {-1, 0}:
            names = ", ".join(step["attention"] for step in _named(self.steps))
            kept = ", copied from the weights" if theirs else ""
            LOGGER.info(f"whatwhere: {names} in {len(ours)} places, {_num_params(ours):,} parameters{kept}")
        return model

    def _check_can_train(self, cfg: Any) -> None:
        """Refuse a network that Ultralytics' usual trainer of the task cannot build or train."""
        classes = type(self).__mro__
        if not cfg or classes[classes.index(_Attending) + 1].__module__ != _module_of(self.args.task):
            return
        head = str((cfg if isinstance(cfg, dict) else yaml_model_load(cfg))["head"][-1][2])
        own = next((path for start, path in _OTHER_HEADS.items() if head.startswith(start)), None)
        if own is not None:
            raise UserError(f"a network with a {head} has a trainer of its own: give base={own}")

    def _warn_of_classes(self, attentions: dict[str, nn.Module]) -> None:
        inner = [module for attention in attentions.values() for module in attention.modules()]
        local = sorted({type(module).__qualname__ for module in inner if type(module).__module__ == "__main__"})
        if local:
            LOGGER.warning(
                f"whatwhere: {few(local)} is defined in the program that is running, so another program cannot load "
                "best.pt; define it in a file and import it from there"
            )

    def set_model_attributes(self) -> None:
        """Check that attention is in the network that is trained, and write down what it is."""
        super().set_model_attributes()
        if not _attentions(self.model):
            raise UserError("the network that Ultralytics trains has no attention; this trainer cannot train it")
        if RANK in {-1, 0}:
            self._write(self.model, last_line=last_line(self.save_dir))

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Add a line to results.csv, and mark the attention as that of the training with this line."""
        super().save_metrics(metrics)
        self._write(self.ema.ema, last_line=last_line(self.save_dir))

    def final_eval(self) -> None:
        """Tell how far the attention has come, after Ultralytics' last evaluation."""
        super().final_eval()
        if RANK not in {-1, 0} or not (attentions := _attentions(self.ema.ema)):
            return
        mix = largest_mix(nn.ModuleList(attentions.values()))
        self._write(self.ema.ema, largest_mix=mix, last_line=last_line(self.save_dir))
        if told := told_of_mix(mix):
            LOGGER.warning(f"whatwhere: {told}")

    def _write(self, model: nn.Module, **ends: Any) -> None:
        attentions = _attentions(model)
        record = AttentionRecord(
            format=1,
            attention=json.loads(json.dumps(_named(self.steps), default=str)),
            places=list(attentions),
            parameters=_num_params(attentions),
            **ends,
        )
        write_json(self.save_dir / RECORD, msgspec.to_builtins(record))

    def build_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Return Ultralytics' optimizer, without weight decay on mixing factors and scales of the attention."""
        optimizer: torch.optim.Optimizer = super().build_optimizer(model, *args, **kwargs)
        network = getattr(model, "module", model)
        own = [p for module in _attentions(network).values() for p in module.parameters()]
        num_frozen = sum(not p.requires_grad for p in own)
        if own and num_frozen == len(own):
            raise UserError(
                f"freeze={self.args.freeze} freezes the layers that hold all attention, which would stay as it starts; "
                "freeze fewer layers, or name other places with at"
            )
        if num_frozen:
            LOGGER.warning(
                f"whatwhere: freeze={self.args.freeze} holds {num_frozen} of {len(own)} tensors of the attention fixed"
            )
        exempt = no_weight_decay(network)
        _exempt(optimizer, [p for name, p in network.named_parameters() if name in exempt])
        return optimizer


def _attentions(model: nn.Module) -> dict[str, nn.Module]:
    """Return the attention that `attend` has put into a network, by the names of the modules."""
    names = {module: name for name, module in model.named_modules()}
    found = [(names[keeper], inserted, inserted.attention(keeper)) for keeper, inserted in inserted_in(model)]
    return {".".join(filter(None, (name, inserted.owner, inserted.name))): module for name, inserted, module in found}


def _num_params(attentions: dict[str, nn.Module]) -> int:
    return sum(p.numel() for module in attentions.values() for p in module.parameters())


def _copy(theirs: dict[str, nn.Module], ours: dict[str, nn.Module]) -> None:
    """Copy the tensors of the attention from the weights.

    Raises:
        UserError: The weights have other attention, or have it in other places.
    """
    differs = _difference(theirs, ours)
    if differs:
        raise UserError(
            f"the weights have other attention than the trainer: {differs}; give trainer the arguments with which the "
            "weights were trained, or take their attention out with whatwhere.detach"
        )
    for name, module in ours.items():
        module.load_state_dict(theirs[name].state_dict())


def _difference(theirs: dict[str, nn.Module], ours: dict[str, nn.Module]) -> str:
    """Say the first difference between the attention of the weights and that of the trainer; "" if there is none."""
    for place in {**theirs, **ours}:
        if place not in ours or place not in theirs:
            return f"{place} is attention in the {'weights' if place in theirs else 'trainer'} only"
        (has, has_set), (asks, asks_set) = _described(theirs[place]), _described(ours[place])
        pairs = {key: (has.get(key, "missing"), asks.get(key, "missing")) for key in {**has, **asks}}
        # other versions of a class may have more settings, or fewer
        pairs |= {key: (has_set[key], asks_set[key]) for key in has_set if key in asks_set}
        for key, (found, wanted) in pairs.items():
            if found != wanted:
                return f"at {place}, {key} is {found} in the weights and {wanted} in the trainer"
    return ""


def _described(attention: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what two attentions must agree in so that one can take the tensors of the other.

    These are the names of the classes and the shapes of the tensors; and the settings, such as the order of the maps:
    attributes that are plain values. In a class of the user, such an attribute may be anything: it does not count.
    """
    parts: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for path, module in attention.named_modules():
        parts[f"the class of {path}" if path else "the class"] = type(module).__name__
        if type(module).__module__.partition(".")[0] in ("torch", "whatwhere"):
            for key, value in vars(module).items():
                if not key.startswith("_") and key not in _NO_SETTINGS and isinstance(value, _PLAIN):
                    settings[f"{path}.{key}" if path else key] = value
    shapes = {f"the shape of {key}": tuple(value.shape) for key, value in attention.state_dict().items()}
    return {**parts, **shapes}, settings


def _exempt(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """Move parameters from groups that are decayed, or orthogonalised by Muon, into groups of their own."""
    chosen = set(map(id, parameters))
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in chosen]
        if moved and (group.get("weight_decay") or group.get("use_muon")):
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
            # the keys that Ultralytics reads: it changes the decay of groups by their label
            labels = {key: value for key, value in (("param_group", "bn"), ("use_muon", False)) if key in group}
            optimizer.add_param_group({**group, **labels, "params": moved, "weight_decay": 0.0})
