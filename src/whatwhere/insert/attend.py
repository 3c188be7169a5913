"""Putting attention into a network, and taking it out again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..attention import ATTENTION, Gate, attention_builder, starting_as_identity
from ..attention.gate import Start, check_choice, place_of
from ..attention.squeeze_excitation import Excitation
from ..base.errors import UserError
from ..base.modules import refuse_scripting, tensors_in
from ..base.randomness import seeded
from ..base.words import brief, cause, short
from ..models.initialization import resolve_seed
from ..ops import Call, why_apart, why_not_fused
from .flow import record
from .host import Inserted, inserted_in, is_attended, is_plain_batch_norm
from .place import Place, Skipped, relative
from .places import Places
from .plan import Plan
from .trial import Trial

Replace = Literal["se"]


def attend(
    model: nn.Module,
    attention: str | Callable[..., nn.Module],
    *,
    at: str | Sequence[str] | None = None,
    start: Start = "identity",
    replace: Replace | None = None,
    example: Any = None,
    attention_kwargs: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Put attention into a convolutional network, in place, and return it.

    The network runs once on `example`; from what is computed there follow the places, their channels, and a check
    afterwards. Parameters keep their names; those of the attention stand beside them, under the module that they
    belong to (`layer1.0.attention. ...`). Attention right behind a BatchNorm2d shares its passes, so that training
    keeps hardly more than before (`AttendedBatchNorm2d`). `detach` undoes it. Where a tool rebuilds the module behind
    which it stands (`convert_sync_batchnorm`, freezing, folding a norm into its convolution), the next call of the
    network puts it behind what stands there now, or raises UserError. A call of one of its methods does not.

    Args:
        model: Any network with 2-d convolutions, on any device, before it is compiled or wrapped.
        attention: A name in ATTENTION, or a callable from a channel count to a module that keeps its input's shape.
        at: "blocks" (before the sum of each residual block, on its branch: the place of the CBAM paper), "stages"
            (where the features are about to shrink, after the first residual block: that of the BAM paper), or
            shell-style patterns of module names, separated by commas, behind which it is to stand. None takes the
            attention's own place: "stages" for BAM and any module with the attribute `place = "stage"`, else "blocks".
        start: "identity" leaves what the network computes unchanged, bit for bit, until it has learned; "paper" is the
            module as published, which disturbs a trained network.
        replace: "se" puts it in the place of each squeeze-and-excitation module instead, whose weights go with it: then
            the identity start is as if the network had none. `at` does not count then.
        example: What the model is called with: a tensor, or a tuple of arguments. None tries one image of the usual
            sizes.
        attention_kwargs: Keyword arguments for the attention.
        seed: The initial weights of each attention are a function of (seed, its name); None draws a seed from torch's
            default generator.

    Raises:
        UserError: There is no place, a place cannot be had, or the network does not run; the model is then as it was.

    Example:
        >>> import torch, torchvision
        >>> from whatwhere import attend
        >>> model, images = torchvision.models.resnet18().eval(), torch.randn(2, 3, 64, 64)
        >>> before = model(images)
        >>> type(attend(model, "cbam").layer1[0].attention)
        <class 'whatwhere.attention.cbam.CBAM'>
        >>> torch.equal(model(images), before)
        True
    """
    prepared = _prepared(model, attention, at, start, replace, example, attention_kwargs, seed)
    done: list[tuple[nn.Module, Inserted]] = []
    try:
        for place, module in zip(prepared.places, prepared.modules, strict=True):
            done.append(_put(model, place, module))
        _check(model, prepared, is_unchanged=start == "identity" and replace is None)
    except BaseException:
        for keeper, inserted in reversed(done):
            inserted.remove(keeper)
        raise
    return model


def plan(
    model: nn.Module,
    attention: str | Callable[..., nn.Module],
    *,
    at: str | Sequence[str] | None = None,
    start: Start = "identity",
    replace: Replace | None = None,
    example: Any = None,
    attention_kwargs: Mapping[str, Any] | None = None,
) -> Plan:
    """Return where `attend` would put attention and what it would add; the arguments are those of `attend`.

    Example:
        >>> import torchvision
        >>> from whatwhere.insert import plan
        >>> where = plan(torchvision.models.resnet18(), "cbam")
        >>> len(where.places), where.num_params, sum(where.added_params)
        (8, 11689512, 89888)
    """
    prepared = _prepared(model, attention, at, start, replace, example, attention_kwargs, seed=0)
    places, skipped, modules = prepared.places, prepared.skipped, prepared.modules
    by_name = dict(model.named_modules())
    replaced = [by_name[place.host] if place.kind == "instead of" else nn.Identity() for place in places]
    return Plan(
        attention=attention
        if isinstance(attention, str)
        else short(getattr(attention, "__name__", "") or brief(attention)),
        start=start,
        places=tuple(places),
        skipped=tuple(skipped),
        num_params=_num_params(model),
        added_params=tuple(_num_params(new) - _num_params(old) for new, old in zip(modules, replaced, strict=True)),
        in_norm=tuple(
            place.kind == "behind" and is_plain_batch_norm(by_name[place.host]) and _is_fused(module)
            for place, module in zip(places, modules, strict=True)
        ),
    )


