"""The arms of a comparison: one backbone, with and without attention, or wider."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from ..base.errors import UserError
from ..base.words import brief, counted, short, suggest
from ..networks.spec import ATTENTIONS, OWN_NETWORKS, STATIC, NetworkSpec, is_import_path, parse_arguments
from ..training.config import network_of
from .content import SHORT

if TYPE_CHECKING:
    from ..networks.weights.translate import Weights

NONE, WIDE = "none", "wide"
_TIME = "time"
_SHORT_PART = 0.5  # of the epochs
# a comma outside of braces
_BETWEEN_ARMS = re.compile(r",(?![^{]*\})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")


class Arm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One arm.

    Attributes:
        name: Its name, also of its folder.
        spec: "none", the name of an attention, "static:" and such a name for its placebo, MODULE:NAME of the user's
            code, each of them with arguments as in "cbam{reduction:8}"; "wide", "wide:ARM", "wide:time" or
            "wide:time:ARM"; "short" or "short:0.75".
    """

    name: str
    spec: str

    @property
    def attention(self) -> str:
        """The spec without arguments."""
        return self.spec.partition("{")[0]

    @property
    def attention_kwargs(self) -> dict[str, Any]:
        """The arguments in the spec."""
        _, brace, rest = self.spec.partition("{")
        return parse_arguments(brace + rest, f"the arm {self.name}:") if brace else {}

    @property
    def is_wide(self) -> bool:
        """Whether it is the backbone with more channels."""
        return self.attention.partition(":")[0] == WIDE

    @property
    def is_timed(self) -> bool:
        """Whether it is as wide as another arm is slow."""
        return self.is_wide and self.spec.split(":")[1:2] == [_TIME]

    @property
    def is_short(self) -> bool:
        """Whether it is the backbone trained for fewer epochs."""
        return self.attention.partition(":")[0] == SHORT

    @property
    def is_code(self) -> bool:
        """Whether it is MODULE:NAME, code of the user."""
        return self.takes_arguments and is_import_path(self.attention)

    @property
    def takes_arguments(self) -> bool:
        """Whether it has attention."""
        return self.attention != NONE and not self.is_wide and not self.is_short


def parse_arms(text: str) -> tuple[Arm, ...]:
    """Return the arms in "none,se,cbam,cbam8=cbam{reduction:8},wide,mine=my_module:MyGate": each SPEC, or NAME=SPEC.

    Raises:
        UserError: A name is empty, given twice, or not possible for a folder.
    """
    arms: list[Arm] = []
    for part in _BETWEEN_ARMS.split(text):
        label, equals, spec = (piece.strip() for piece in part.partition("="))
        if not equals or "{" in label:
            unnamed = Arm("", part.strip())
            # static:cbam is called static-cbam, my_module:MyGate is called MyGate
            kind = unnamed.attention
            label = kind.rpartition(":")[2] if unnamed.is_code else kind.replace(":", "-")
            label, spec = label.strip(), unnamed.spec
        if not spec:
            raise UserError(f"--attention {brief(text)} has an empty arm; give for example none,se,cbam")
        check_arm_name(label)
        if any(label.lower() == arm.name.lower() for arm in arms):
            raise UserError(
                f"--attention names {brief(label)} twice; give one of them another name, such as other={short(spec)}"
            )
        arm = Arm(label, spec)
        if arm.attention_kwargs and not arm.takes_arguments:
            raise UserError(f"the arm {brief(label)} takes no arguments; write {short(arm.attention)}")
        arms.append(arm)
    return tuple(arms)


def with_arguments(arms: Sequence[Arm], kwargs: Mapping[str, Any]) -> tuple[Arm, ...]:
    """Give these arguments to the arms with attention that have none of their own.

    Raises:
        UserError: There is no such arm.
    """
    changed = tuple(
        Arm(arm.name, f"{arm.spec}{json.dumps(kwargs)}") if arm.takes_arguments and not arm.attention_kwargs else arm
        for arm in arms
    )
    if changed == tuple(arms):
        raise UserError("--attention-kwargs is for arms with attention, and there is none without its own arguments")
    return changed


