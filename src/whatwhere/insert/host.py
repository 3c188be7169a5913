"""Attention behind a module of somebody's network, and how it stays there when a tool rebuilds that module.

Tools build a new norm from an old one's attributes (`convert_sync_batchnorm`, timm's `freeze_batch_norm_2d`) or fold
it into its convolution. What hung on the old norm is then gone. So the attention is a child of the module around the
norm. That module, or the nearest around it that is no single layer, is the *keeper*: before each forward pass it looks
whether the attention hangs where it was put, and hangs it on what stands there now.
"""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.fx
from torch import Tensor, nn

from ..attention import Gate
from ..attention.gate import check_shape_kept
from ..base.errors import UserError
from ..ops import gate, looked_into, why_apart
from .place import Kind, relative

# symbolic tracing patches a function under the name by which it is called
torch.fx.wrap("check_shape_kept")

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_NAME_OF_A_NORM = re.compile(r"norm(act)?(1|2d)?$", re.IGNORECASE)
_KEPT = "_attended"
_WRAPPED = ("_checkpoint_wrapped_module", "_fsdp_wrapped_module")  # where torch's wrappers have what they wrap
_UNDER_DATA_PARALLEL = "attention put in by attend cannot work under DataParallel; use DistributedDataParallel"


def is_layer(module: nn.Module) -> bool:
    """Return whether a module is a single layer, which tools rebuild, rather than one made of layers."""
    return not any(True for child in module.children() for _ in child.parameters())


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a normalisation layer: torch's, or by the name of its class."""
    return isinstance(module, _NORMS) or (bool(_NAME_OF_A_NORM.search(type(module).__name__)) and is_layer(module))


def is_plain_batch_norm(module: nn.Module) -> bool:
    """Return whether a module computes what a BatchNorm2d computes; timm's with an activation that is none does."""
    if type(module) is nn.BatchNorm2d:
        return True
    is_timms = isinstance(module, nn.BatchNorm2d) and type(module).__name__ == "BatchNormAct2d"
    return is_timms and all(type(child) is nn.Identity for child in module.children())


class AttendedNorm(nn.modules.batchnorm._BatchNorm):
    """A norm whose output is attended: y = A(norm(x)).

    A norm becomes one, in place, when attention is put right behind it: parameters, keys and hooks stay. The attention
    is a child of the module around the norm, its owner; the norm only refers to it.
    """

    def _attending(self) -> nn.Module:
        """Return the attention."""
        return attention_at(self, *vars(self)["_attention"])

    def forward(self, x: Tensor) -> Tensor:
        return attended(self._attending(), super().forward(x))

    def _check_input_dim(self, input: Tensor) -> None:
        # a symbolic trace knows no shape
        if isinstance(input, Tensor):
            super()._check_input_dim(input)  # type: ignore[no-untyped-call]


class AttendedSyncBatchNorm(AttendedNorm, nn.SyncBatchNorm):
    """A SyncBatchNorm whose output is attended."""

    def _check_non_zero_input_channels(self, input: Tensor) -> None:
        if isinstance(input, Tensor):
            super()._check_non_zero_input_channels(input)


class AttendedBatchNorm2d(AttendedNorm, nn.BatchNorm2d):
    """A BatchNorm2d whose output is attended, in one operator where that keeps less memory."""

    def forward(self, x: Tensor) -> Tensor:
        attention = self._attending()
        # a parametrization changes the class, and where the parameters come from
        is_plain = type(self) is AttendedBatchNorm2d and not looked_into(x)
        if is_plain and isinstance(attention, Gate) and not why_apart((attention, (Gate,))):
            return gate(x, **attention.arguments(x), norm=_plain(self))
        return attended(attention, nn.BatchNorm2d.forward(self, x))


def _plain(norm: AttendedBatchNorm2d) -> nn.BatchNorm2d:
    """Return the norm alone, over the same parameters and statistics; hooks have been called around the whole."""
    plain = object.__new__(nn.BatchNorm2d)
    content: dict[str, Any] = {**vars(norm), **{name: OrderedDict() for name in _HOOKS}}
    vars(plain).update(content)
    return plain