def detach(model: nn.Module) -> nn.Module:
    """Take out what `attend` has put into a network, in place, and return it: classes, modules, hooks are as before.

    Layers that a tool has rebuilt since stay as that tool has left them.

    Raises:
        UserError: There is nothing of `attend` in it.

    Example:
        >>> import torchvision
        >>> from whatwhere import attend, detach
        >>> model = torchvision.models.resnet18()
        >>> keys = list(model.state_dict())
        >>> list(detach(attend(model, "se")).state_dict()) == keys
        True
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"detach takes a torch.nn.Module, got a {type(model).__name__}")
    everything = inserted_in(model)
    for keeper, inserted in everything:
        inserted.check_can_be_removed(keeper)
    if not everything:
        raise UserError("there is no attention in the network that attend has put there")
    for keeper, inserted in reversed(everything):
        inserted.remove(keeper)
    return model


@dataclass(frozen=True)
class _Prepared:
    """What is to be put where."""

    trial: Trial
    places: list[Place]
    skipped: list[Skipped]
    modules: list[nn.Module]


def _prepared(
    model: nn.Module,
    attention: str | Callable[..., nn.Module],
    at: str | Sequence[str] | None,
    start: Start,
    replace: Replace | None,
    example: Any,
    attention_kwargs: Mapping[str, Any] | None,
    seed: int | None,
) -> _Prepared:
    """Return the places and the attention of each, the model still unchanged."""
    builder = attention_builder(attention)
    check_choice("start", start, get_args(Start))
    if replace is not None:
        check_choice("replace", replace, get_args(Replace))
    if attention_kwargs is not None and not isinstance(attention_kwargs, Mapping):
        raise UserError(f"attention_kwargs must be a dict of keyword arguments, got {brief(attention_kwargs)}")
    kwargs = dict(attention_kwargs or {})
    if "start" in kwargs:
        raise UserError("give start to attend itself, not among attention_kwargs")
    trial = Trial(model, example)
    hosts = dict(model.named_modules())
    seed = resolve_seed(seed)
    places = Places(model, trial.flow)
    if at is None and replace is None:
        at = _own_place(places, lambda channels: _built(builder, channels, kwargs, start), builder, seed)
    found, skipped = _found(places, at, replace)
    there = {inner for keeper, inserted in inserted_in(model) for inner in inserted.attention(keeper).modules()}
    modules: list[nn.Module] = []
    for place in found:
        host = hosts[place.host]
        if is_attended(host) or host in there:
            raise UserError(f"{place.label} has attention already; detach the model first")
        # parameters made in inference mode could never learn
        with torch.inference_mode(False), seeded(seed, f"{place.owner}.{place.name}"):
            module = _built(builder, place.channels, kwargs, start)
        like = next(filter(Tensor.is_floating_point, itertools.chain(host.parameters(), model.parameters())), None)
        if like is not None:
            module = module.to(like.device, like.dtype)
        modules.append(module.train(hosts[place.owner].training))
    inner = [layer for module in modules for layer in module.modules()]
    if len(set(inner)) < len(inner) or not {*model.modules(), *there}.isdisjoint(inner):
        raise UserError("the attention must be built anew for each place, and is one module in several")
    return _Prepared(trial, found, skipped, modules)


def _own_place(
    places: Places, build: Callable[[int], nn.Module], builder: Callable[..., nn.Module], seed: int
) -> Literal["blocks", "stages"]:
    """Return where an attention stands unless told otherwise: as its builder says, or a module built on trial."""
    if place_of(builder) == "stage":
        return "stages"
    candidates = places.blocks() or places.stages()
    if not candidates:
        return "blocks"
    with torch.inference_mode(False), seeded(seed, "place"):
        return "stages" if place_of(build(candidates[0].channels)) == "stage" else "blocks"


def _found(
    places: Places, at: str | Sequence[str] | None, replace: Replace | None
) -> tuple[list[Place], list[Skipped]]:
    """Return the places, and the residual blocks that can have none."""
    if replace == "se":
        return places.squeezes(), []
    if at == "blocks":
        found = places.blocks()
        if not found:
            why = "; ".join(f"{skipped.label}: {skipped.reason}" for skipped in places.skipped[:3])
            raise UserError(
                f"the network has no residual block that can take attention{f' ({why})' if why else ''}; let it "
                "stand at 'stages', or at patterns of module names such as 'features.*'"
            )
        return found, places.skipped
    if at == "stages":
        found = places.stages()
        if not found:
            raise UserError(
                "the network has no end of a stage, where all goes through one tensor before it shrinks; let it "
                "stand at patterns of module names such as 'features.*'"
            )
        return found, []
    listed = at if isinstance(at, Sequence) else ()
    patterns = tuple(part.strip() for part in at.split(",")) if isinstance(at, str) else tuple(listed)
    if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise UserError(f"at must be 'blocks', 'stages' or patterns of module names, got {brief(at)}")
    return places.matching(patterns), []


def _built(builder: Callable[..., nn.Module], channels: int, kwargs: dict[str, Any], start: Start) -> nn.Module:
    own = builder in ATTENTION.values()
    try:
        module = builder(channels, **kwargs, **({"start": start} if own else {}))
    except UserError:
        raise
    except Exception as error:  # a stranger's attention may raise anything
        reason = cause(error)
        raise UserError(
            f"the attention cannot be built from {channels} channels and {brief(kwargs)}: {reason}"
        ) from error
    if not isinstance(module, nn.Module):
        raise UserError(f"attention must build a torch.nn.Module from a channel count, got a {type(module).__name__}")
    if any(parameter.is_meta for parameter in module.parameters()):
        raise UserError("the attention is on the meta device; build it on a real one")
    # also a stranger's: what calls it, behind its host, is no TorchScript
    vars(module)["__prepare_scriptable__"] = refuse_scripting
    if start == "paper":
        return module
    _awaken(module)
    return module if own else starting_as_identity(module, channels)


@torch.no_grad()
def _awaken(module: nn.Module) -> None:
    """Let hidden units start alive: of narrow features there may be one, and it would then never learn.

    Each is turned to the side where features are that are positive on the whole, as after an activation; for features
    of nearly nothing, as after a norm that starts at zero, its bias decides.
    """
    for inner in module.modules():
        if isinstance(inner, Excitation):
            inner.fc1.weight.mul_(inner.fc1.weight.sum(1, keepdim=True).sign())
            if inner.fc1.bias is not None:
                inner.fc1.bias.abs_()


def _is_fused(attention: nn.Module) -> bool:
    """Return whether attention right behind a BatchNorm2d is computed in one `gate` with it."""
    if not isinstance(attention, Gate) or why_apart((attention, (Gate,))):
        return False
    return not why_not_fused(Call(attention.what, attention.where, arrangement=attention.arrangement))


def _num_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _put(model: nn.Module, place: Place, attention: nn.Module) -> tuple[nn.Module, Inserted]:
    """Put attention into its place; return its keeper, and what the keeper knows of it."""
    keeper = model.get_submodule(place.keeper)
    inserted = Inserted(
        relative(place.owner, place.keeper) or "",
        place.name,
        place.kind,
        relative(place.host, place.keeper) or "",
        relative(place.feeder, place.keeper),
        relative(place.follower, place.keeper),
    )
    inserted.put(keeper, attention)
    return keeper, inserted


def _check(model: nn.Module, prepared: _Prepared, *, is_unchanged: bool) -> None:
    """Raise UserError unless each attention has its turn once, and, if so asked, the network computes what it did."""
    trial = prepared.trial
    try:
        flow = record(model, lambda: model(*trial.arguments))
    except UserError:
        raise
    except Exception as error:  # a stranger's attention may raise anything
        raise UserError(f"with the attention the network does not run: {cause(error)}") from error
    for place, module in zip(prepared.places, prepared.modules, strict=True):
        num_calls = flow.num_calls(module)
        if num_calls != 1:
            raise UserError(f"attention at {place.label} would be called {num_calls} times in a forward pass")
    if not is_unchanged:
        return
    outputs = [tensors_in(output) for output in (trial.flow.output, flow.output)]
    # of a network that returns more each time nothing can be said
    if len(outputs[0]) == len(outputs[1]) and not all(map(_is_close, *outputs)):
        raise UserError(
            "the network would compute something else with attention that starts as the identity; an attention must "
            "not write into its input"
        )


def _is_close(before: Tensor, after: Tensor) -> bool:
    if before.shape != after.shape or before.layout != torch.strided:
        return before.shape == after.shape
    return torch.allclose(before, after, rtol=1e-3, atol=1e-3, equal_nan=True)
