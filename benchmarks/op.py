"""Time gates in the four stages of ResNeXt-50, forward and forward with backward, relative to a copy of their input.

    python benchmarks/op.py [--device cpu] [--dtype bfloat16]

Each figure is a time divided by the time of one copy of the input into existing memory (one read, one write). Timed are
the gate alone, y = gate(x), and the end of a residual block, relu(gate(norm(x)) + shortcut). whatwhere computes the end
in one call, the others operator by operator; the plain block has no gate.
"""

from __future__ import annotations

from functools import partial

import torch
from timm.layers import SEModule
from timm.layers.cbam import CbamModule
from torch import Tensor, nn

from harness import (
    INNER_ROUNDS,
    Times,
    environment,
    in_processes,
    measure,
    parser,
    refuse_unless_green,
    report,
    row_of,
    suffix_of,
    table,
)
from peers import AuthorsCBAM
from whatwhere import CBAM, SqueezeExcitation
from whatwhere.attention import Gate
from whatwhere.ops import gate

SHAPES = ((256, 56), (512, 28), (1024, 14), (2048, 7))
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class Tail(nn.Module):
    """The end of a residual block around any attention module, operator by operator."""

    def __init__(self, channels: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm, self.attention = nn.BatchNorm2d(channels), attention

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return torch.relu_(self.attention(self.norm(x)).add_(shortcut))


class LeanTail(Tail):
    """The same in one call of `gate`, as in our blocks: x comes from a convolution, and nothing else uses it."""

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        arguments = self.attention.arguments(x) if isinstance(self.attention, Gate) else {}
        return gate(x, **arguments, norm=self.norm, shortcut=shortcut, overwrite=True)


def forward(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        module(*inputs)


def step(module: nn.Module, inputs: tuple[Tensor, ...], gradient: Tensor) -> None:
    y = module(*inputs)
    torch.autograd.grad(y, [*inputs, *module.parameters()], gradient)


def candidates_of(channels: int, options: object, memory_format: torch.memory_format, size: int) -> dict[str, partial]:
    dtype = getattr(torch, options.dtype)
    shape = (options.batch_size, channels, size, size)

    def tensor() -> Tensor:
        return torch.randn(shape, device=options.device, dtype=dtype).to(memory_format=memory_format)

    x, shortcut, gradient, copy = tensor().requires_grad_(), tensor().requires_grad_(), tensor(), tensor()
    modules = {
        "whatwhere CBAM": CBAM(channels),
        "timm CBAM": CbamModule(channels),
        "authors' CBAM": AuthorsCBAM(channels),
        "whatwhere SE": SqueezeExcitation(channels),
        "timm SE": SEModule(channels),
    }
    tails = {
        "plain": Tail(channels, nn.Identity()),
        **{name: (LeanTail if "whatwhere" in name else Tail)(channels, module) for name, module in modules.items()},
    }
    found = {"copy": partial(copy.copy_, x.detach())}
    for kind, group, inputs in (("gate", modules, (x,)), ("block end", tails, (x, shortcut))):
        for name, module in group.items():
            module.to(options.device, dtype).train()
            # copies, because some write over them
            found[f"{kind}, {name}, forward"] = partial(
                forward, module, tuple(value.detach().clone() for value in inputs)
            )
            found[f"{kind}, {name}, forward+backward"] = partial(step, module, inputs, gradient)
    return found


def times_of(options: object, memory_format: torch.memory_format, channels: int, size: int) -> dict[str, Times]:
    return measure(candidates_of(channels, options, memory_format, size), INNER_ROUNDS, options.device)


def main() -> None:
    options = parser(__doc__, rounds=15).parse_args()
    refuse_unless_green("tests/ops")
    parts = [
        f"# A gate over a copy of its input, {options.dtype}",
        f"{environment(options.device)}; batch {options.batch_size}; {options.rounds} rounds, each in a process of "
        "its own; training mode. Times are medians divided by the median time of a copy of the input.",
    ]
    rows = []
    for format_name, memory_format in FORMATS.items():
        columns = {}
        for channels, size in SHAPES:
            shape = f"{options.batch_size}x{channels}x{size}x{size}"
            times = in_processes(times_of, options.rounds, options, memory_format, channels, size)
            rows += [row_of(value, format=format_name, shape=shape, op=name) for name, value in times.items()]
            columns[shape] = times
        names = [name for name in next(iter(columns.values())) if name != "copy"]
        lines = [
            [name, *(f"{times[name].median / times['copy'].median:.1f}" for times in columns.values())]
            for name in names
        ]
        copies = ["copy, ms", *(f"{times['copy'].median:.3f}" for times in columns.values())]
        parts.append(f"## {format_name}\n\n{table(['over a copy', *columns], [copies, *lines])}")
    report(f"op{suffix_of(options)}", options.device, parts, rows)


if __name__ == "__main__":
    main()
