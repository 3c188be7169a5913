"""Time the ends of the blocks of ResNeXt-50: all that attention changes.

    python benchmarks/breakdown.py [--dtype bfloat16] [--formats channels_last]

The convolutions are the same operators in all these networks, and their noise hides what attention costs. So the end of
each block runs alone here, on tensors as its convolution would give them: norm, attention, sum and ReLU, in a training
step forward and backward. Beside them, in the same rounds, runs torchvision's plain network. With the sums of times
over all ends of the network, the ratio is

    1 + (ends with attention - ends of torchvision's plain network) / torchvision's plain network

Each round is a process of its own, and its times are medians of a few inner rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch
import torchvision
from timm.layers import SEModule
from timm.layers.cbam import CbamModule
from torch import nn

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
from networks import FORMATS, infer, train
from op import SHAPES, LeanTail, Tail
from whatwhere import CBAM, SqueezeExcitation

STAGES = [(*shape, blocks) for shape, blocks in zip(SHAPES, (3, 4, 6, 3), strict=True)]
NETWORK, PLAIN = "torchvision's network", "torchvision plain"
ENDS = {
    PLAIN: lambda channels: Tail(channels, nn.Identity()),
    "whatwhere plain": lambda channels: LeanTail(channels, nn.Identity()),
    "whatwhere SE": lambda channels: LeanTail(channels, SqueezeExcitation(channels)),
    "timm SE": lambda channels: Tail(channels, SEModule(channels)),
    "whatwhere CBAM": lambda channels: LeanTail(channels, CBAM(channels)),
    "timm CBAM": lambda channels: Tail(channels, CbamModule(channels)),
}


def run_of(name: str, stage: int, options: object, memory_format: torch.memory_format, training: bool) -> Callable:
    """Return a function that runs an end once."""
    channels, size, _ = STAGES[stage]
    shape, dtype = (options.batch_size, channels, size, size), getattr(torch, options.dtype)
    x, shortcut, gradient = (
        torch.randn(shape, device=options.device, dtype=dtype).to(memory_format=memory_format) for _ in range(3)
    )
    end, autocast = ENDS[name](channels).to(options.device).train(training), of_dtype(options)
    inputs = [x.requires_grad_(training), shortcut.requires_grad_(training), *end.parameters()]

    def run() -> None:
        with torch.inference_mode(not training), autocast:
            y = end(x, shortcut)
        if training:
            torch.autograd.grad(y, inputs, gradient)

    return run


def of_dtype(options: object) -> torch.autocast:
    return torch.autocast(options.device, torch.bfloat16, enabled=options.dtype == "bfloat16")


def times_of(options: object, memory_format: torch.memory_format, training: bool) -> dict[object, Times]:
    """Return the times of the network, and of each end by its name and stage."""
    network = torchvision.models.resnext50_32x4d().to(options.device, memory_format=memory_format).train(training)
    images = torch.randn(options.batch_size, 3, 224, 224, device=options.device).to(memory_format=memory_format)
    candidates = {NETWORK: partial(train if training else infer, network, images, of_dtype(options))}
    for name in ENDS:
        for stage in range(len(STAGES)):
            candidates[name, stage] = run_of(name, stage, options, memory_format, training)
    return measure(candidates, INNER_ROUNDS, options.device)


def all_ends(name: str, times: dict[object, Times]) -> list[float]:
    """Return the time of all ends of the network, round by round."""
    by_stage = [[blocks * ms for ms in times[name, i].milliseconds] for i, (_, _, blocks) in enumerate(STAGES)]
    return [sum(round_) for round_ in zip(*by_stage, strict=True)]


def with_ends(name: str, times: dict[object, Times]) -> Times:
    """Return what the network would take with other ends."""
    network, found = times[NETWORK], (all_ends(name, times), all_ends(PLAIN, times))
    changed = (all_of + ours - plain for all_of, ours, plain in zip(network.milliseconds, *found, strict=True))
    return Times(tuple(changed), 0)  # of memory nothing is known


def main() -> None:
    arguments = parser(__doc__, rounds=12)
    arguments.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    options = arguments.parse_args()
    refuse_unless_green("tests/ops", "tests/models")
    parts = [
        f"# The ends of the blocks of ResNeXt-50, {options.dtype}",
        f"{environment(options.device)}; batch {options.batch_size} of 3x224x224; {options.rounds} rounds, each in a "
        "process of its own. Times of one block's end by stage, and of all sixteen, ms, medians. Ratio: torchvision's "
        "plain network with these ends, to itself.",
    ]
    sizes = [f"{channels} x {size}²" for channels, size, _ in STAGES]
    rows = []
    for format_name in options.formats:
        for task in ("training step", "inference"):
            times = in_processes(times_of, options.rounds, options, FORMATS[format_name], task == "training step")
            base, lines = times[NETWORK], []
            for name in ENDS:
                whole, ends = with_ends(name, times), [times[name, stage].median for stage in range(len(STAGES))]
                cells = [f"{ms:.1f}" for ms in (*ends, statistics.median(all_ends(name, times)))]
                lines.append([name, *cells, *whole.ratio_cells(base)])
                rows.append(row_of(whole, base, task=task, format=format_name, ends=name))
            head = ["ends", *sizes, "all", "ratio", "95 % interval"]
            network = f"The network itself: {base.median:.0f} ms."
            parts.append(f"## {task}, {format_name}\n\n{network}\n\n{table(head, lines)}")
    report(f"breakdown{suffix_of(options)}", options.device, parts, rows)


if __name__ == "__main__":
    main()