@dataclass(eq=False)
class Behind:
    """A forward hook: what a module returns is attended by the child `name` of `owner`."""

    owner: nn.Module
    name: str

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return attended(attention_at(module, self.owner, self.name), output)


@dataclass(eq=False)
class Before:
    """A forward pre-hook: what a module is given is attended by the child `name` of `owner`."""

    owner: nn.Module
    name: str

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (attended(attention_at(module, self.owner, self.name), args[0]), *args[1:])


def attention_at(host: nn.Module, owner: nn.Module, name: str) -> nn.Module:
    """Return the attention behind, or before, a host.

    Raises:
        UserError: The host is a copy that DataParallel made, whose attention is still that of the original, or the
            attention was deleted.
    """
    if getattr(host, "_is_replica", False):
        raise UserError(_UNDER_DATA_PARALLEL)
    upgrade(owner)
    attention: nn.Module | None = getattr(owner, name, None)
    if attention is None:
        raise UserError(f"the attention {name!r} of a {type(owner).__name__} was deleted; call whatwhere.detach first")
    return attention


def attended(attention: nn.Module, x: Tensor) -> Tensor:
    """Return attention(x), of the shape of x."""
    out: Tensor = attention(x)
    # the checked one, which is the last of the host's in a symbolic trace
    return check_shape_kept(type(attention).__name__, x, out)


def is_attended(host: nn.Module) -> bool:
    """Return whether attention stands behind a module, or before it."""
    return isinstance(host, AttendedNorm) or any(True for _ in _hooks_of(host))


def _hooks_of(host: nn.Module) -> Iterator[tuple[dict[int, Callable[..., Any]], int, Behind | Before]]:
    """Yield our hooks on a module, each with the dict that has it, and its key there."""
    for hooks in (host._forward_hooks, host._forward_pre_hooks):
        for key, hook in hooks.items():
            if isinstance(hook, (Behind, Before)):
                yield hooks, key, hook


def _is_attended_by(host: nn.Module, owner: nn.Module, name: str) -> bool:
    if isinstance(host, AttendedNorm):
        attention = vars(host)["_attention"]
        return attention[0] is owner and attention[1] == name
    return any(hook.owner is owner and hook.name == name for _, _, hook in _hooks_of(host))


def hang(host: nn.Module, owner: nn.Module, name: str, kind: Kind) -> None:
    """Let the child `name` of `owner` attend what `host` returns, or is given."""
    if kind == "behind" and (is_plain_batch_norm(host) or type(host) is nn.SyncBatchNorm):
        # not a child: the owner has it
        vars(host).update(_attention=(owner, name), _plain_class=type(host))
        host.__class__ = AttendedBatchNorm2d if isinstance(host, nn.BatchNorm2d) else AttendedSyncBatchNorm
        return
    if kind == "behind":
        host.register_forward_hook(Behind(owner, name))
    else:
        host.register_forward_pre_hook(Before(owner, name))
    if type(host).__module__.startswith("torch."):
        # a symbolic trace does not look into torch's own layers, and would miss the attention's parameters
        vars(host)["__module__"] = __name__
        # and these ask for shapes, so that it cannot
        if isinstance(host, nn.modules.batchnorm._NormBase):
            host.register_forward_pre_hook(RefuseTrace())


def unhang(host: nn.Module) -> None:
    """Take off what `hang` has hung on a module."""
    if isinstance(host, AttendedNorm):
        host.__class__ = vars(host).pop("_plain_class", nn.BatchNorm2d)
        del vars(host)["_attention"]
    for hooks, key, _ in list(_hooks_of(host)):
        del hooks[key]
    _remove_hooks(host._forward_pre_hooks, RefuseTrace)
    vars(host).pop("__module__", None)


def _remove_hooks(hooks: dict[int, Callable[..., Any]], kind: type) -> None:
    for key in [key for key, hook in hooks.items() if isinstance(hook, kind)]:
        del hooks[key]