def check_arm_name(name: str) -> None:
    """Raise UserError unless an arm and its folder can have this name."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"an arm cannot be called {brief(name)}; give letters, digits, _ . + or -, such as mine=my_module:MyGate"
        )


def run_options(
    arms: Sequence[Arm],
    backbone: str,
    num_classes: int,
    at: str = "",
    epochs: int = 1,
    widths: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, dict[str, Any]]:
    """Return the options of a training run that make each arm: `model`, `attention`, `at`, `width_factor`, `epochs`.

    `at` is where attention stands in all arms. A wide arm is the backbone with the width that brings its number of
    parameters nearest to that of the arm it names, or of the largest arm; the width of a timed one is measured
    (`costs.width_for_time`), and the arm is left out until `widths` has it. A short arm is the backbone, trained for a
    part of the `epochs` of the others.

    Raises:
        UserError: An unknown backbone, attention or arm, a network that cannot be built, a wide arm that is no wider,
            or a short one that is no shorter.
    """
    from ..networks.libraries import full_name
    from ..networks.width import width_factor_for

    backbone = full_name(backbone)
    plain = NetworkSpec(name=backbone)
    if plain.backbone != backbone:
        raise UserError(f"--backbone {backbone} has attention in its name; give {plain.backbone}")
    if not plain.is_own and any(arm.is_wide for arm in arms):
        raise UserError(f"a wide arm needs a network of whatwhere (`whatwhere models`), not {backbone}")
    without = plain_options(backbone, at)
    options = {arm.name: _attentive(arm, backbone, at) if arm.takes_arguments else without for arm in arms}
    options |= {arm.name: {**without, "epochs": fewer_epochs(arm, epochs)} for arm in arms if arm.is_short}
    by_params = [arm for arm in arms if arm.is_wide and not arm.is_timed]
    for arm in arms:
        if arm.is_timed:
            del options[arm.name]
            if arm.name in widths:
                options[arm.name] = {**without, "width_factor": widths[arm.name]}
            timed_as(arm, arms)
    if not by_params:
        return options
    counts = {arm.name: num_params({"at": at, **options[arm.name]}, num_classes) for arm in arms if not arm.is_wide}
    if not counts:
        raise UserError("a wide arm needs another arm, for its number of parameters; give none,cbam,wide")
    for arm in by_params:
        other = arm.spec.partition(":")[2] or max(counts, key=counts.__getitem__)
        _check_known(other, counts, arm)
        factor = width_factor_for(backbone, counts[other], num_classes=num_classes)
        wide = {"model": backbone, "width_factor": factor, **without}
        # a factor above 1 may be too small for one channel more
        if num_params(wide, num_classes) == num_params(without, num_classes):
            raise UserError(f"the arm {arm.name} would be no wider than {backbone}: {other} has hardly more parameters")
        options[arm.name] = wide
    return options


def plain_options(backbone: str, at: str) -> dict[str, Any]:
    """Return the options of a run without attention, where attention stands `at` a place in other arms."""
    return {"model": backbone, **({"at": ""} if at else {})}


def timed_as(arm: Arm, arms: Sequence[Arm]) -> list[str]:
    """Return the names of the arms of which the slowest takes as long as the timed arm shall.

    Raises:
        UserError: It names no arm, or there is none with attention.
    """
    attentive = [other.name for other in arms if other.takes_arguments]
    if named := arm.spec.partition(f":{_TIME}")[2].removeprefix(":"):
        _check_known(named, attentive, arm)
        return [named]
    if not attentive:
        raise UserError(f"the arm {arm.name} needs an arm with attention, for its time; give none,cbam,{arm.spec}")
    return attentive


def _check_known(name: str, known: Collection[str], arm: Arm) -> None:
    if name not in known:
        raise UserError(f"{short(arm.spec)}: no arm is called {brief(name)}{suggest(name, list(known))}")


def fewer_epochs(arm: Arm, epochs: int) -> int:
    """Return the number of epochs of a short arm."""
    _, colon, text = arm.spec.partition(":")
    try:
        part = float(text) if colon else _SHORT_PART
    except ValueError:
        part = math.nan
    if not 0 < part < 1:
        raise UserError(f"the arm {short(arm.spec)} needs a part of the epochs between 0 and 1, such as {SHORT}:0.75")
    fewer = max(1, round(part * epochs))
    if fewer == epochs:
        raise UserError(
            f"the arm {arm.name} would be no shorter: {part:g} of {counted(epochs, 'epoch')}; give more --epochs, or "
            "leave out the arm"
        )
    return fewer


def _attentive(arm: Arm, backbone: str, at: str) -> dict[str, Any]:
    """Return the options of an arm with attention."""
    from ..networks.factory import checked

    attention, kwargs = arm.attention, arm.attention_kwargs
    given = {"attention_kwargs": kwargs} if kwargs else {}
    if arm.is_code:
        return {"model": backbone, "attention": attention, **given}
    if attention.removeprefix(STATIC) not in ATTENTIONS:
        known = [NONE, *ATTENTIONS, WIDE, SHORT]
        raise UserError(
            f"unknown attention {brief(attention)}{suggest(attention, known)}; known: {', '.join(known)}, "
            f"{STATIC}cbam and the like for placebos, and MODULE:NAME of your own"
        )
    if at or f"{attention}_{backbone}" not in OWN_NETWORKS:
        checked(NetworkSpec(name=backbone, attention=attention, at=at))
        return {"model": backbone, "attention": attention, **given}
    return {"model": f"{attention}_{backbone}", **given}


def starting_as_identity(arm: Arm) -> Arm | None:
    """Return the arm whose attention starts as the identity.

    None where it does, or has no start, or is a placebo, which nobody means to keep.
    """
    from ..attention import attention_builder

    name, kwargs = arm.attention, arm.attention_kwargs
    if name not in ATTENTIONS or "start" in kwargs or getattr(attention_builder(name), "identity_at_start", False):
        return None
    arguments = ",".join(f"{key}:{json.dumps(value)}" for key, value in kwargs.items())
    return Arm(f"{arm.name}-identity", f"{name}{{{arguments}{',' * bool(kwargs)}start:identity}}")


def num_params(options: Mapping[str, Any], num_classes: int) -> int:
    """Return the number of parameters of the network that a run with `options` trains."""
    from ..networks import factory

    spec = network_of(options, num_classes)
    # the user's module may not work on the meta device
    if is_import_path(spec.attention):
        return sum(parameter.numel() for parameter in build(options, num_classes, seed=0).parameters())
    return factory.num_params(spec)


def build(options: Mapping[str, Any], num_classes: int, seed: int, weights: Weights | None = None) -> Any:
    """Return the network that a run with `options` trains, at its start from `weights`."""
    from ..attention import attention_by_path
    from ..networks import create

    spec = network_of(options, num_classes)
    attention = attention_by_path(spec.attention) if is_import_path(spec.attention) else None
    return create(spec, pretrained=weights, seed=seed, attention=attention)


def describe(options: Mapping[str, Any]) -> str:
    """Return an arm's network in words, and its number of epochs where that is its own."""
    shorter = f", {counted(options['epochs'], 'epoch')}" if "epochs" in options else ""
    return f"{network_of(options).describe()}{shorter}"
