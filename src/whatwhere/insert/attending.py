"""Putting attention into a network, and taking it out again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..attention import ATTENTION, attention_builder, starting_as_identity
from ..attention.gate import SharedMLP, Start, check_choice
from ..errors import UserError, brief, said
from ..models.initialization import resolve_seed
from ..randomness import seeded
from .flow import record, tensors_in
from .norm import AttendedBatchNorm2d, attended, attention_at, is_plain_batch_norm
from .place import Place, Skipped
from .places import Places
from .plan import Plan
from .trial import Trial

Replace = Literal["se"]
_RECORDS = "_attended"


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
    keeps hardly more than before (`AttendedBatchNorm2d`). `detach` undoes it. It is lost where something else is put
    into the place of the module that it stands behind, as `convert_sync_batchnorm` does: convert first.

    Args:
        model: Any network with 2-d convolutions, on any device, before it is compiled or wrapped.
        attention: A name in ATTENTION, or a callable from a channel count to a module that keeps its input's shape.
        at: "blocks" (before the sum of each residual block, on its branch: the place of the CBAM paper), "stages"
            (where the features are about to shrink, after the first residual block: that of the BAM paper), or
            shell-style patterns of module names, separated by commas, behind which it is to stand. None takes the
            attention's own place: "stages" for BAM and any module that says so (`place = "stage"`), else "blocks".
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
    """
    prepared = _prepared(model, attention, at, start, replace, example, attention_kwargs, seed)
    done: list[_Record] = []
    try:
        for place, module in zip(prepared.places, prepared.modules, strict=True):
            done.append(_put(model, place, module))
        _check(model, prepared, is_unchanged=start == "identity" and replace is None)
    except BaseException:
        for record_ in reversed(done):
            record_.undo()
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
    """Return where `attend` would put attention and what it would add; the arguments are those of `attend`."""
    prepared = _prepared(model, attention, at, start, replace, example, attention_kwargs, seed=0)
    places, skipped, modules = prepared.places, prepared.skipped, prepared.modules
    by_name = dict(model.named_modules())
    replaced = [by_name[place.host] if place.kind == "instead of" else nn.Identity() for place in places]
    return Plan(
        attention=attention if isinstance(attention, str) else getattr(attention, "__name__", repr(attention)),
        start=start,
        places=tuple(places),
        skipped=tuple(skipped),
        num_params=_num_params(model),
        added_params=tuple(_num_params(new) - _num_params(old) for new, old in zip(modules, replaced, strict=True)),
        in_norm=tuple(_joins_norm(place, by_name[place.host]) for place in places),
    )


