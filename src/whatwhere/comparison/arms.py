"""The arms of a comparison: one backbone, with and without attention, or wider."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..base.errors import UserError
from ..base.words import brief, short, suggest

NONE, WIDE = "none", "wide"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: What it is called, and its folder.
        spec: "none", the name of an attention, MODULE:NAME of one's own, "wide", or "wide:ARM".
    """

    name: str
    spec: str


def parse_arms(text: str) -> tuple[Arm, ...]:
    """Return the arms in "none,se,cbam,wide,mine=my_module:MyGate": each SPEC, or NAME=SPEC.

    Raises:
        UserError: An empty or repeated name, or one that cannot be a folder's.
    """
    arms: list[Arm] = []
    for part in text.split(","):
        label, equals, spec = part.strip().partition("=")
        if not equals:
            spec = label
            # of my_module:MyGate the name, of wide:cbam all
            label = spec.replace(":", "-") if _wide(spec) else spec.rpartition(":")[2]
        label, spec = label.strip(), spec.strip()
        if not spec:
            raise UserError(f"--attention {brief(text)} has an empty arm; give for example none,se,cbam")
        check_arm_name(label)
        if any(label.lower() == arm.name.lower() for arm in arms):
            raise UserError(
                f"--attention names {brief(label)} twice; name one of them otherwise, such as other={short(spec)}"
            )
        arms.append(Arm(label, spec))
    return tuple(arms)


def check_arm_name(name: str) -> None:
    """Raise UserError unless `name` can be an arm's, and a folder's."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"an arm cannot be called {brief(name)}; give letters, digits, _ . + or -, such as mine=my_module:MyGate"
        )


def is_code(spec: str) -> bool:
    """Return whether an arm is MODULE:NAME, code of the user's."""
    return ":" in spec and not _wide(spec)


def _wide(spec: str) -> bool:
    return spec == WIDE or spec.startswith(f"{WIDE}:")


def run_options(arms: Sequence[Arm], backbone: str, num_classes: int, at: str = "") -> dict[str, dict[str, Any]]:
    """Return the options of a training run that make each arm's network: `model`, `attention`, `at`, `width_factor`.

    `at` is where attention stands in all arms. A wide arm is the backbone with the width at which its number of
    parameters is nearest to the arm's it names, or to the largest arm's.

    Raises:
        UserError: An unknown backbone, attention or arm, a network that cannot be built, or one that is no wider.
    """
    from ..networks.libraries import full_name, is_other
    from ..networks.named import backbone_of
    from ..networks.width import width_factor_for

    backbone = full_name(backbone)
    if backbone_of(backbone) != backbone:
        raise UserError(f"--backbone {backbone} has attention in its name; give {backbone_of(backbone)}")
    if is_other(backbone) and any(_wide(arm.spec) for arm in arms):
        raise UserError(f"a wide arm needs one of our own networks (`whatwhere models`), and {backbone} is none")
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
    from ..attention import ATTENTION
    from ..networks.create import MODELS
    from ..networks.named import check_network

    if arm.spec == NONE:
        return {"model": backbone, **_nowhere(at)}
    if is_code(arm.spec):
        return {"model": backbone, "attention": arm.spec}
    if arm.spec not in ATTENTION:
        known = [NONE, *ATTENTION, WIDE]
        hint = suggest(arm.spec, known)
        raise UserError(
            f"unknown attention {brief(arm.spec)}{hint}; known: {', '.join(known)}, and MODULE:NAME of your own"
        )
    name = f"{arm.spec}_{backbone}"
    if at or name not in MODELS:
        # of the article's networks there are some only
        check_network(backbone, attention=arm.spec, at=at)
        return {"model": backbone, "attention": arm.spec}
    return {"model": name}


def _nowhere(at: str) -> dict[str, Any]:
    """Return what an arm without attention has in a comparison whose other arms have it `at` a place."""
    return {"at": ""} if at else {}


def num_params(options: Mapping[str, Any], num_classes: int) -> int:
    """Return the number of parameters of the network that a run with `options` trains."""
    import torch

    from ..networks.libraries import is_other
    from ..training.config import is_import_path

    # a stranger's module may not know the meta device, and a network of others runs once to find the attention's
    # places; ours need neither memory nor random numbers there
    attention = options.get("attention", "")
    on_meta = not is_import_path(attention) and not (attention and (options.get("at") or is_other(options["model"])))
    with torch.device("meta") if on_meta else contextlib.nullcontext():
        return sum(parameter.numel() for parameter in build(options, num_classes, seed=0).parameters())


def build(options: Mapping[str, Any], num_classes: int, seed: int) -> Any:
    """Return the network that a run with `options` trains, from scratch."""
    from ..attention import attention_by_path
    from ..training.config import Config, is_import_path
    from ..training.setup import build_model

    config = Config(**{**options, "seed": seed, "pretrained": ""})
    attention = attention_by_path(config.attention) if is_import_path(config.attention) else None
    return build_model(config, num_classes, attention)


def describe(options: Mapping[str, Any]) -> str:
    """Return an arm's network in words."""
    text = str(options["model"])
    if options.get("attention"):
        text += f" with {options['attention']}"
    if options.get("width_factor", 1.0) != 1.0:
        text += f", {options['width_factor']:.4g} times as wide"
    return text
