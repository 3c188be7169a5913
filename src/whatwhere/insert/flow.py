"""What a network does with one input: which module calls which, and from what each tensor is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..base.modules import tensors_in, undisturbed

_SUMS = {"add", "radd", "iadd", "sub", "rsub", "isub"}
_WEIGHTED = {"conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "matmul"}


@dataclass(eq=False)
class Node:
    """A tensor at the moment at which it was computed; one that is changed in place is a further node.

    Attributes:
        index: Its number, in the order of execution.
        operation: The name of the function.
        inputs: What it was computed from.
        shape: Of the tensor.
        calls: The calls of modules that it was computed in, the outermost first.
        consumers: What was computed from it.
        returned_by: The calls that returned it, alone or among others.
    """

    index: int
    operation: str
    inputs: tuple[Node, ...]
    shape: tuple[int, ...]
    calls: tuple[Call, ...]
    consumers: list[Node] = field(default_factory=list)
    returned_by: list[Call] = field(default_factory=list)

    @property
    def is_sum(self) -> bool:
        """Whether it is the sum, or the difference, of two tensors of its shape."""
        return self.operation in _SUMS and [node.shape for node in self.inputs] == [self.shape] * 2

    @property
    def is_weighted(self) -> bool:
        """Whether it is the result of a convolution or a linear map."""
        return self.operation in _WEIGHTED


@dataclass(eq=False)
class Call:
    """One call of a module.

    Attributes:
        module: The module.
        entries: The features, (N, C, H, W), that it was given.
        level: How many calls it is inside of.
        output: What it returned, where that is one tensor.
    """

    module: nn.Module
    entries: tuple[Node, ...]
    level: int
    output: Node | None = None

    def passes_through(self) -> bool:
        """Return whether it returned what it was given."""
        return self.output is not None and self.output in self.entries


class Flow:
    """The calls and tensors of one forward pass.

    Attributes:
        nodes: In order of execution.
        calls: In the order in which they began.
        output: What the network returned.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.calls: list[Call] = []
        self.output: Any = None
        self._num_calls: Counter[nn.Module] = Counter()

    def num_calls(self, module: nn.Module) -> int:
        """Return how often a module was called."""
        return self._num_calls[module]

    def producers(self, node: Node) -> list[Call]:
        """Return the calls that computed `node` and returned it, the innermost first."""
        return [call for call in reversed(node.calls) if call.output is node]

    def passing(self, node: Node) -> list[Call]:
        """Return the calls that were given `node` and returned it unchanged, in order."""
        return [call for call in self.calls if call.output is node and call.passes_through()]


class _Recorder(TorchFunctionMode):
    """Records a flow while a network runs."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = Flow()
        self._open: list[Call] = []
        self._nodes: dict[int, Node] = {}
        self._alive: list[Tensor] = []  # as long as they are, no other tensor gets their id

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = tensors_in((args, kwargs))
        inputs = [self.node(value) for value in given]
        versions = {id(value): _version(value) for value in given}
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            # what comes back as it was, such as from dropout in evaluation, is nothing new
            if versions.get(id(tensor)) != _version(tensor):
                self._add(tensor, getattr(func, "__name__", "").strip("_"), inputs)
        return result

    def node(self, tensor: Tensor) -> Node:
        """Return the node of a tensor as it is now."""
        known = self._nodes.get(id(tensor))
        return self._add(tensor, "given", ()) if known is None else known

    def _add(self, tensor: Tensor, operation: str, inputs: Sequence[Node]) -> Node:
        node = Node(len(self.flow.nodes), operation, tuple(inputs), tuple(tensor.shape), tuple(self._open))
        for source in inputs:
            source.consumers.append(node)
        self.flow.nodes.append(node)
        self._nodes[id(tensor)] = node
        self._alive.append(tensor)
        return node

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        entries = tuple(dict.fromkeys(self.node(value) for value in tensors_in((args, kwargs)) if value.dim() == 4))
        call = Call(module, entries, len(self._open))
        self.flow.calls.append(call)
        self.flow._num_calls[module] += 1
        self._open.append(call)

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = self._open.pop()
        assert call.module is module
        for tensor in tensors_in(output):
            if id(tensor) in self._nodes:
                self._nodes[id(tensor)].returned_by.append(call)
        if isinstance(output, Tensor):
            if id(output) not in self._nodes:
                # computed where no Python function was seen, such as in a scripted one
                self._add(output, type(module).__name__, call.entries)
            call.output = self.node(output)


def record(model: nn.Module, run: Callable[[], Any]) -> Flow:
    """Return the flow of `run`, which calls `model` once; in evaluation mode, without gradients, changing nothing."""
    recorder = _Recorder()
    handles = []
    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(recorder.enter, with_kwargs=True))
            # of a call that raises too: the network may know what to do about it
            handles.append(module.register_forward_hook(recorder.leave, with_kwargs=True, always_call=True))
        # tensors of inference mode do not say whether they were changed in place
        with torch.inference_mode(False), torch.no_grad(), undisturbed(model), recorder:
            model.eval()
            recorder.flow.output = run()
    finally:
        for handle in handles:
            handle.remove()
    return recorder.flow


def _version(tensor: Tensor) -> int:
    """Return a number that changes where the tensor is changed in place; one of inference mode does not say."""
    return -1 if tensor.is_inference() else tensor._version