class RefuseTrace:
    """A forward pre-hook of a layer that no symbolic trace can look into: it says so."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if any(isinstance(value, torch.fx.Proxy) for value in args):
            raise UserError(
                f"torch.fx does not see the attention behind a {type(module).__name__}; use torch.export, or "
                "torch.jit.trace"
            )


@dataclass(eq=False)
class Inserted:
    """One attention in a network. Its keeper has it in a list; all names are relative to the keeper.

    Names rather than modules, because a module may have been replaced since, and copies of the network have their own.

    Attributes:
        owner: The module that has the attention as a child.
        name: The child's name.
        kind: Whether it stands behind its host, before it, or instead of it.
        host: The module that it stands behind, or before.
        feeder: Of a norm: the convolution that gives it its input, behind which the attention stands once the norm is
            folded into it.
        follower: Of a convolution: the norm that takes its output, which cannot be folded into it any more.
        replaced: The module in whose place it is.
        was: What kind of layer the host was when attention was put behind it, where that matters.
    """

    owner: str
    name: str
    kind: Kind
    host: str = ""
    feeder: str | None = None
    follower: str | None = None
    replaced: nn.Module | None = None
    was: Literal["norm", "convolution", ""] = ""

    def attention(self, keeper: nn.Module) -> nn.Module:
        """Return the attention; an Identity where somebody has deleted it."""
        owner = _module_at(keeper, self.owner)
        found = None if owner is None else owner._modules.get(self.name)
        return nn.Identity() if found is None else found

    def put(self, keeper: nn.Module, attention: nn.Module) -> None:
        """Put `attention` into its place."""
        owner = keeper.get_submodule(self.owner)
        if self.kind == "instead of":
            self.replaced = owner._modules[self.name]
            setattr(owner, self.name, attention)
        else:
            owner.add_module(self.name, attention)
            host = keeper.get_submodule(self.host)
            self.was = "norm" if is_norm(host) else "convolution" if isinstance(host, CONVOLUTIONS) else ""
            hang(host, owner, self.name, self.kind)
        if _KEPT not in vars(keeper):
            vars(keeper)[_KEPT] = []
            _watch(keeper)
        vars(keeper)[_KEPT].append(self)
        for name, part in self._parts(keeper):
            part.register_forward_pre_hook(InStepInside(self._inside(name)))

    def _inside(self, part: str) -> Inserted:
        """Return it by names relative to a part that holds all of it."""
        owner, host, feeder, follower = (
            relative(name, part) for name in (self.owner, self.host, self.feeder, self.follower)
        )
        return replace(self, owner=owner or "", host=host or "", feeder=feeder, follower=follower)

    def _parts(self, keeper: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Yield the parts of a network, by name, that hold all of it and may be called by themselves."""
        name = self.host.rpartition(".")[0]
        while name:
            part = _module_at(keeper, name)
            if isinstance(part, nn.Sequential) and relative(self.owner, name) is not None:
                yield name, part
            name = name.rpartition(".")[0]

    def check_can_be_removed(self, keeper: nn.Module) -> None:
        """Raise UserError if somebody has built upon it since."""
        host = _module_at(keeper, self.host)
        if isinstance(host, AttendedNorm) and type(host) not in (AttendedBatchNorm2d, AttendedSyncBatchNorm):
            raise UserError(
                f"a norm behind which attention stands has become a {type(host).__name__} since; undo that first"
            )

    def remove(self, keeper: nn.Module) -> None:
        """Take it out."""
        owner = _module_at(keeper, self.owner)
        if self.replaced is not None:
            self._take_along(keeper, self.replaced)
            setattr(owner, self.name, self.replaced)
        else:
            places = [_module_at(keeper, name) for name in (self.host, self.feeder)]
            for inner in itertools.chain.from_iterable(place.modules() for place in places if place is not None):
                if owner is not None and _is_attended_by(inner, owner, self.name):
                    unhang(inner)
            # whoever has deleted it has done a part of this
            if owner is not None and self.name in owner._modules:
                delattr(owner, self.name)
        vars(keeper)[_KEPT].remove(self)
        for _, part in self._parts(keeper):
            _remove_hooks(part._forward_pre_hooks, InStepInside)
        if not vars(keeper)[_KEPT]:
            del vars(keeper)[_KEPT]
            for hooks in (keeper._forward_pre_hooks, keeper._load_state_dict_pre_hooks):
                for key in [key for key, hook in hooks.items() if isinstance(hook, InStep) or _is_of_old_keys(hook)]:
                    del hooks[key]

    def _take_along(self, keeper: nn.Module, replaced: nn.Module) -> None:
        """Bring a replaced module to where the network has been moved meanwhile."""
        inserted = self.attention(keeper)
        owner = keeper.get_submodule(self.owner)
        values = itertools.chain(inserted.parameters(), inserted.buffers(), owner.parameters())
        like = next(filter(Tensor.is_floating_point, values), None)
        if like is not None:
            replaced.to(like.device, like.dtype)
        replaced.train(inserted.training)

    def is_in_step(self, keeper: nn.Module) -> bool:
        """Return whether the attention hangs where it was put."""
        if self.kind == "instead of":
            return True
        owner, host = _module_at(keeper, self.owner), self._host_now(keeper)
        if owner is None or host is None or self._follower_is_gone(keeper):
            return False
        # some tools put a layer into a wrapper, with the attention where it has its own
        return any(
            _is_attended_by(inner, inner if self.owner == self.host else owner, self.name) for inner in host.modules()
        )

    def _host_now(self, keeper: nn.Module) -> nn.Module | None:
        """Return what stands at the host's place; where nothing does, the convolution that fed it."""
        host = _module_at(keeper, self.host)
        return _module_at(keeper, self.feeder) if host is None else host

    def _follower_is_gone(self, keeper: nn.Module) -> bool:
        return self.follower is not None and isinstance(_module_at(keeper, self.follower), (nn.Identity, type(None)))

    def put_back(self, keeper: nn.Module) -> None:
        """Hang the attention on what stands at its host's place now.

        Raises:
            UserError: Nothing does, or the attention would compute something else there.
        """
        where = f"the attention {f'{self.owner}.{self.name}'.lstrip('.')!r} of a {type(keeper).__name__}"
        advice = "detach it before, and attend again afterwards"
        owner, host = _module_at(keeper, self.owner), self._host_now(keeper)
        if self._follower_is_gone(keeper):
            raise UserError(
                f"{where} stands between {self.host!r} and its norm {self.follower!r}, which has been folded into the "
                f"convolution; {advice}"
            )
        if owner is None or self.name not in owner._modules:
            raise UserError(f"{where} went with the module it belonged to, which has been replaced; {advice}")
        moved = [name for name, inner in keeper.named_modules() if _is_attended_by(inner, owner, self.name)]
        can_stand = host is not None and self._can_stand_at(host, keeper)
        if len(moved) == 1 and not can_stand:
            # a layer was put in before it, and those that follow have other names now
            self.host, self.feeder, self.follower = moved[0], None, None
            return
        if moved:
            raise UserError(f"{where} stands at {moved[0]!r} now, which was {self.host!r}; {advice}")
        if host is None or not can_stand:
            what = "there is no such module" if host is None else f"it is a {type(host).__name__}"
            raise UserError(f"{where} has lost its place {self.host!r}: {what} now; {advice}")
        unhang(host)  # what a copy has brought along
        hang(host, owner, self.name, self.kind)

    def _can_stand_at(self, host: nn.Module, keeper: nn.Module) -> bool:
        """Return whether what `_host_now` found can be what has come in the host's place.

        Where a part was built anew, a layer of another kind may have its name. Of classes that are not torch's own
        nothing is known.
        """
        was = "convolution" if _module_at(keeper, self.host) is None else self.was
        if not was or not type(host).__module__.startswith("torch.nn.modules."):
            return True
        if was == "convolution":
            return isinstance(host, CONVOLUTIONS)
        return is_norm(host) or isinstance(host, nn.Identity)


