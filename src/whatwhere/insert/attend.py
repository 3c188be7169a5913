"""Put attention into a network, plan where it would go, and take it out again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..attention import Gate, attention_builder, starting_as_identity
from ..attention.builder import is_own, unknown_argument
from ..attention.gate import Start, check_choice, place_of, unwrapped
from ..attention.squeeze_excitation import Excitation
from ..base.errors import UserError
from ..base.modules import refuse_scripting, relative_name, tensors_in
from ..base.randomness import seeded
from ..base.words import brief, cause, short
from ..models.initialization import resolve_seed
from ..ops import Call, why_apart, why_not_fused
from .flow import Flow, record, record_example
from .host import Inserted, attached, inserted_in, is_plain_batch_norm
from .places import Places
from .plan import Place, Plan, Skipped

Replace = Literal["se"]
_FEW = 3  # fewer places than this are explained


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

    The network runs once on `example`. That shows the places and their channels, and a second run checks the result.
    Parameters keep their names. Those of the attention stand beside them, under the module that owns the attention
    (`layer1.0.attention. ...`). Attention right behind a BatchNorm2d is computed in one pass with it, so that training
    takes hardly more memory than before (`AttendedBatchNorm2d`). `detach` undoes everything.

    Some tools rebuild the layer before the attention (`convert_sync_batchnorm`, freezing, folding a norm into its
    convolution). The next call of the network then attaches the attention to the new layer, or raises UserError. A call
    of a method such as `forward_features` does not check this.

    Args:
        model: Any network with 2-d convolutions, on any device, before it is compiled or wrapped.
        attention: A name in ATTENTION, or a callable from a channel count to a module that keeps its input's shape.
        at: "blocks" (on the branch of each residual block, before the sum, as in the CBAM paper), "stages" (after the
            first residual block, wherever the features are about to shrink, as in the BAM paper), or shell-style
            patterns of module names, separated by commas: attention then stands behind these modules. None takes
            "stages" for BAM and any module with the attribute `place = "stage"`, else "blocks".
        start: "identity" keeps what the network computes, bit for bit, until the attention has learned; "paper" is the
            module as published, which disturbs a trained network.
        replace: "se" replaces each squeeze-and-excitation module, together with its weights; `at` then has no effect.
            The identity start computes what the network would without these modules.
        example: What the model is called with: a tensor, or a tuple of arguments. None tries one image of the usual
            sizes.
        attention_kwargs: Keyword arguments for the attention.
        seed: The initial weights of each attention are a function of (seed, its name); None draws a seed from torch's
            default generator.

    Raises:
        UserError: A wrong argument, no place for attention, or a network that does not run; the model stays as it was.

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
    prepared = _prepared(
        model, attention, at=at, start=start, replace=replace, example=example, given=attention_kwargs, seed=seed
    )
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
    """Return where `attend` would put attention and how many parameters it would add; same arguments as `attend`.

    Example:
        >>> import torchvision
        >>> from whatwhere.insert import plan
        >>> where = plan(torchvision.models.resnet18(), "cbam")
        >>> len(where.places), where.num_params, sum(where.added_params)
        (8, 11689512, 89888)
    """
    prepared = _prepared(
        model, attention, at=at, start=start, replace=replace, example=example, given=attention_kwargs, seed=0
    )
    by_name = dict(model.named_modules())
    added, in_norm = [], []
    for place, module in zip(prepared.places, prepared.modules, strict=True):
        host = by_name[place.host]
        added.append(_num_params(module) - (_num_params(host) if place.kind == "instead of" else 0))
        in_norm.append(place.kind == "behind" and is_plain_batch_norm(host) and _is_fused(module))
    own_name = getattr(attention, "__name__", "") or brief(attention)
    return Plan(
        attention=attention if isinstance(attention, str) else short(own_name),
        start=start,
        places=tuple(prepared.places),
        skipped=tuple(prepared.skipped),
        num_params=_num_params(model),
        added_params=tuple(added),
        in_norm=tuple(in_norm),
        note=prepared.note,
    )


def detach(model: nn.Module) -> nn.Module:
    """Take all attention that `attend` put into a network out again, in place, and return the network.

    Modules, classes and hooks are then as before. A layer that a tool has rebuilt since stays as the tool left it.

    Raises:
        UserError: The network has no attention from `attend`.

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
        raise UserError("the network has no attention that attend has put in")
    for keeper, inserted in reversed(everything):
        inserted.remove(keeper)
    return model


@dataclass(frozen=True)
class _Prepared:
    """The places of a network, and the attention for each."""

    flow: Flow
    places: list[Place]
    skipped: list[Skipped]
    note: str  # why there are so few places
    modules: list[nn.Module]


