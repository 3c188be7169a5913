"""Attention behind a module of any network, and how it stays there when a tool rebuilds that module.

Tools build a new norm from an old one's attributes (`convert_sync_batchnorm`, timm's `freeze_batch_norm_2d`) or fold
it into its convolution. Whatever was attached to the old norm is then gone. So the attention is a child of the module
around the norm, its *owner*. A *keeper*, the nearest module around both that is no single layer, checks before each
forward pass that the attention is still attached, and attaches it to the new module if it is not.
"""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.fx
from torch import Tensor, nn

from ..attention import Gate
from ..attention.gate import check_shape_kept
from ..base.errors import UserError
from ..base.modules import module_at, relative_name
from ..ops import gate, looked_into, why_apart
from .attending import KEPT, _Record
from .attending import load_old_keys as _load_old_keys  # networks pickled before look for this name here
from .flow import CONVOLUTIONS
from .plan import Kind

# symbolic tracing patches a function under the name by which it is called
torch.fx.wrap("check_shape_kept")

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_NAME_OF_A_NORM = re.compile(r"norm(act)?(1|2d)?$", re.IGNORECASE)
_UNDER_DATA_PARALLEL = "attention put in by attend cannot work under DataParallel; use DistributedDataParallel"


def is_layer(module: nn.Module) -> bool:
    """Return whether a module is a single layer, which a tool may rebuild: no child has parameters."""
    return not any(True for child in module.children() for _ in child.parameters())


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a normalisation layer, of torch or by the name of its class."""
    return isinstance(module, _NORMS) or (bool(_NAME_OF_A_NORM.search(type(module).__name__)) and is_layer(module))


def is_plain_batch_norm(module: nn.Module) -> bool:
    """Return whether a module is a BatchNorm2d, or timm's BatchNormAct2d without activation."""
    if type(module) is nn.BatchNorm2d:
        return True
    is_timms = isinstance(module, nn.BatchNorm2d) and type(module).__name__ == "BatchNormAct2d"
    return is_timms and all(type(child) is nn.Identity for child in module.children())


class AttendedNorm(nn.modules.batchnorm._BatchNorm):
    """A norm with attention behind it: y = A(norm(x)).

    A norm becomes one, in place, when attention is put right behind it: parameters, keys and hooks stay. The norm only
    refers to the attention, as (owner, name of the owner's child).
    """

    def _attending(self) -> nn.Module:
        return attention_at(self, *vars(self)["_attention"])

    def forward(self, x: Tensor) -> Tensor:
        return attended(self._attending(), super().forward(x))

    def _check_input_dim(self, input: Tensor) -> None:
        # a symbolic trace has no shapes
        if isinstance(input, Tensor):
            super()._check_input_dim(input)  # type: ignore[no-untyped-call]


class AttendedSyncBatchNorm(AttendedNorm, nn.SyncBatchNorm):
    """A SyncBatchNorm with attention behind it."""

    def _check_non_zero_input_channels(self, input: Tensor) -> None:
        if isinstance(input, Tensor):
            super()._check_non_zero_input_channels(input)


class AttendedBatchNorm2d(AttendedNorm, nn.BatchNorm2d):
    """A BatchNorm2d with attention behind it, computed in one `gate` where that saves memory."""

    def forward(self, x: Tensor) -> Tensor:
        attention = self._attending()
        # a parametrization makes a subclass of this class, and computes the parameters
        is_plain = type(self) is AttendedBatchNorm2d and not looked_into(x)
        if is_plain and isinstance(attention, Gate) and not why_apart((attention, (Gate,))):
            # the norm alone: the same parameters and statistics, but no hooks, which have been called around the whole
            norm = object.__new__(nn.BatchNorm2d)
            content: dict[str, Any] = {**vars(self), **{name: OrderedDict() for name in _HOOKS}}
            vars(norm).update(content)
            return gate(x, **attention.arguments(x), norm=norm)
        return attended(attention, nn.BatchNorm2d.forward(self, x))


