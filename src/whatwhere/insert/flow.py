"""Follow one forward pass of any network: which module calls which, and which tensor is computed from which."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..base.errors import UserError
from ..base.modules import is_ultralytics_wrapper, tensors_in, undisturbed
from ..base.words import cause

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_SUMS = {"add", "radd", "iadd", "sub", "rsub", "isub"}
_WEIGHTED = {"conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "matmul"}
_COLOURS = 3
_SIZES = (224, 256, 299, 64, 32, 28)
_SIZES_TO_ENLARGE = (1, 4, 7, 8, 16, 32)


@dataclass(eq=False)
class Node:
    """A tensor at one moment; when a tensor is changed in place, a new node begins."""

    index: int  # position in the order of execution
    operation: str  # name of the function that computed it
    inputs: tuple[Node, ...]  # what it was computed from
    shape: tuple[int, ...]
    calls: tuple[Call, ...]  # the calls of modules during which it was computed, the outermost first
    consumers: list[Node] = field(default_factory=list)  # what was computed from it
    returned_by: list[Call] = field(default_factory=list)  # the calls that returned it, alone or among other tensors

    @property
    def is_sum(self) -> bool:
        """Whether it is the sum, or the difference, of two tensors of its shape."""
        return self.operation in _SUMS and [node.shape for node in self.inputs] == [self.shape] * 2

    @property
    def is_weighted(self) -> bool:
        """Whether a convolution or a linear map computed it."""
        return self.operation in _WEIGHTED


@dataclass(eq=False)
class Call:
    """One call of a module."""

    module: nn.Module
    entries: tuple[Node, ...]  # the tensors of four dimensions among its arguments
    level: int  # how many calls it is inside of
    output: Node | None = None  # what it returned; None unless that is one tensor


@dataclass
class Flow:
    """The calls and tensors of one forward pass."""

    arguments: tuple[Any, ...]  # what the network was called with
    nodes: list[Node] = field(default_factory=list)  # in order of execution
    calls: list[Call] = field(default_factory=list)  # in the order in which they began
    num_calls: Counter[nn.Module] = field(default_factory=Counter)  # how often each module was called
    output: Any = None  # what the network returned
    alive: dict[int, Node] = field(default_factory=dict)  # of the tensors that outlived the pass, by their id

    def producers(self, node: Node) -> list[Call]:
        """Return the calls that computed `node` and returned it, the innermost first."""
        return [call for call in reversed(node.calls) if call.output is node]

    def passing(self, node: Node) -> list[Call]:
        """Return the calls that took `node` and returned it unchanged, in order."""
        return [call for call in self.calls if call.output is node and node in call.entries]


class _Recorder(TorchFunctionMode):
    """Fills a flow while a network runs."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow
        self._open: list[Call] = []
        self._nodes: dict[int, Node] = {}
        self._alive: dict[int, weakref.ref[Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = tensors_in((args, kwargs))
        inputs = [self._node(value) for value in given]
        versions = {id(value): _version(value) for value in given}
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            # a result that is an unchanged argument, such as from dropout in evaluation, is not new
            if versions.get(id(tensor)) != _version(tensor):
                self._add(tensor, getattr(func, "__name__", "").strip("_"), inputs)
        return result

    def _node(self, tensor: Tensor) -> Node:
        known = self._nodes.get(id(tensor))
        return self._add(tensor, "given", ()) if known is None else known

    def _add(self, tensor: Tensor, operation: str, inputs: Sequence[Node]) -> Node:
        node = Node(len(self.flow.nodes), operation, tuple(inputs), tuple(tensor.shape), tuple(self._open))
        for source in inputs:
            source.consumers.append(node)
        self.flow.nodes.append(node)
        key = id(tensor)
        self._nodes[key] = node
        if key not in self._alive:
            # another tensor may get the id of one that is gone
            self._alive[key] = weakref.ref(tensor, lambda _: self._forget(key))
        return node

    def alive(self) -> dict[int, Node]:
        """Return the nodes of the tensors that are still there, by their id."""
        return dict(self._nodes)

    def _forget(self, key: int) -> None:
        del self._nodes[key], self._alive[key]

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        entries = tuple(dict.fromkeys(self._node(value) for value in tensors_in((args, kwargs)) if value.dim() == 4))
        call = Call(module, entries, len(self._open))
        self.flow.calls.append(call)
        self.flow.num_calls[module] += 1
        self._open.append(call)

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = self._open.pop()
        assert call.module is module
        for tensor in tensors_in(output):
            if id(tensor) in self._nodes:
                self._nodes[id(tensor)].returned_by.append(call)
        if isinstance(output, Tensor):
            if id(output) not in self._nodes:
                # no Python function was seen to compute it, as in a scripted module
                self._add(output, type(module).__name__, call.entries)
            call.output = self._node(output)


def _version(tensor: Tensor) -> int:
    """Return a number that changes when the tensor is changed in place; -1 for a tensor of inference mode."""
    return -1 if tensor.is_inference() else tensor._version


def record(model: nn.Module, arguments: tuple[Any, ...]) -> Flow:
    """Return the flow of model(*arguments), run in evaluation mode without gradients; the model does not change."""
    flow = Flow(arguments)
    recorder = _Recorder(flow)
    handles = []
    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(recorder.enter, with_kwargs=True))
            # also for a call that raises: the network may catch the error
            handles.append(module.register_forward_hook(recorder.leave, with_kwargs=True, always_call=True))
        # a tensor of inference mode does not tell whether it was changed in place
        with torch.inference_mode(False), torch.no_grad(), undisturbed(model), recorder:
            model.eval()
            flow.output = model(*arguments)
        flow.alive = recorder.alive()
    finally:
        for handle in handles:
            handle.remove()
    return flow


def record_example(model: nn.Module, example: Any = None, *, advice: str = "", caller: str = "attend") -> Flow:
    """Return the flow of a network for an example: a tensor, a tuple of arguments, or a flow that was recorded before.

    None takes one image, of the first usual size with which the network runs. `advice` says, in an error, what to give
    instead; by default another example. `caller` is the function that errors speak of.

    Raises:
        UserError: The network does not run, or cannot take attention.
    """
    check_can_change(model, caller)
    if isinstance(example, Flow):
        return example
    candidates = (
        _usual_arguments(model, caller) if example is None else [example if isinstance(example, tuple) else (example,)]
    )
    first: Exception | None = None
    for arguments in candidates:
        try:
            return record(model, arguments)
        except Exception as error:  # a user's network may raise anything for a size that it does not take
            first = first or error
    hint = advice or (
        "give what it is called with, as in example=torch.zeros(1, 3, 96, 96)"
        if example is None
        else "give another example"
    )
    raise UserError(f"the network does not run: {cause(first)}; {hint}") from first


def check_can_change(model: nn.Module, caller: str) -> None:
    """Raise UserError where a network is none, or a wrapper around one."""
    if not isinstance(model, nn.Module):
        raise UserError(f"{caller} takes a torch.nn.Module, got a {type(model).__name__}")
    if is_ultralytics_wrapper(model):
        raise UserError(f"{caller} takes the network inside this {type(model).__name__}: its attribute `model`")
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(f"a TorchScript model cannot be changed; give {caller} the model that it was made from")
    inside = "_orig_mod" if hasattr(model, "_orig_mod") else "module"
    if inside == "_orig_mod" or isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise UserError(
            f"give {caller} the model before it is compiled or wrapped: {inside} of this {type(model).__name__}"
        )
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise UserError(f"{name} has no shape yet; run the network once before {caller}")
        if parameter.is_meta:
            raise UserError(f"{name} is on the meta device; load the network first")


def _usual_arguments(model: nn.Module, caller: str) -> Iterator[tuple[Any, ...]]:
    """Yield what most networks can be called with: an image of a usual size, or a list with one."""
    convolution = next((module for module in model.modules() if isinstance(module, CONVOLUTIONS)), None)
    if convolution is None:
        raise UserError(f"the network has no 2-d convolution; {caller} is for convolutional networks")
    # a decoder alone takes small features and enlarges them
    is_decoder = isinstance(convolution, nn.ConvTranspose2d)
    sizes = [(size, size) for size in (_SIZES_TO_ENLARGE if is_decoder else _SIZES)]
    # timm's networks carry their input size
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict) and len(config.get("input_size") or ()) == 3:
        sizes.insert(0, tuple(config["input_size"][1:]))
    for height, width in sizes:
        yield (_image(convolution, height, width),)
    # torchvision's detectors take a list of images
    yield ([_image(convolution, *sizes[0])[0]],)
    # a stem may fold the image into channels, as those of TResNet and YOLOv5 do
    for height, width in sizes if convolution.in_channels != _COLOURS else ():
        yield (_image(convolution, height, width, _COLOURS),)


def _image(convolution: nn.Conv2d | nn.ConvTranspose2d, height: int, width: int, channels: int = 0) -> Tensor:
    """Return an image for a convolution: evenly spaced values from -2 to 2 in random order, the same each time."""
    weight, channels = convolution.weight, channels or convolution.in_channels
    values = torch.linspace(-2, 2, channels * height * width, device="cpu")
    mixed = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0), device="cpu")]
    image = mixed.view(1, channels, height, width)
    return image.to(weight.device, weight.dtype if weight.is_floating_point() else torch.float32)