def detach(model: nn.Module) -> nn.Module:
    """Take out what `attend` has put into a network, in place, and return it: classes, modules, hooks are as before.

    Raises:
        UserError: There is nothing of `attend` in it.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"detach takes a torch.nn.Module, got a {type(model).__name__}")
    records = _records(model)
    for record_ in records:
        record_.check_can_be_undone()
    if not records:
        raise UserError("there is no attention in the network that attend has put there")
    for record_ in reversed(records):
        record_.undo()
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
    if at is None:
        at = "stages" if getattr(builder, "place", None) == "stage" else "blocks"
    check_choice("start", start, get_args(Start))
    if replace is not None:
        check_choice("replace", replace, get_args(Replace))
    if attention_kwargs is not None and not isinstance(attention_kwargs, Mapping):
        raise UserError(f"attention_kwargs must be a dict of keyword arguments, got {brief(attention_kwargs)}")
    kwargs = dict(attention_kwargs or {})
    if "start" in kwargs:
        raise UserError("give start to attend itself, not among attention_kwargs")
    trial = Trial(model, example)
    found, skipped = _found(model, trial, at, replace)
    hosts = dict(model.named_modules())
    seed = resolve_seed(seed)
    inserted = {inner for record_ in _records(model) for inner in record_.inserted().modules()}
    modules: list[nn.Module] = []
    for place in found:
        host = hosts[place.host]
        if _is_attended(host) or host in inserted:
            raise UserError(f"{place.label} has attention already; detach the model first")
        # parameters made in inference mode could never learn
        with torch.inference_mode(False), seeded(seed, f"{place.owner}.{place.name}"):
            module = _built(builder, place.channels, kwargs, start)
        like = next(filter(Tensor.is_floating_point, itertools.chain(host.parameters(), model.parameters())), None)
        if like is not None:
            module = module.to(like.device, like.dtype)
        modules.append(module.train(hosts[place.owner].training))
    inner = [layer for module in modules for layer in module.modules()]
    if len(set(inner)) < len(inner) or not {*model.modules(), *inserted}.isdisjoint(inner):
        raise UserError("the attention must be built anew for each place, and is one module in several")
    return _Prepared(trial, found, skipped, modules)


def _found(
    model: nn.Module, trial: Trial, at: str | Sequence[str], replace: Replace | None
) -> tuple[list[Place], list[Skipped]]:
    """Return the places, and the residual blocks that can have none."""
    places = Places(model, trial.flow)
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
        reason = said(error)
        raise UserError(
            f"the attention cannot be built from {channels} channels and {brief(kwargs)}: {reason}"
        ) from error
    if not isinstance(module, nn.Module):
        raise UserError(f"attention must build a torch.nn.Module from a channel count, got a {type(module).__name__}")
    if any(parameter.is_meta for parameter in module.parameters()):
        raise UserError("the attention is on the meta device; build it on a real one")
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
        if isinstance(inner, SharedMLP):
            inner.fc1.weight.mul_(inner.fc1.weight.sum(1, keepdim=True).sign())
            if inner.fc1.bias is not None:
                inner.fc1.bias.abs_()


def _num_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _is_attended(module: nn.Module) -> bool:
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return isinstance(module, AttendedBatchNorm2d) or any(isinstance(hook, (_Behind, _Before)) for hook in hooks)


class _Behind:
    """A forward hook: what a module returns is attended."""

    def __init__(self, owner: nn.Module, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return attended(attention_at(module, self.owner, self.name), output)


class _Before:
    """A forward pre-hook: what a module is given is attended."""

    def __init__(self, owner: nn.Module, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (attended(attention_at(module, self.owner, self.name), args[0]), *args[1:])


@dataclass(eq=False)
class _Record:
    """One attention that was put in, and how to take it out. Plain data, so that copies of the network have their own.

    Attributes:
        owner: The module that has it as a child.
        name: The child's name.
        host: What it stands behind, or before; None where it replaced a module.
        before: The host's class, or the module that was replaced; None where a hook was added.
    """

    owner: nn.Module
    name: str
    host: nn.Module | None
    before: type[nn.Module] | nn.Module | None

    def inserted(self) -> nn.Module:
        """Return the attention; an Identity where somebody has deleted it."""
        return self.owner._modules.get(self.name) or nn.Identity()

    def check_can_be_undone(self) -> None:
        """Raise UserError if somebody has built upon it since."""
        if isinstance(self.before, type) and type(self.host) is not AttendedBatchNorm2d:
            raise UserError(
                f"a norm behind which attention stands has become a {type(self.host).__name__} since; undo that first"
            )

    def undo(self) -> None:
        """Take it out."""
        if isinstance(self.before, nn.Module):
            self._take_along(self.before)
            setattr(self.owner, self.name, self.before)
        else:
            assert self.host is not None
            # whoever has deleted it has done a part of this
            if self.name in self.owner._modules:
                delattr(self.owner, self.name)
            if isinstance(self.before, type):
                self.host.__class__ = self.before
                del vars(self.host)["_attention"]
            else:
                for hooks in (self.host._forward_hooks, self.host._forward_pre_hooks):
                    for key in [key for key, hook in hooks.items() if isinstance(hook, (_Behind, _Before))]:
                        del hooks[key]
        self._forget()

    def _take_along(self, replaced: nn.Module) -> None:
        """Bring a replaced module to where the network has been moved meanwhile."""
        inserted = self.inserted()
        values = itertools.chain(inserted.parameters(), inserted.buffers(), self.owner.parameters())
        like = next(filter(Tensor.is_floating_point, values), None)
        if like is not None:
            replaced.to(like.device, like.dtype)
        replaced.train(inserted.training)

    def _forget(self) -> None:
        records = vars(self.owner)[_RECORDS]
        records.remove(self)
        if not records:
            del vars(self.owner)[_RECORDS]


def _records(model: nn.Module) -> list[_Record]:
    return [record_ for module in model.modules() for record_ in vars(module).get(_RECORDS, ())]


def _joins_norm(place: Place, host: nn.Module) -> bool:
    """Return whether attention in a place shares the passes of the norm that it stands behind."""
    return place.kind == "behind" and is_plain_batch_norm(host)


def _put(model: nn.Module, place: Place, attention: nn.Module) -> _Record:
    """Put attention into its place."""
    owner, host = model.get_submodule(place.owner), model.get_submodule(place.host)
    if place.kind == "instead of":
        made = _Record(owner, place.name, None, host)
        setattr(owner, place.name, attention)
    else:
        owner.add_module(place.name, attention)
        if _joins_norm(place, host):
            made = _Record(owner, place.name, host, type(host))
            host.__class__ = AttendedBatchNorm2d
            # not a child: the owner has it
            vars(host)["_attention"] = (owner, place.name)
        else:
            made = _Record(owner, place.name, host, None)
            if place.kind == "behind":
                host.register_forward_hook(_Behind(owner, place.name))
            else:
                host.register_forward_pre_hook(_Before(owner, place.name))
    vars(owner).setdefault(_RECORDS, []).append(made)
    return made


def _check(model: nn.Module, prepared: _Prepared, *, is_unchanged: bool) -> None:
    """Raise UserError unless each attention has its turn once, and, if so asked, the network computes what it did."""
    trial = prepared.trial
    try:
        flow = record(model, lambda: model(*trial.arguments))
    except UserError:
        raise
    except Exception as error:  # a stranger's attention may raise anything
        raise UserError(f"with the attention the network does not run: {said(error)}") from error
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