def _watch(keeper: nn.Module) -> None:
    keeper.register_forward_pre_hook(InStep())
    keeper.register_load_state_dict_pre_hook(_load_old_keys)  # type: ignore[no-untyped-call]


@dataclass(eq=False)
class OldRecord:
    """What networks pickled by version 0.1 have instead of an `Inserted`: modules instead of names."""

    owner: nn.Module
    name: str
    host: nn.Module | None
    before: type[nn.Module] | nn.Module | None

    def upgraded(self) -> Inserted:
        """Return it by names, its owner being its keeper."""
        if isinstance(self.before, nn.Module):
            return Inserted("", self.name, "instead of", replaced=self.before)
        assert self.host is not None
        if isinstance(self.before, type):
            vars(self.host)["_plain_class"] = self.before
        is_before = any(isinstance(hook, Before) for _, _, hook in _hooks_of(self.host))
        names = {module: name for name, module in self.owner.named_modules()}
        return Inserted("", self.name, "before" if is_before else "behind", names[self.host])


def upgrade(owner: nn.Module) -> None:
    """Give a module of a network that version 0.1 has pickled what a keeper has."""
    records = vars(owner).get(_KEPT, ())
    if any(isinstance(record, OldRecord) for record in records):
        vars(owner)[_KEPT] = [record.upgraded() for record in records]
        _watch(owner)