def _prepared(
    model: nn.Module,
    attention: str | Callable[..., nn.Module],
    *,
    at: str | Sequence[str] | None,
    start: Start,
    replace: Replace | None,
    example: Any,
    given: Mapping[str, Any] | None,
    seed: int | None,
) -> _Prepared:
    """Check the arguments, find the places and build the attention for each; the model stays unchanged."""
    builder = attention_builder(attention)
    kwargs = check_options(at, start, replace, given)
    flow = record_example(model, example)
    hosts = dict(model.named_modules())
    seed = resolve_seed(seed)
    places = Places(model, flow)
    if at is None and replace is None:
        at = "stages" if _is_for_stages(builder, kwargs, start, places, seed) else "blocks"
    found, skipped, note = _found(places, at, replace)
    modules: list[nn.Module] = []
    for place in found:
        host = hosts[place.host]
        if attached(host) or host in places.inserted:
            raise UserError(
                f"{place.label} has attention already; detach the model first, or name another place with at"
            )
        # parameters made in inference mode could never learn
        with torch.inference_mode(False), seeded(seed, f"{place.owner}.{place.name}"):
            module = _built(builder, place.channels, kwargs, start)
        like = next(filter(Tensor.is_floating_point, itertools.chain(host.parameters(), model.parameters())), None)
        if like is not None:
            module = module.to(like.device, like.dtype)
        modules.append(module.train(hosts[place.owner].training))
    inner = [layer for module in modules for layer in module.modules()]
    if len(set(inner)) < len(inner) or not {*model.modules(), *places.inserted}.isdisjoint(inner):
        raise UserError("the attention must be built anew for each place, but some places share one module")
    return _Prepared(flow, found, skipped, note, modules)


def check_options(at: Any, start: Any, replace: Any, attention_kwargs: Any) -> dict[str, Any]:
    """Return the attention's keyword arguments, if the options of `attend` are such as it takes.

    Raises:
        UserError: An option of another type, or an unknown choice.
    """
    if at is not None:
        _patterns_in(at)
    check_choice("start", start, get_args(Start))
    if replace is not None:
        check_choice("replace", replace, get_args(Replace))
    if attention_kwargs is not None and not isinstance(attention_kwargs, Mapping):
        raise UserError(f"attention_kwargs must be a dict of keyword arguments, got {brief(attention_kwargs)}")
    if "start" in (attention_kwargs or {}):
        raise UserError("give start to attend itself, not among attention_kwargs")
    return dict(attention_kwargs or {})


def _patterns_in(at: Any) -> tuple[str, ...]:
    listed = at if isinstance(at, Sequence) else ()
    patterns = tuple(part.strip() for part in at.split(",")) if isinstance(at, str) else tuple(listed)
    if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        is_number = type(at) is int and 0 <= at < 1000
        hint = f"; layer {at} of a YOLO is 'model.{at}'" if is_number else ""
        raise UserError(f"at must be 'blocks', 'stages' or patterns of module names, got {brief(at)}{hint}")
    return patterns


def _is_for_stages(
    builder: Callable[..., nn.Module], kwargs: dict[str, Any], start: Start, places: Places, seed: int
) -> bool:
    """Return whether an attention stands between stages, as its builder says or, failing that, a module on trial."""
    # a user's class may have it as an attribute of the module, but those of this package have it themselves
    if place_of(builder) == "stage" or is_own(unwrapped(builder)):
        return place_of(builder) == "stage"
    candidates = places.blocks() or places.stages()
    if not candidates:
        return False
    with torch.inference_mode(False), seeded(seed, "place"):
        return place_of(_built(builder, candidates[0].channels, kwargs, start)) == "stage"


def _found(
    places: Places, at: str | Sequence[str] | None, replace: Replace | None
) -> tuple[list[Place], list[Skipped], str]:
    """Return the places that the arguments ask for, residual blocks that can take none, and why there are so few."""
    if replace == "se":
        return places.squeezes(), [], ""
    if at == "blocks":
        if found := places.blocks():
            outside = "the layers outside residual blocks"
            return found, places.skipped, _note(at, outside, places, found) if len(found) < _FEW else ""
        why = "; ".join(f"{skipped.label}: {skipped.reason}" for skipped in places.skipped[:3])
        raise UserError(
            "the network has no residual block (a sum of a branch and its shortcut) that can take attention"
            f"{f' ({why})' if why else ''}{places.advice()}"
        )
    if at == "stages":
        if found := places.stages():
            is_thin = len(found) < _FEW or not places.blocks()
            outside = "the stem, the last stage and what a skip connection passes by"
            return found, [], _note(at, outside, places, found) if is_thin else ""
        raise UserError(
            "the network has no end of a stage, a tensor that everything passes before it shrinks: "
            f"{places.why_no_stages()}{places.advice()}"
        )
    try:
        return places.matching(_patterns_in(at)), [], ""
    except UserError as error:
        raise UserError(f"{error}{places.advice()}") from error


