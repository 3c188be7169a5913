"""The arms of a comparison: one backbone, with and without attention, or wider."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ..base.errors import UserError
from ..base.words import brief, short, suggest
from ..networks.spec import ATTENTIONS, OWN_NETWORKS, NetworkSpec, is_import_path, parse_arguments
from ..training.config import network_of

NONE, WIDE = "none", "wide"
# a comma outside of braces
_BETWEEN_ARMS = re.compile(r",(?![^{]*\})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")


class Arm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One arm.

    Attributes:
        name: What it is called, and its folder.
        spec: "none", the name of an attention, MODULE:NAME of one's own, either of them with arguments as in
            "cbam{reduction:8}", "wide", or "wide:ARM".
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


def parse_arms(text: str) -> tuple[Arm, ...]:
    """Return the arms in "none,se,cbam,cbam8=cbam{reduction:8},wide,mine=my_module:MyGate": each SPEC, or NAME=SPEC.

    Raises:
        UserError: An empty or repeated name, or one that cannot be a folder's.
    """
    arms: list[Arm] = []
    for part in _BETWEEN_ARMS.split(text):
        label, equals, spec = part.strip().partition("=")
        if not equals or "{" in label:
            spec = part
            # of my_module:MyGate the name, of wide:cbam all
            kind = spec.strip().partition("{")[0]
            label = kind.replace(":", "-") if _wide(kind) else kind.rpartition(":")[2]
        label, spec = label.strip(), spec.strip()
        if not spec:
            raise UserError(f"--attention {brief(text)} has an empty arm; give for example none,se,cbam")
        check_arm_name(label)
        if any(label.lower() == arm.name.lower() for arm in arms):
            raise UserError(
                f"--attention names {brief(label)} twice; name one of them otherwise, such as other={short(spec)}"
            )
        arm = Arm(label, spec)
        if arm.attention_kwargs and (arm.attention == NONE or _wide(arm.attention)):
            raise UserError(f"the arm {brief(label)} takes no arguments; write {short(arm.attention)}")
        arms.append(arm)
    return tuple(arms)


def with_arguments(arms: Sequence[Arm], kwargs: Mapping[str, Any]) -> tuple[Arm, ...]:
    """Return the arms, those with attention and no arguments of their own with these.

    Raises:
        UserError: There is no such arm.
    """
    changed = [
        Arm(arm.name, f"{arm.spec}{json.dumps(kwargs)}")
        if arm.spec != NONE and not _wide(arm.attention) and not arm.attention_kwargs
        else arm
        for arm in arms
    ]
    if changed == list(arms):
        raise UserError("--attention-kwargs is for arms with attention, and there is none without its own arguments")
    return tuple(changed)


def check_arm_name(name: str) -> None:
    """Raise UserError unless `name` can be an arm's, and a folder's."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"an arm cannot be called {brief(name)}; give letters, digits, _ . + or -, such as mine=my_module:MyGate"
        )


def is_code(spec: str) -> bool:
    """Return whether an arm is MODULE:NAME, code of the user."""
    kind = spec.partition("{")[0]
    return is_import_path(kind) and not _wide(kind)


def _wide(spec: str) -> bool:
    return spec == WIDE or spec.startswith(f"{WIDE}:")


def run_options(arms: Sequence[Arm], backbone: str, num_classes: int, at: str = "") -> dict[str, dict[str, Any]]:
    """Return the options of a training run that make each arm's network: `model`, `attention`, `at`, `width_factor`.

    `at` is where attention stands in all arms. A wide arm is the backbone with the width at which its number of
    parameters is nearest to the arm's it names, or to the largest arm's.

    Raises:
        UserError: An unknown backbone, attention or arm, a network that cannot be built, or one that is no wider.
    """
    from ..networks.libraries import full_name
    from ..networks.width import width_factor_for

    backbone = full_name(backbone)
    plain = NetworkSpec(name=backbone)
    if plain.backbone != backbone:
        raise UserError(f"--backbone {backbone} has attention in its name; give {plain.backbone}")
    if not plain.is_own and any(_wide(arm.spec) for arm in arms):
        raise UserError(f"a wide arm needs a network of whatwhere (`whatwhere models`), not {backbone}")
    options = {arm.name: _named(arm, backbone, at) for arm in arms if not _wide(arm.spec)}
    if len(options) == len(arms):
        return options
    counts = {name: num_params(choice, num_classes) for name, choice in options.items()}
    if not counts:
        raise UserError("a wide arm needs another one whose number of parameters it is to have; give none,cbam,wide")
    for arm in arms:
        if _wide(arm.spec):
            other = arm.spec.partition(":")[2] or max(counts, key=counts.__getitem__)
            if other not in counts:
                raise UserError(f"{short(arm.spec)}: no arm is called {brief(other)}{suggest(other, list(counts))}")
            factor = width_factor_for(backbone, counts[other], num_classes=num_classes)
            if factor == 1:
                raise UserError(
                    f"the arm {arm.name} would be no wider than {backbone}: {other} has hardly more parameters"
                )
            options[arm.name] = {"model": backbone, "width_factor": factor, **_nowhere(at)}
    return {arm.name: options[arm.name] for arm in arms}


def _named(arm: Arm, backbone: str, at: str) -> dict[str, Any]:
    from ..networks.factory import checked

    if arm.spec == NONE:
        return {"model": backbone, **_nowhere(at)}
    attention, kwargs = arm.attention, arm.attention_kwargs
    given = {"attention_kwargs": kwargs} if kwargs else {}
    if is_code(arm.spec):
        return {"model": backbone, "attention": attention, **given}
    if attention not in ATTENTIONS:
        known = [NONE, *ATTENTIONS, WIDE]
        raise UserError(
            f"unknown attention {brief(attention)}{suggest(attention, known)}; known: {', '.join(known)}, and "
            "MODULE:NAME of your own"
        )
    if at or f"{attention}_{backbone}" not in OWN_NETWORKS:
        # of the article's networks there are some only
        checked(NetworkSpec(name=backbone, attention=attention, at=at))
        return {"model": backbone, "attention": attention, **given}
    return {"model": f"{attention}_{backbone}", **given}


def _nowhere(at: str) -> dict[str, Any]:
    """Return what an arm without attention has in a comparison whose other arms have it `at` a place."""
    return {"at": ""} if at else {}


def num_params(options: Mapping[str, Any], num_classes: int) -> int:
    """Return the number of parameters of the network that a run with `options` trains."""
    from ..networks import factory

    spec = network_of(options, num_classes)
    # the user's module may not know the meta device
    if is_import_path(spec.attention):
        return sum(parameter.numel() for parameter in build(options, num_classes, seed=0).parameters())
    return factory.num_params(spec)


def build(options: Mapping[str, Any], num_classes: int, seed: int) -> Any:
    """Return the network that a run with `options` trains, from scratch."""
    from ..attention import attention_by_path
    from ..networks import create

    spec = network_of(options, num_classes)
    attention = attention_by_path(spec.attention) if is_import_path(spec.attention) else None
    return create(spec, seed=seed, attention=attention)


def describe(options: Mapping[str, Any]) -> str:
    """Return an arm's network in words."""
    return network_of(options).describe()