class InStep:
    """A keeper's forward pre-hook: attention hangs where it was put, or UserError says why not.

    A call of the keeper's `forward`, or of another method, does not come by here.
    """

    def __call__(self, keeper: nn.Module, args: Any) -> None:
        if getattr(keeper, "_is_replica", False):
            raise UserError(_UNDER_DATA_PARALLEL)
        for inserted in vars(keeper)[_KEPT]:
            if not inserted.is_in_step(keeper):
                _put_back(inserted, keeper)


@dataclass(eq=False)
class InStepInside:
    """The same of a part inside the keeper, such as `model.features`, which may be called by itself."""

    inserted: Inserted

    def __call__(self, part: nn.Module, args: Any) -> None:
        if not self.inserted.is_in_step(part):
            _put_back(self.inserted, part)


def _put_back(inserted: Inserted, keeper: nn.Module) -> None:
    inserted.put_back(keeper)


# torch.compile runs it uncompiled; of one whole graph it says why there is none
_put_back = torch.compiler.disable(  # type: ignore[no-untyped-call]
    _put_back, reason="a layer behind which attention stands was rebuilt; run the network once, then compile it"
)


def inserted_in(model: nn.Module) -> list[tuple[nn.Module, Inserted]]:
    """Return what `attend` has put into a network, each with its keeper."""
    for keeper in model.modules():
        upgrade(keeper)
    return [(keeper, inserted) for keeper in model.modules() for inserted in vars(keeper).get(_KEPT, ())]


def renamed(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` with the keys that `model` has: attention behind a norm was once the norm's own child."""
    result = dict(state)
    for name, keeper in model.named_modules():
        _load_old_keys(keeper, result, f"{name}." if name else "")
    return result


def _module_at(keeper: nn.Module, name: str | None) -> nn.Module | None:
    """Return the module at a name; None where there is none any more."""
    found: nn.Module | None = None if name is None else keeper
    for part in name.split(".") if name else ():
        # not only of its children: wrappers pass on what they wrap
        found = getattr(found, part, None)
        for wrapped in _WRAPPED:
            found = getattr(found, wrapped, found)
    return found


def _load_old_keys(keeper: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename what was saved when the attention behind a norm was the norm's own child."""
    for inserted in vars(keeper).get(_KEPT, ()):
        old = f"{prefix}{inserted.host}.attention."
        new = ".".join(filter(None, [prefix.removesuffix("."), inserted.owner, inserted.name, ""])) + "."
        has_own = hasattr(_module_at(keeper, inserted.host), "attention")
        if inserted.kind == "behind" and old != new and not has_own:
            for key in [key for key in state if key.startswith(old)]:
                state[new + key.removeprefix(old)] = state.pop(key)


def _is_of_old_keys(hook: Any) -> bool:
    return getattr(hook, "hook", None) is _load_old_keys
