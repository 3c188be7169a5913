"""Find where attention can stand: before the sums of residual blocks, between stages, behind modules by name."""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from ..base.errors import UserError
from ..base.modules import relative_name
from ..base.words import brief, counted, suggest
from ..models import BasicBlock, Bottleneck
from .flow import CONVOLUTIONS, Call, Flow, Node
from .host import attached, inserted_in, is_layer, is_norm
from .plan import Kind, Place, Skipped

# a projection, and a blur before it
_MOST_SHORTCUT_WEIGHTS = 2
# a block of separable convolutions and gates has a dozen; a longer branch is half a network
_MOST_BRANCH_WEIGHTS = 16
_CHANNELS_FIRST = {"conv2d", "conv_transpose2d", "batch_norm", "group_norm", "instance_norm"}
_CHANNELS_LAST = {"linear", "layer_norm", "scaled_dot_product_attention"}
_SWAPPING = {"permute", "transpose", "movedim", "moveaxis", "swapaxes"}
_REARRANGING = {*_SWAPPING, "view", "reshape", "flatten", "unflatten", "getitem"}
_GATING = {"sigmoid", "hardsigmoid", "hardtanh", "relu6", "div", "softmax"}
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # a child more would be called, or listed
# convolutions without padding lose a few pixels within one stage
_SAME_SIZE = 0.75
# of the pattern in a message
_MOST_SUGGESTED, _LONGEST_PATTERN = 8, 200
_SQUEEZE = re.compile(r"e?se(module|layer|block|unit|gate)?|effectivesemodule|squeeze.*excit.*", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class _Residual:
    """A residual sum, shortcut + branch, and the block that computes it."""

    block: Call
    branch: Node
    is_identity: bool  # the shortcut is the input of the branch, not a projection of it


@dataclass(frozen=True, eq=False)
class _Layer:
    """A convolutional layer: the call that ends it (its norm, else its activation, else the convolution)."""

    end: Call
    output: Node


class Places:
    """Finds places for attention in a network.

    Args:
        model: The network.
        flow: One forward pass of it.

    Attributes:
        skipped: Residual blocks that can take no attention, once `blocks` has run.
        inserted: The modules of the attention that `attend` has put in before.
    """

    def __init__(self, model: nn.Module, flow: Flow) -> None:
        self.flow = flow
        # a module with several names goes by the first
        self.names = {module: name for name, module in reversed(list(model.named_modules()))}
        self.modules = dict(model.named_modules())
        self.skipped: list[Skipped] = []
        self.inserted = {
            inner for keeper, inserted in inserted_in(model) for inner in inserted.attention(keeper).modules()
        }
        # the tensors computed from the network's input
        self._dependent: set[Node] = set(flow.calls[0].entries or flow.nodes[:1])
        self._channels_last: set[Node] = set()
        for node in flow.nodes:
            before = [source for source in node.inputs if source in self._dependent]
            if before:
                self._dependent.add(node)
                # features of shape (N, H, W, C): an operation tells, or the input and a permutation
                is_last = node.operation in _CHANNELS_LAST
                if not is_last and node.operation not in _CHANNELS_FIRST:
                    is_swapped = node.operation in _SWAPPING and len(node.shape) == len(before[0].shape) == 4
                    is_last = (before[0] in self._channels_last) != is_swapped
                if is_last:
                    self._channels_last.add(node)

    def blocks(self) -> list[Place]:
        """Return a place before the sum of each residual block, on its branch; list the other blocks in `skipped`."""
        found = [(total, residual) for total in self.flow.nodes if (residual := self._residual(total)) is not None]
        # the last sum with a projection is the block's; those before it are of parts of its branch
        last = {residual.block: total for total, residual in found}
        places = []
        for total, residual in found:
            if residual.is_identity or last[residual.block] is total:
                label = self.names[residual.block.module] or type(residual.block.module).__name__
                place = self._before_sum(label, residual.block, residual.branch)
                if isinstance(place, Place):
                    places.append(place)
                elif label not in [skipped.label for skipped in self.skipped]:
                    self.skipped.append(Skipped(label, place))
        return self._named_apart(places)

    def _residual(self, total: Node) -> _Residual | None:
        """Return the residual sum that `total` is; None if it is no such sum."""
        if not total.is_sum or len(total.shape) != 4:
            return None
        earlier, later = sorted(total.inputs, key=lambda node: node.index)
        depths = _depths(self.flow.nodes[earlier.index : total.index])
        if 0 < depths.get(later, 0) <= _MOST_BRANCH_WEIGHTS:
            if any(map(self._comes_up, depths)):
                return None
            shared = [call for call, other in zip(total.calls, later.calls, strict=False) if call is other]
            return _Residual(shared[-1], later, is_identity=True)
        # a projection: both sides are computed from an input of the module that sums, or of the module around it
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
        """Return whether features become larger here: a branch that goes down and up again is half a network, no block.

        A gate may become larger, if only products use it.
        """
        areas = [self._area(source) for source in node.inputs if len(source.shape) == 4 and source in self._dependent]
        is_moved = node.operation in _REARRANGING
        if is_moved or len(node.shape) != 4 or not areas or self._area(node) < 2 * max(areas):
            return False
        while len(node.consumers) == 1 and node.consumers[0].operation in _GATING:
            node = node.consumers[0]
        return not all(consumer.operation in ("mul", "rmul", "imul") for consumer in node.consumers)

    def _area(self, node: Node) -> int:
        height, width = node.shape[1:3] if node in self._channels_last else node.shape[2:]
        return height * width

    def _named_apart(self, places: list[Place]) -> list[Place]:
        """Return the places with unlike names: those with the same owner are named after their hosts."""
        counts = Counter(place.owner for place in places)
        taken: set[tuple[str, str]] = set()
        named = []
        for place in places:
            first = place.name
            if counts[place.owner] > 1:
                own = place.host.removeprefix(f"{place.owner}." if place.owner else "").replace(".", "_")
                first = self._free(self.modules[place.owner], f"{own}_attention")
            candidates = itertools.chain([first], (f"{first}{number}" for number in itertools.count(2)))
            name = next(name for name in candidates if (place.owner, name) not in taken)
            taken.add((place.owner, name))
            named.append(replace(place, name=name))
        return named

    def _before_sum(self, label: str, block: Call, branch: Node) -> Place | str:
        """Return the place at the end of a residual block's branch, or why there is none."""
        is_repeated = self.flow.num_calls[block.module] > 1
        if is_repeated or branch in self._channels_last:
            return "the block is called more than once" if is_repeated else "its features have their channels last"
        if isinstance(block.module, (BasicBlock, Bottleneck)):
            # a block of this package has a slot for attention
            if type(block.module.attention) is not nn.Identity:
                return "it has attention already"
            size = (branch.shape[2], branch.shape[3])
            slot = f"{label}.attention"
            return Place(label, "instead of", slot, label, "attention", branch.shape[1], size, keeper=label)

        # another consumer than the sum would get attended features too
        def is_used_once(node: Node) -> bool:
            return len(node.consumers) == 1 and block not in node.returned_by

        # before a layer scale: that may start near zero, and a gate could not tell anything from such features
        for node in (*self._unscaled(branch), branch):
            calls = [call for call in self.flow.producers(node) if call.module is not block.module]
            host = next((call for call in calls if self.flow.num_calls[call.module] == 1), None)
            if host is not None and is_used_once(node):
                return self._place(label, "behind", host, node, self._owner(block.module))
        passing = [call for call in self.flow.passing(branch) if self.flow.num_calls[call.module] == 1]
        if passing and is_used_once(branch):
            return self._place(label, "before", passing[0], branch, self._owner(block.module))
        operation = f"what it adds comes from an operation ({branch.operation}), not from a module"
        return operation if is_used_once(branch) else "what it adds to its sum is used elsewhere as well"

    def _unscaled(self, node: Node) -> Iterator[Node]:
        """Yield the tensors that become `node` by constant factors alone, from the first to the last product."""
        if node.operation in ("mul", "rmul", "imul"):
            given = [source for source in node.inputs if source.shape == node.shape]
            factors = [source for source in node.inputs if source.shape != node.shape]
            if len(given) == 1 and self._dependent.isdisjoint(factors):
                yield from self._unscaled(given[0])
                yield given[0]

    def stages(self) -> list[Place]:
        """Return a place at the end of each stage but the last: a tensor that everything passes before it shrinks."""
        stages = self._stages()
        begins = self._end_of_stem()
        places = []
        for stage, following in itertools.pairwise(stages):
            ends = [node for node in stage if node.index > begins and self._area(node) == self._area(stage[0])]
            hosts = [call for node in ends for call in self.flow.calls if call.output is node and self._can_host(call)]
            # a global pool does not begin a stage
            if hosts and self._area(following[0]) > 1:
                # an output from deep inside the next block belongs to that block
                level = min(call.level for call in hosts)
                places.append(self._end([call for call in hosts if call.level == level][-1]))
        return places

    def _stages(self) -> list[list[Node]]:
        """Return the tensors that everything passes, in order: a new list wherever they have shrunk."""
        stages: list[list[Node]] = []
        # only what modules return: on the way a tensor may be padded, or have its channels last
        returned = {call.output for call in self.flow.calls}
        for node in self._cuts():
            if len(node.shape) == 4 and node in returned and node not in self._channels_last:
                if not stages or self._area(node) < _SAME_SIZE * self._area(stages[-1][0]):
                    stages.append([])
                stages[-1].append(node)
        return stages

    def why_no_stages(self) -> str:
        """Return why `stages` finds no place."""
        areas = [self._area(layer.output) for layer in self._layers()]
        if not any(after < _SAME_SIZE * before for before, after in itertools.pairwise(areas)):
            return "its features do not shrink from one convolution to the next"
        if len(self._stages()) < 2:
            return "wherever its features shrink, a skip connection passes by"
        return "its features shrink only behind the stem (the first convolution) or in a global pool"

    def _end(self, end: Call) -> Place:
        """Return the place at the output of a part of the network."""
        assert end.output is not None
        label, host = self.names[end.module], self._own_host(end, end.output)
        taker = self._taker(end.output) if isinstance(host.module, _CONTAINERS) else None
        if taker is not None:
            return self._place(label, "before", taker, end.output, self._owner(taker.module))
        return self._place(label, "behind", host, end.output, self._owner(host.module))

    def _taker(self, node: Node) -> Call | None:
        """Return the outermost call that takes all of `node`'s uses, of a module that is no container."""
        takers = (
            call
            for call in self.flow.calls
            if node in call.entries and self._can_host(call) and not isinstance(call.module, _CONTAINERS)
        )
        return next((call for call in takers if all(call in consumer.calls for consumer in node.consumers)), None)

    def _own_host(self, call: Call, node: Node) -> Call:
        """Return the outermost call inside `call` that returned `node`, of a module that can own the attention.

        A part that is taken out of the network then takes its attention along.
        """
        later = self.flow.calls[self.flow.calls.index(call) + 1 :]
        # calls stand in the order in which they began: those inside `call` follow it, on deeper levels
        inside = [call, *itertools.takewhile(lambda inner: inner.level > call.level, later)]
        hosts = [
            inner
            for inner in inside
            if inner in node.returned_by and self._can_host(inner) and not isinstance(inner.module, _CONTAINERS)
        ]
        return min(hosts, key=lambda inner: inner.level, default=call)

    def _cuts(self) -> Iterator[Node]:
        """Yield the tensors that everything computed from the input passes through."""
        last_use = -1
        for node in self.flow.nodes:
            if node in self._dependent:
                if last_use <= node.index:
                    yield node
                last_use = max([last_use, *(consumer.index for consumer in node.consumers)])

    def _end_of_stem(self) -> int:
        """Return the index of the tensor that ends the stem: before the first residual block or second convolution."""
        for node in self.flow.nodes:
            if self._residual(node) is not None:
                return min(source.index for source in node.inputs)
        weighted = [
            node
            for node in self.flow.nodes
            if node.is_weighted and self.inserted.isdisjoint(call.module for call in node.calls)
        ]
        return weighted[1].index if len(weighted) > 1 else 0

    def matching(self, patterns: tuple[str, ...]) -> list[Place]:
        """Return a place behind each module whose name matches one of the shell-style patterns.

        Raises:
            UserError: A pattern matches no module, or a module does not return features, or is not called once.
        """
        chosen: dict[str, nn.Module] = {}
        for pattern in patterns:
            found = self._named(pattern)
            if not found:
                # users of Ultralytics count layers
                numbered = f"model.{pattern}"
                hint = (
                    f"; did you mean {numbered}?" if numbered in self.modules else suggest(pattern, list(self.modules))
                )
                raise UserError(f"no module of the network is called {brief(pattern)}{hint}")
            chosen |= found
        places: dict[str, Place] = {}
        for name, module in chosen.items():
            place = self._behind(name, module)
            if place.host in places:
                raise UserError(f"{places[place.host].label} and {name} are the same place; name one of them")
            places[place.host] = place
        return self._named_apart(list(places.values()))

    def _named(self, pattern: str) -> dict[str, nn.Module]:
        return {name: module for name, module in self.modules.items() if name and fnmatch.fnmatchcase(name, pattern)}

    def advice(self) -> str:
        """Return where attention can stand in this network, as the end of a message: each value of `at` that works."""
        found = {"blocks": len(self.blocks()), "stages": len(self.stages())}
        pattern, count = self.pattern()
        if not found["blocks"] and count > found["stages"]:
            found[pattern] = count
        works = [f"at {at!r} ({counted(count, 'place')})" for at, count in found.items() if count]
        return f"; put it {' or '.join(works)}" if works else "; no layer inside it can take attention"

    def pattern(self) -> tuple[str, int]:
        """Return patterns for a place at the last layer of each feature size, and the number of places.

        The first and the last size are included, the output layer is left out. A network of one size has a place at
        each layer. ("", 0) if no layer can take attention.
        """
        sizes: list[list[_Layer]] = []
        for layer in self._layers():
            # a decoder comes back to larger sizes
            ratio = self._area(layer.output) / self._area(sizes[-1][0].output) if sizes else 0
            if not _SAME_SIZE <= ratio <= 1 / _SAME_SIZE:
                sizes.append([])
            sizes[-1].append(layer)
        ends = [layer.end for layer in sizes[0]] if len(sizes) == 1 else self._ends(sizes)
        names = [self.names[call.module] for call in ends[-_MOST_SUGGESTED:]]
        while names:
            for pattern in (self._shortened(names), ",".join(names)):
                with contextlib.suppress(UserError):
                    if len(pattern) <= _LONGEST_PATTERN and pattern.isprintable():
                        return pattern, len(self.matching(tuple(pattern.split(","))))
            del names[0]
        return "", 0

    def _layers(self) -> list[_Layer]:
        """Return the convolutional layers that attention can stand behind; not an output layer without a norm."""
        layers: list[_Layer] = []
        outputs: list[_Layer] = []
        for call in self.flow.calls:
            if isinstance(call.module, CONVOLUTIONS) and (node := self._features(call)) is not None:
                takers = [taker for taker in self.flow.calls if taker.entries == (node,)]
                norms = [taker for taker in takers if is_norm(taker.module) and self._features(taker) is not None]
                others = [taker for taker in takers if type(taker.module).__module__ == nn.ReLU.__module__]
                end = next(iter([*norms, *others]), call)
                output = self._features(end) or node
                if any(attached(taker.module) for taker in takers):
                    continue
                is_output = not norms and not any(_depths(self.flow.nodes[node.index :]).values())
                (outputs if is_output else layers).append(_Layer(call if output is node else end, output))
        # a network of a single layer is no classifier
        return layers or outputs

    def _features(self, call: Call) -> Node | None:
        """Return what a call returns, if attention can stand behind it; None for a single pixel, as in a gate."""
        node = call.output
        if node is None or node not in self._dependent or len(node.shape) != 4 or node in self._channels_last:
            return None
        is_taken = attached(call.module) or call.module in self.inserted
        return None if self._area(node) == 1 or is_taken or not self._can_host(call) else node

    def _ends(self, sizes: list[list[_Layer]]) -> list[Call]:
        """Return the last layer of each size; or, if that is in a branch, the last block that everything passes.

        A size without either is left out in a network with stages: its layers are those of parallel branches.
        """
        cuts, has_stages = set(self._cuts()), bool(self.stages())
        ends = []
        for size, following in itertools.zip_longest(sizes, sizes[1:]):
            first, last = size[0].output, size[-1].output
            until = following[0].output.index if following else len(self.flow.nodes)
            blocks = [
                call
                for call in self.flow.calls
                if (node := self._features(call)) in cuts
                and node is not None
                and first.index < node.index < until
                and self._area(node) == self._area(last)
                and not is_layer(call.module)
            ]
            if last in cuts or not (blocks or has_stages):
                ends.append(size[-1].end)
            elif blocks:
                ends.append(blocks[-1])
        return ends

    def _shortened(self, names: list[str]) -> str:
        """Return the names as one pattern, with * for the numbers that differ, if that matches no other module."""
        columns = zip(*(name.split(".") for name in names), strict=False)
        parts = (column[0] if len(set(column)) == 1 else re.sub(r"\d+", "*", column[0]) for column in columns)
        pattern = ".".join(parts)
        return pattern if list(self._named(pattern)) == names else ",".join(names)

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
        """Return the place of each squeeze-and-excitation module, which attention replaces.

        Raises:
            UserError: There is none.
        """
        places = []
        for call in self.flow.calls:
            output, host = call.output, self.names.get(call.module, "")
            is_squeeze = _SQUEEZE.fullmatch(type(call.module).__name__) and self.flow.num_calls[call.module] == 1
            if host and is_squeeze and output is not None and [output.shape] == [entry.shape for entry in call.entries]:
                owner, _, name = host.rpartition(".")
                size = (output.shape[2], output.shape[3])
                places.append(Place(host, "instead of", host, owner, name, output.shape[1], size, keeper=owner))
        if not places:
            raise UserError("the network has no squeeze-and-excitation module to replace; leave out replace")
        return places

    def _place(self, label: str, kind: Kind, host: Call, node: Node, owner: tuple[str, str]) -> Place:
        """Return the place of attention at a call, with the names that keep it there (see `Place`)."""
        keeper = name = self.names[host.module]
        if name != owner[0] or is_layer(host.module):
            while keeper:
                keeper = keeper.rpartition(".")[0]
                module = self.modules[keeper]
                is_around = relative_name(owner[0], keeper) is not None
                if is_around and not isinstance(module, _CONTAINERS) and not is_layer(module):
                    break
        feeder = follower = None
        if is_norm(host.module) and len(host.entries) == 1:
            for call in self.flow.producers(host.entries[0]):
                if isinstance(call.module, CONVOLUTIONS) and self.flow.num_calls[call.module] == 1:
                    feeder = self.names[call.module]
                    break
        if isinstance(host.module, CONVOLUTIONS):
            takers = (call for call in self.flow.calls if call.entries == (node,) and is_norm(call.module))
            follower = next((self.names[call.module] for call in takers), None)
        size = (node.shape[2], node.shape[3])
        return Place(label, kind, name, *owner, node.shape[1], size, keeper, feeder, follower)

    def _owner(self, module: nn.Module) -> tuple[str, str]:
        """Return the name of the module that gets the attention of `module` as a child, and the child's name.

        It is the module itself, or the nearest around it that is neither a norm, which tools rebuild, nor a container.
        A norm inside `model.features` and the like has the child itself: if that part is taken out, so is the child.
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
        """Return whether attention can stand behind a call: its module is called once, and there is an owner."""
        module = call.module
        if not self.names.get(module) or self.flow.num_calls[module] > 1:
            return False
        return not isinstance(self.modules[self._owner(module)[0]], _CONTAINERS)

    @staticmethod
    def _free(module: nn.Module, name: str) -> str:
        """Return `name`, with a number if the module has such an attribute already."""
        candidates = itertools.chain([name], (f"{name}{number}" for number in itertools.count(2)))
        return next(free for free in candidates if not hasattr(module, free))


def _depths(nodes: list[Node]) -> dict[Node, int]:
    """Return the greatest number of weighted operations from the first node to each that depends on it."""
    depths = {nodes[0]: 0}
    for node in nodes[1:]:
        before = [depths[source] for source in node.inputs if source in depths]
        if before:
            depths[node] = max(before) + node.is_weighted
    return depths