@dataclass(eq=False)
class Behind:
    """A forward hook: the child `name` of `owner` attends the output."""

    owner: nn.Module
    name: str

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return attended(attention_at(module, self.owner, self.name), output)


@dataclass(eq=False)
class Before:
    """A forward pre-hook: the child `name` of `owner` attends the first argument."""

    owner: nn.Module
    name: str

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (attended(attention_at(module, self.owner, self.name), args[0]), *args[1:])


class RefuseTrace:
    """A forward pre-hook of a layer that torch.fx cannot trace: raise a UserError that says what to use."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if any(isinstance(value, torch.fx.Proxy) for value in args):
            raise UserError(
                f"torch.fx does not see the attention behind a {type(module).__name__}; use torch.export, or "
                "torch.jit.trace"
            )


def attention_at(host: nn.Module, owner: nn.Module, name: str) -> nn.Module:
    """Return the attention of a host: the child `name` of `owner`.

    Raises:
        UserError: DataParallel copied the host, but not the attention; or the attention was deleted.
    """
    if getattr(host, "_is_replica", False):
        raise UserError(_UNDER_DATA_PARALLEL)
    kept_by(owner)  # a network of version 0.1 is upgraded when it first runs
    attention: nn.Module | None = getattr(owner, name, None)
    if attention is None:
        raise UserError(f"the attention {name!r} of a {type(owner).__name__} was deleted; call whatwhere.detach first")
    return attention


def attended(attention: nn.Module, x: Tensor) -> Tensor:
    """Return attention(x), of the shape of x."""
    out: Tensor = attention(x)
    # return the checked tensor, so that the check is in a symbolic trace
    return check_shape_kept(type(attention).__name__, x, out)


def attached(host: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return (owner, name) of each attention that is attached to a module."""
    if isinstance(host, AttendedNorm):
        return [vars(host)["_attention"]]
    hooks = itertools.chain(host._forward_hooks.values(), host._forward_pre_hooks.values())
    return [(hook.owner, hook.name) for hook in hooks if isinstance(hook, (Behind, Before))]


def _is_attached(host: nn.Module, owner: nn.Module, name: str) -> bool:
    return any(found is owner and called == name for found, called in attached(host))


def _attach(host: nn.Module, owner: nn.Module, name: str, kind: Kind) -> None:
    """Let the child `name` of `owner` attend the output of `host`, or its input."""
    if kind == "behind" and (is_plain_batch_norm(host) or type(host) is nn.SyncBatchNorm):
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
        # these read shapes, so a trace cannot look into them
        if isinstance(host, nn.modules.batchnorm._NormBase):
            host.register_forward_pre_hook(RefuseTrace())


def release(host: nn.Module) -> None:
    """Undo `_attach`."""
    if isinstance(host, AttendedNorm):
        host.__class__ = vars(host).pop("_plain_class", nn.BatchNorm2d)
        del vars(host)["_attention"]
    _remove_hooks(host, Behind, Before, RefuseTrace)
    vars(host).pop("__module__", None)


def _remove_hooks(module: nn.Module, *kinds: type) -> None:
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if isinstance(hook, kinds)]:
            del hooks[key]