def _note(at: str, left_out: str, places: Places, found: list[Place]) -> str:
    """Return a sentence that says where there are more places than at `at`; "" if there are none."""
    blocks = len(places.blocks())
    other, count = ("blocks", blocks) if at == "stages" and blocks else places.pattern()
    return f"{at!r} leaves out {left_out}; at {other!r} there are {count} places" if count > len(found) else ""


def _built(builder: Callable[..., nn.Module], channels: int, kwargs: dict[str, Any], start: Start) -> nn.Module:
    """Build one attention with its start."""
    own = is_own(builder)
    try:
        module = builder(channels, **kwargs, **({"start": start} if own else {}))
    except UserError:
        raise
    except Exception as error:  # a user's attention may raise anything
        message = f"the attention cannot be built from {channels} channels and {brief(kwargs)}: {cause(error)}"
        message += unknown_argument(builder, kwargs)
        raise UserError(message) from error
    if not isinstance(module, nn.Module):
        raise UserError(f"attention must build a torch.nn.Module from a channel count, got a {type(module).__name__}")
    if any(parameter.is_meta for parameter in module.parameters()):
        raise UserError("the attention is on the meta device; build it on a real one")
    # a user's module too: the hook or norm that calls it cannot be scripted
    vars(module)["__prepare_scriptable__"] = refuse_scripting
    if start == "paper":
        return module
    _awaken(module)
    return module if own else starting_as_identity(module, channels)


@torch.no_grad()
def _awaken(module: nn.Module) -> None:
    """Flip each hidden unit's sign so that its ReLU is active: a single unit that is not would never learn.

    The sum of its weights becomes positive, for features that are mostly positive, as after an activation. Its bias
    becomes positive too, for features near zero, as after a norm that starts at zero.
    """
    for inner in module.modules():
        if isinstance(inner, Excitation):
            inner.fc1.weight.mul_(inner.fc1.weight.sum(1, keepdim=True).sign())
            if inner.fc1.bias is not None:
                inner.fc1.bias.abs_()


def _is_fused(attention: nn.Module) -> bool:
    """Return whether one `gate` computes attention and the BatchNorm2d before it."""
    if not isinstance(attention, Gate) or why_apart((attention, (Gate,))):
        return False
    return not why_not_fused(Call(attention.what, attention.where, arrangement=attention.arrangement))


def _num_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _put(model: nn.Module, place: Place, attention: nn.Module) -> tuple[nn.Module, Inserted]:
    """Put attention into its place; return the keeper, and what it keeps."""
    owner, host, feeder, follower = (
        relative_name(name, place.keeper) for name in (place.owner, place.host, place.feeder, place.follower)
    )
    inserted = Inserted(owner or "", place.name, place.kind, host or "", feeder, follower)
    keeper = model.get_submodule(place.keeper)
    inserted.put(keeper, attention)
    return keeper, inserted


def _check(model: nn.Module, prepared: _Prepared, *, is_unchanged: bool) -> None:
    """Raise UserError unless each attention is called once and, if `is_unchanged`, the outputs are as before."""
    before = prepared.flow
    try:
        after = record(model, before.arguments)
    except UserError:
        raise
    except Exception as error:  # a user's attention may raise anything
        raise UserError(f"with the attention the network does not run: {cause(error)}") from error
    for place, module in zip(prepared.places, prepared.modules, strict=True):
        num_calls = after.num_calls[module]
        if num_calls != 1:
            raise UserError(f"attention at {place.label} would be called {num_calls} times in a forward pass")
    outputs = [tensors_in(flow.output) for flow in (before, after)]
    # a network that returns more tensors each time cannot be compared
    if is_unchanged and len(outputs[0]) == len(outputs[1]) and not all(map(_is_close, *outputs)):
        raise UserError(
            "the network would compute something else with attention that starts as the identity; an attention must "
            "not write into its input"
        )


def _is_close(before: Tensor, after: Tensor) -> bool:
    if before.shape != after.shape or before.layout != torch.strided:
        return before.shape == after.shape
    return torch.allclose(before, after, rtol=1e-3, atol=1e-3, equal_nan=True)
