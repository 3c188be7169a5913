"""Time ResNeXt-50 with attention: whatwhere, timm, torchvision, and the CBAM authors' module.

    python benchmarks/networks.py [--device cpu] [--dtype bfloat16] [--compile] [--formats channels_last]

A training step is forward, mean of the output, backward, without an optimizer; inference is in evaluation mode under
`torch.inference_mode`. A ratio is the median, over the rounds, of a network's time divided by that of torchvision's
plain network in the same round, with its 95 % interval; the overhead is the ratio less 1, and is compared with that of
timm's CBAM.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from harness import Times, environment, measure, parser, refuse_unless_green, report, row_of, suffix_of, table
from peers import NETWORKS

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
BASE, PEER = "torchvision plain", "timm CBAM"


def infer(model: nn.Module, images: Tensor, autocast: torch.autocast) -> None:
    with torch.inference_mode(), autocast:
        model(images)


def train(model: nn.Module, images: Tensor, autocast: torch.autocast) -> None:
    with autocast:
        loss = model(images).float().mean()
    loss.backward()
    model.zero_grad(set_to_none=True)


def times_of(options: object, memory_format: torch.memory_format, training: bool) -> dict[str, Times]:
    images = torch.randn(options.batch_size, 3, 224, 224, device=options.device).to(memory_format=memory_format)
    autocast = torch.autocast(options.device, torch.bfloat16, enabled=options.dtype == "bfloat16")
    candidates = {}
    for name in dict.fromkeys([BASE, *(options.networks or NETWORKS)]):
        model = NETWORKS[name]().to(options.device, memory_format=memory_format).train(training)
        run = torch.compile(model) if options.compile else model
        candidates[name] = partial(train if training else infer, run, images, autocast)
    return measure(candidates, options.rounds, options.device)


def table_of(times: dict[str, Times]) -> str:
    base = times[BASE]
    peer = times[PEER].paired_ratio(base)[0] - 1 if PEER in times else None
    rows = []
    for name, value in times.items():
        overhead = value.paired_ratio(base)[0] - 1
        of_peer = "" if peer is None or "CBAM" not in name else f"{overhead / peer:.2f}"
        memory = f"{value.peak_bytes / 2**20:.0f}"
        rows.append([name, f"{value.median:.1f}", *value.ratio_cells(base), of_peer, memory])
    return table(["network", "median, ms", "ratio", "95 % interval", "overhead / timm CBAM's", "peak, MiB"], rows)


def main() -> None:
    arguments = parser(__doc__, rounds=12)
    arguments.add_argument("--compile", action="store_true")
    arguments.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    arguments.add_argument("--networks", nargs="+", choices=NETWORKS)
    options = arguments.parse_args()
    refuse_unless_green("tests/ops", "tests/models")
    mode = "compiled" if options.compile else "eager"
    parts = [
        f"# ResNeXt-50 32x4d, {options.dtype}, {mode}: training step and inference",
        f"{environment(options.device)}; batch {options.batch_size} of 3x224x224; {options.rounds} interleaved rounds. "
        "A training step is forward, mean of the output, backward; ratios to torchvision's plain network.",
    ]
    rows = []
    for name in options.formats:
        for task in ("training step", "inference"):
            times = times_of(options, FORMATS[name], training=task == "training step")
            parts.append(f"## {task}, {name}\n\n{table_of(times)}")
            for network, value in times.items():
                rows.append(row_of(value, times[BASE], task=task, format=name, network=network))
    report(f"networks_{mode}{suffix_of(options)}", options.device, parts, rows)


if __name__ == "__main__":
    main()