@dataclass(eq=False)
class Inserted:
    """One attention in a network, in the list of its keeper. All names are relative to the keeper.

    It holds names rather than modules, because a tool may replace a module, and a copy of the network has its own.
    """

    owner: str  # the module that has the attention as a child
    name: str  # the child's name
    # attention takes the host's output ("behind"), makes its input ("before"), or replaces it ("instead of")
    kind: Kind
    host: str = ""  # the module where attention stands
    # if the host is a norm: the convolution before it. If the norm is folded into it, attention moves there
    feeder: str | None = None
    # if the host is a convolution: the norm behind it, which must not be folded into the host
    follower: str | None = None
    replaced: nn.Module | None = None  # the module that attention replaces
    was: Literal["norm", "convolution", ""] = ""  # kind of the host when attention was put in

    def attention(self, keeper: nn.Module) -> nn.Module:
        """Return the attention; an Identity if it was deleted."""
        owner = module_at(keeper, self.owner)
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
            _attach(host, owner, self.name, self.kind)
        if KEPT not in vars(keeper):
            vars(keeper)[KEPT] = []
            _watch(keeper)
        vars(keeper)[KEPT].append(self)
        for name, part in self._parts(keeper):
            names = {field: getattr(self, field) for field in ("owner", "host", "feeder", "follower")}
            inside: dict[str, Any] = {field: relative_name(value, name) for field, value in names.items()}
            part.register_forward_pre_hook(InStepInside(replace(self, **inside)))

    def _parts(self, keeper: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Yield the Sequentials, by name, that hold host and owner and may be called without the keeper."""
        name = self.host.rpartition(".")[0]
        while name:
            part = module_at(keeper, name)
            if isinstance(part, nn.Sequential) and relative_name(self.owner, name) is not None:
                yield name, part
            name = name.rpartition(".")[0]

    def check_can_be_removed(self, keeper: nn.Module) -> None:
        """Raise UserError if a tool has changed the class of the attended norm."""
        host = module_at(keeper, self.host)
        if isinstance(host, AttendedNorm) and type(host) not in (AttendedBatchNorm2d, AttendedSyncBatchNorm):
            raise UserError(f"a norm with attention has become a {type(host).__name__} since; undo that first")

    def remove(self, keeper: nn.Module) -> None:
        """Take the attention out."""
        owner = module_at(keeper, self.owner)
        if self.replaced is not None and owner is not None:
            inserted = self.attention(keeper)
            # the network may have been moved meanwhile
            values = itertools.chain(inserted.parameters(), inserted.buffers(), owner.parameters())
            like = next(filter(Tensor.is_floating_point, values), None)
            if like is not None:
                self.replaced.to(like.device, like.dtype)
            setattr(owner, self.name, self.replaced.train(inserted.training))
        elif owner is not None:
            hosts = [module_at(keeper, name) for name in (self.host, self.feeder)]
            for inner in itertools.chain.from_iterable(host.modules() for host in hosts if host is not None):
                if _is_attached(inner, owner, self.name):
                    release(inner)
            # the user may have deleted it
            if self.name in owner._modules:
                delattr(owner, self.name)
        vars(keeper)[KEPT].remove(self)
        for _, part in self._parts(keeper):
            _remove_hooks(part, InStepInside)
        if not vars(keeper)[KEPT]:
            del vars(keeper)[KEPT]
            _remove_hooks(keeper, InStep)
            hooks = keeper._load_state_dict_pre_hooks
            for key in [key for key, hook in hooks.items() if getattr(hook, "hook", None) is _load_old_keys]:
                del hooks[key]

    def is_in_step(self, keeper: nn.Module) -> bool:
        """Return whether the attention is still attached at its place."""
        if self.kind == "instead of":
            return True
        owner, host = module_at(keeper, self.owner), self._host_now(keeper)
        if owner is None or host is None or self._is_folded(keeper):
            return False
        # a tool may have put the layer into a wrapper, together with its attention if that is the layer's own child
        has_it_itself = self.owner == self.host
        return any(_is_attached(inner, inner if has_it_itself else owner, self.name) for inner in host.modules())

    def _host_now(self, keeper: nn.Module) -> nn.Module | None:
        """Return the module at the host's place; if there is none, the convolution before it."""
        host = module_at(keeper, self.host)
        return module_at(keeper, self.feeder) if host is None else host

    def _is_folded(self, keeper: nn.Module) -> bool:
        """Return whether the norm behind the host, a convolution, is gone."""
        return self.follower is not None and isinstance(module_at(keeper, self.follower), (nn.Identity, type(None)))

    def put_back(self, keeper: nn.Module) -> None:
        """Attach the attention to the module that is at the host's place now.

        Raises:
            UserError: There is none, or the attention would compute something else there.
        """
        where = f"the attention {f'{self.owner}.{self.name}'.lstrip('.')!r} of a {type(keeper).__name__}"
        advice = "detach it before, and attend again afterwards"
        owner, host = module_at(keeper, self.owner), self._host_now(keeper)
        if self._is_folded(keeper):
            raise UserError(
                f"{where} stands between {self.host!r} and its norm {self.follower!r}, which has been folded into the "
                f"convolution; {advice}"
            )
        if owner is None or self.name not in owner._modules:
            raise UserError(f"{where} went with the module it belonged to, which has been replaced; {advice}")
        moved = [name for name, inner in keeper.named_modules() if _is_attached(inner, owner, self.name)]
        can_stand = host is not None and self._can_stand_at(host, keeper)
        if len(moved) == 1 and not can_stand:
            # a layer was inserted before the host, so the layers behind it have other names now
            self.host, self.feeder, self.follower = moved[0], None, None
            return
        if moved:
            raise UserError(f"{where} stands at {moved[0]!r} now, which was {self.host!r}; {advice}")
        if host is None or not can_stand:
            what = "there is no such module" if host is None else f"it is a {type(host).__name__}"
            raise UserError(f"{where} has lost its place {self.host!r}: {what} now; {advice}")
        release(host)  # a copy of the old host may have brought hooks along
        _attach(host, owner, self.name, self.kind)

    def _can_stand_at(self, host: nn.Module, keeper: nn.Module) -> bool:
        """Return whether a module can be the host rebuilt, rather than another kind of layer under its name.

        A class that is not torch's own may be either, and is taken for the host.
        """
        was = "convolution" if module_at(keeper, self.host) is None else self.was
        if not was or not type(host).__module__.startswith("torch.nn.modules."):
            return True
        if was == "convolution":
            return isinstance(host, CONVOLUTIONS)
        return is_norm(host) or isinstance(host, nn.Identity)


class InStep:
    """A keeper's forward pre-hook: put back each attention that is no longer attached, or raise UserError.

    A call of the keeper's `forward`, or of another method, does not run it.
    """

    def __call__(self, keeper: nn.Module, args: Any) -> None:
        if getattr(keeper, "_is_replica", False):
            raise UserError(_UNDER_DATA_PARALLEL)
        for inserted in vars(keeper)[KEPT]:
            if not inserted.is_in_step(keeper):
                _put_back(inserted, keeper)


@dataclass(eq=False)
class InStepInside:
    """The same for a part of the keeper, such as `model.features`, which a user may call alone."""

    inserted: Inserted

    def __call__(self, part: nn.Module, args: Any) -> None:
        if not self.inserted.is_in_step(part):
            _put_back(self.inserted, part)


def _put_back(inserted: Inserted, keeper: nn.Module) -> None:
    inserted.put_back(keeper)


# torch.compile runs this uncompiled; with fullgraph=True it gives the reason
_put_back = torch.compiler.disable(  # type: ignore[no-untyped-call]
    _put_back, reason="a layer behind which attention stands was rebuilt; run the network once, then compile it"
)


def _watch(keeper: nn.Module) -> None:
    keeper.register_forward_pre_hook(InStep())
    keeper.register_load_state_dict_pre_hook(_load_old_keys)  # type: ignore[no-untyped-call]


def kept_by(module: nn.Module) -> list[Inserted]:
    """Return what `attend` has inserted with this module as keeper."""
    kept: list[Any] = vars(module).get(KEPT, [])
    if any(isinstance(record, _Record) for record in kept):
        kept[:] = [Inserted(**record.upgraded()) for record in kept]
        _watch(module)
    return kept


def inserted_in(model: nn.Module) -> list[tuple[nn.Module, Inserted]]:
    """Return everything that `attend` has inserted in a network, each with its keeper."""
    return [(keeper, inserted) for keeper in model.modules() for inserted in kept_by(keeper)]
