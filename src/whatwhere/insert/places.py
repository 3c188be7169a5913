"""Where attention can stand: before the sums of residual blocks, between stages, behind modules by name."""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeGuard

from torch import nn

from ..base.errors import UserError
from ..base.words import brief, suggest
from ..models import BasicBlock, Bottleneck
from .flow import Call, Flow, Node
from .host import CONVOLUTIONS, is_layer, is_norm
from .place import Kind, Place, Skipped, relative

# a shortcut may have a projection, and a blur before it
_MOST_SHORTCUT_WEIGHTS = 2
# a block of separable convolutions with gates of its own has a dozen; from there on it is half a network
_MOST_BRANCH_WEIGHTS = 16
_CHANNELS_FIRST = {"conv2d", "conv_transpose2d", "batch_norm", "group_norm", "instance_norm"}
_CHANNELS_LAST = {"linear", "layer_norm", "scaled_dot_product_attention"}
_SWAPPING = {"permute", "transpose", "movedim", "moveaxis", "swapaxes"}
_REARRANGING = {*_SWAPPING, "view", "reshape", "flatten", "unflatten", "getitem"}
_GATING = {"sigmoid", "hardsigmoid", "hardtanh", "relu6", "div", "softmax"}
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # which run or list whatever is in them
_SQUEEZE = re.compile(r"e?se(module|layer|block|unit|gate)?|effectivesemodule|squeeze.*excit.*", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class _Residual:
    """A residual sum: the block that it belongs to, and what is added to the shortcut."""

    block: Call
    branch: Node
    is_identity: bool  # whether the shortcut is what the branch was computed from, rather than a projection of it


class Places:
    """The places of a network, from its flow."""

    def __init__(self, model: nn.Module, flow: Flow) -> None:
        self.flow = flow
        # the first name of a module that has several
        self.names = {module: name for name, module in reversed(list(model.named_modules()))}
        self.modules = dict(model.named_modules())
        self.skipped: list[Skipped] = []
        # on what the network is given
        self._dependent: set[Node] = set(flow.calls[0].entries or flow.nodes[:1])
        self._channels_last: set[Node] = set()
        for node in flow.nodes:
            before = [source for source in node.inputs if source in self._dependent]
            if before:
                self._dependent.add(node)
                if self._has_channels_last(node, before[0]):
                    self._channels_last.add(node)

    def _has_channels_last(self, node: Node, source: Node) -> bool:
        """Return whether features, computed from `source`, are (N, H, W, C) rather than (N, C, H, W)."""
        if node.operation in _CHANNELS_FIRST | _CHANNELS_LAST:
            return node.operation in _CHANNELS_LAST
        is_swapped = node.operation in _SWAPPING and len(node.shape) == len(source.shape) == 4
        return (source in self._channels_last) != is_swapped

    def blocks(self) -> list[Place]:
        """Return a place before the sum of each residual block, on its branch."""
        found = [(total, residual) for total in self.flow.nodes if (residual := self._residual(total)) is not None]
        # of sums with a projection a block has one; those before it are of parts of its branch
        last = {residual.block: total for total, residual in found}
        places = [
            self._before_sum(residual)
            for total, residual in found
            if residual.is_identity or last[residual.block] is total
        ]
        return self._named_apart(list(filter(None, places)))

    def _residual(self, total: Node) -> _Residual | None:
        """Return the residual block whose sum `total` is; None for any other tensor."""
        if not total.is_sum or len(total.shape) != 4:
            return None
        earlier, later = sorted(total.inputs, key=lambda node: node.index)
        depths = _depths(self.flow.nodes[earlier.index : total.index])
        if 0 < depths.get(later, 0) <= _MOST_BRANCH_WEIGHTS:
            if any(map(self._comes_up, depths)):
                return None
            shared = [call for call, other in zip(total.calls, later.calls, strict=False) if call is other]
            return _Residual(shared[-1], later, is_identity=True)
        # a projection: the module whose forward has the sum, or the one around it, has given both sides the same
        for block in list(reversed(total.calls))[:2]:
            for entry in block.entries:
                depths = _depths(self.flow.nodes[entry.index : total.index])
                if not all(node in depths for node in total.inputs):
                    continue
                first, second = (depths[node] for node in total.inputs)
                if first == second or min(first, second) > _MOST_SHORTCUT_WEIGHTS or any(map(self._comes_up, depths)):
                    return None
                return _Residual(block, total.inputs[first < second], is_identity=False)
        return None

    def _comes_up(self, node: Node) -> bool:
        """Return whether features become larger here: what goes down and comes up again is half a network, not a block.

        A gate may, which is multiplied with what never went down.
        """
        areas = [self._area(source) for source in node.inputs if len(source.shape) == 4 and source in self._dependent]
        is_moved = node.operation in _REARRANGING
        if is_moved or len(node.shape) != 4 or not areas or self._area(node) < 2 * max(areas):
            return False
        while len(node.consumers) == 1 and node.consumers[0].operation in _GATING:
            node = node.consumers[0]
        return not all(consumer.operation in ("mul", "rmul", "imul") for consumer in node.consumers)

    def _area(self, node: Node) -> int:
        """Return the number of pixels of features."""
        height, width = node.shape[1:3] if node in self._channels_last else node.shape[2:]
        return height * width

    def _named_apart(self, places: list[Place]) -> list[Place]:
        """Return the places, those with one owner named after their hosts, no two alike."""
        counts = Counter(place.owner for place in places)
        taken: set[tuple[str, str]] = set()
        named = []
        for place in places:
            first = place.name if counts[place.owner] == 1 else self._name_after(place.host, place.owner)
            candidates = itertools.chain([first], (f"{first}{number}" for number in itertools.count(2)))
            name = next(name for name in candidates if (place.owner, name) not in taken)
            taken.add((place.owner, name))
            named.append(replace(place, name=name))
        return named

    def _name_after(self, host: str, owner: str) -> str:
        own = host.removeprefix(f"{owner}." if owner else "").replace(".", "_")
        return self._free(self.modules[owner], f"{own}_attention")

    def _before_sum(self, residual: _Residual) -> Place | None:
        block, branch = residual.block, residual.branch
        label = self.names[block.module] or type(block.module).__name__
        obstacle = self._obstacle(block, branch)
        place = None if obstacle else self._in_slot(label, block, branch) or self._on_branch(label, block, branch)
        if place is None and label not in [skipped.label for skipped in self.skipped]:
            self.skipped.append(Skipped(label, obstacle or self._why_not(block, branch)))
        return place

    def _obstacle(self, block: Call, branch: Node) -> str:
        """Return why a block can have no attention, wherever it stands; "" where it can."""
        if self.flow.num_calls(block.module) > 1:
            return "the block is called more than once"
        if branch in self._channels_last:
            return "its features have their channels last"
        if _is_ours(block.module) and type(block.module.attention) is not nn.Identity:
            return "it has attention already"
        return ""

    def _in_slot(self, label: str, block: Call, branch: Node) -> Place | None:
        """Return the slot that a block of our own networks has for attention."""
        if not _is_ours(block.module):
            return None
        size = (branch.shape[2], branch.shape[3])
        return Place(label, "instead of", f"{label}.attention", label, "attention", branch.shape[1], size, keeper=label)

    def _on_branch(self, label: str, block: Call, branch: Node) -> Place | None:
        """Return the place at the end of a branch: behind what computes it, or before what passes it on."""
        # a layer scale may start at nearly nothing, of which a gate could not tell anything
        for node in (*self._unscaled(branch), branch):
            host = self._host_inside(node, block)
            if host is not None and self._is_used_once(node, block):
                return self._place(label, "behind", host, node, self._owner(block.module))
        passing = [call for call in self.flow.passing(branch) if self.flow.num_calls(call.module) == 1]
        if passing and self._is_used_once(branch, block):
            return self._place(label, "before", passing[0], branch, self._owner(block.module))
        return None

    def _why_not(self, block: Call, branch: Node) -> str:
        if self._is_used_once(branch, block):
            return f"what it adds comes from an operation ({branch.operation}), not from a module"
        return "what it adds to its sum is used elsewhere as well"

    @staticmethod
    def _is_used_once(node: Node, block: Call) -> bool:
        # what takes it besides the sum would be given attended features too
        return len(node.consumers) == 1 and block not in node.returned_by

    def _unscaled(self, node: Node) -> Iterator[Node]:
        """Yield what `node` is a multiple of, by numbers that do not depend on the input, the first factor first."""
        if node.operation in ("mul", "rmul", "imul"):
            given = [source for source in node.inputs if source.shape == node.shape]
            constant = [
                source for source in node.inputs if source.shape != node.shape and source not in self._dependent
            ]
            if len(given) == 1 and len(given) + len(constant) == len(node.inputs):
                yield from self._unscaled(given[0])
                yield given[0]

    def _host_inside(self, node: Node, block: Call) -> Call | None:
        """Return the call of a layer of the block that has computed `node`."""
        calls = (call for call in self.flow.producers(node) if call.module is not block.module)
        return next((call for call in calls if self.flow.num_calls(call.module) == 1), None)

    def stages(self) -> list[Place]:
        """Return a place at the end of each stage but the last: all goes through one tensor, and that shrinks then."""
        stages: list[list[Node]] = []
        # what modules return: a tensor on the way may be padded, or have its channels last
        returned = {call.output for call in self.flow.calls}
        for node in self._cuts():
            if len(node.shape) == 4 and node in returned and node not in self._channels_last:
                if not stages or self._area(node) < 0.75 * self._area(stages[-1][0]):
                    stages.append([])
                stages[-1].append(node)
        begins = self._end_of_stem()
        places = []
        for stage, following in itertools.pairwise(stages):
            # a global pool is no stage
            if self._area(following[0]) > 1:
                ends = [node for node in stage if node.index > begins and self._area(node) == self._area(stage[0])]
                places += self._end(ends)
        return places

    def _end(self, nodes: list[Node]) -> list[Place]:
        """Return a place at the last of these tensors that is the output of a whole part of the network."""
        hosts = [call for node in nodes for call in self.flow.calls if call.output is node and self._can_host(call)]
        if not hosts:
            return []
        # what a module deep inside the next block has done belongs to that block
        level = min(call.level for call in hosts)
        end = [call for call in hosts if call.level == level][-1]
        assert end.output is not None
        label, host = self.names[end.module], self._own_host(end, end.output)
        taker = self._taker(end.output) if isinstance(host.module, _CONTAINERS) else None
        if taker is not None:
            return [self._place(label, "before", taker, end.output, self._owner(taker.module))]
        return [self._place(label, "behind", host, end.output, self._owner(host.module))]

    def _taker(self, node: Node) -> Call | None:
        """Return the outermost call of a module, no container, to which all goes that is computed from `node`."""
        takers = (
            call
            for call in self.flow.calls
            if node in call.entries and self._can_host(call) and not isinstance(call.module, _CONTAINERS)
        )
        return next((call for call in takers if all(call in consumer.calls for consumer in node.consumers)), None)

    def _own_host(self, call: Call, node: Node) -> Call:
        """Return the outermost call inside `call` that returned `node` and can have the attention as a child itself.

        So that a part of the network that is taken out takes its attention along.
        """
        inside = [
            inner
            for inner in node.returned_by
            if self._can_host(inner) and not isinstance(inner.module, _CONTAINERS) and inner.level >= call.level
        ]
        return min(inside, key=lambda inner: inner.level, default=call)

    def _cuts(self) -> Iterator[Node]:
        """Yield the tensors through which everything goes that comes from the network's input."""
        last_use = -1
        for node in self.flow.nodes:
            if node in self._dependent:
                if last_use <= node.index:
                    yield node
                last_use = max([last_use, *(consumer.index for consumer in node.consumers)])

    def _end_of_stem(self) -> int:
        """Return up to which tensor a network's stem goes: to its first residual block, or its second convolution."""
        for node in self.flow.nodes:
            residual = self._residual(node)
            if residual is not None:
                return min(source.index for source in node.inputs)
        weighted = [node for node in self.flow.nodes if node.is_weighted]
        return weighted[1].index if len(weighted) > 1 else 0

    def matching(self, patterns: tuple[str, ...]) -> list[Place]:
        """Return a place behind each module whose name matches one of the shell-style patterns.

        Raises:
            UserError: A pattern that matches no module, or a module that does not return features, or not once.
        """
        chosen: dict[str, nn.Module] = {}
        for pattern in patterns:
            found = {
                name: module for name, module in self.modules.items() if name and fnmatch.fnmatchcase(name, pattern)
            }
            if not found:
                hint = suggest(pattern, list(self.modules))
                raise UserError(
                    f"no module of the network is called {brief(pattern)}{hint}; `blocks` and `stages` find places"
                )
            chosen |= found
        places: dict[str, Place] = {}
        for name, module in chosen.items():
            place = self._behind(name, module)
            if place.host in places:
                raise UserError(f"{places[place.host].label} and {name} are the same place; name one of them")
            places[place.host] = place
        return self._named_apart(list(places.values()))

    def _behind(self, name: str, module: nn.Module) -> Place:
        calls = [call for call in self.flow.calls if call.module is module]
        if len(calls) != 1:
            times = "not called" if not calls else f"called {len(calls)} times"
            raise UserError(f"{name} is {times} in a forward pass; attention needs a module that is called once")
        node = calls[0].output
        if node is None or len(node.shape) != 4:
            shape = "no tensor" if node is None else f"a tensor {node.shape}"
            raise UserError(f"{name} returns {shape}; attention needs features of shape (N, C, H, W)")
        if node in self._channels_last:
            raise UserError(f"{name} returns features with their channels last; attention needs (N, C, H, W)")
        if not self._can_host(calls[0]):
            raise UserError(f"nothing around {name} can hold attention; name a layer inside it")
        host = self._own_host(calls[0], node)
        return self._place(name, "behind", host, node, self._owner(host.module))

    def squeezes(self) -> list[Place]:
        """Return a place instead of each squeeze-and-excitation module that the network has.

        Raises:
            UserError: There is none.
        """
        found = [
            call
            for call in self.flow.calls
            if _SQUEEZE.fullmatch(type(call.module).__name__)
            and call.output is not None
            and [call.output.shape] == [entry.shape for entry in call.entries]
            and self.flow.num_calls(call.module) == 1
        ]
        if not found:
            raise UserError("the network has no squeeze-and-excitation module to replace; leave out replace")
        places = []
        for call in found:
            assert call.output is not None
            owner, _, name = self.names[call.module].rpartition(".")
            size = (call.output.shape[2], call.output.shape[3])
            host = self.names[call.module]
            places.append(Place(host, "instead of", host, owner, name, call.output.shape[1], size, keeper=owner))
        return places

    def _place(self, label: str, kind: Kind, host: Call, node: Node, owner: tuple[str, str]) -> Place:
        name = self.names[host.module]
        return Place(
            label,
            kind,
            name,
            *owner,
            node.shape[1],
            (node.shape[2], node.shape[3]),
            self._keeper(name, owner[0]),
            self._feeder(host),
            self._follower(host, node),
        )

    def _keeper(self, host: str, owner: str) -> str:
        """Return the name of the nearest module around host and owner that no tool rebuilds as a layer."""
        if host == owner and not is_layer(self.modules[host]):
            return host
        path = host
        while path:
            path = path.rpartition(".")[0]
            module = self.modules[path]
            if not isinstance(module, _CONTAINERS) and not is_layer(module) and relative(owner, path) is not None:
                return path
        return ""

    def _feeder(self, host: Call) -> str | None:
        """Return the name of the convolution into which a tool may fold the host, a norm; None where there is none."""
        if not is_norm(host.module) or len(host.entries) != 1:
            return None
        source = host.entries[0]
        given = (call for call in self.flow.producers(source) if isinstance(call.module, CONVOLUTIONS))
        return next((self.names[call.module] for call in given if self.flow.num_calls(call.module) == 1), None)

    def _follower(self, host: Call, node: Node) -> str | None:
        """Return the name of the norm that a tool may fold into the host, a convolution; None where there is none."""
        if not isinstance(host.module, CONVOLUTIONS):
            return None
        taking = (call for call in self.flow.calls if call.entries == (node,) and is_norm(call.module))
        return next((self.names[call.module] for call in taking), None)

    def _owner(self, module: nn.Module) -> tuple[str, str]:
        """Return the name of a module that takes a child without calling it, and what the child is called.

        The module itself, or the nearest around it that is neither a norm, which tools rebuild, nor a container. A norm
        inside containers of the network itself has the child itself, so that such a part takes it along when it is
        taken out (`model.features`).
        """
        own = path = self.names[module]
        rest: list[str] = []
        while path and (isinstance(self.modules[path], _CONTAINERS) or is_norm(self.modules[path])):
            path, _, last = path.rpartition(".")
            rest.insert(0, last)
        if is_norm(module) and not path and (len(rest) > 1 or isinstance(self.modules[path], _CONTAINERS)):
            path, rest = own, []
        return path, self._free(self.modules[path], "_".join([*rest, "attention"]))

    def _can_host(self, call: Call) -> bool:
        """Return whether attention can stand behind a call: of a module that is called once, and has an owner."""
        module = call.module
        if not self.names.get(module) or self.flow.num_calls(module) > 1:
            return False
        return not isinstance(self.modules[self._owner(module)[0]], _CONTAINERS)

    def _free(self, module: nn.Module, name: str) -> str:
        number, free = 1, name
        while hasattr(module, free):
            number, free = number + 1, f"{name}{number + 1}"
        return free


def _is_ours(module: nn.Module) -> TypeGuard[BasicBlock | Bottleneck]:
    return isinstance(module, (BasicBlock, Bottleneck))


def _depths(nodes: list[Node]) -> dict[Node, int]:
    """Return the greatest number of weighted operations from the first node to each that depends on it."""
    depths = {nodes[0]: 0}
    for node in nodes[1:]:
        before = [depths[source] for source in node.inputs if source in depths]
        if before:
            depths[node] = max(before) + node.is_weighted
    return depths
