"""Time of a step of CBAM-ResNeXt-50 and of the plain network, by kind of operator.

    python benchmarks/breakdown.py [--batch-size 8]

Self times of torch's profiler, medians over interleaved rounds, for whatwhere's plain network and CBAM network. The
profiler takes time for every operator, so many small operators look slower than they are.
"""

from __future__ import annotations

import statistics

import torch
from torch import nn

from harness import environment, parser, refuse_unless_green, report, table
from networks import FORMATS
from whatwhere import create_model

KINDS = {
    "convolutions (7x7 ones of the gates included)": ("convolution", "mkldnn"),
    "BatchNorm by torch's own operator": ("batch_norm",),
    "matrix products (shared MLP, classifier)": ("mm", "addmm", "linear"),
    "sums, maxima and where they are": ("sum", "mean", "amax", "amin", "max", "gather", "index_select", "scatter"),
    "multiply, add, subtract, ReLU": ("add", "mul", "sub", "addcmul", "relu", "clamp", "threshold", "div", "sigmoid"),
    "Python of the lean gates": ("_Lean",),
}


def kind_of(operator: str) -> str:
    name = operator.removeprefix("aten::").removesuffix("_").removesuffix("_backward")
    for kind, parts in KINDS.items():
        if name in parts or any(part in name for part in parts if len(part) > 4):
            return kind
    return "the rest (views, allocation, autograd's engine, pooling)"


def milliseconds(model: nn.Module, images: torch.Tensor, training: bool) -> dict[str, float]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        if training:
            model(images).mean().backward()
        else:
            with torch.inference_mode():
                model(images)
    model.zero_grad(set_to_none=True)
    found: dict[str, float] = {}
    for event in profiler.key_averages():
        kind = kind_of(event.key)
        found[kind] = found.get(kind, 0) + event.self_cpu_time_total / 1000
    return found


def main() -> None:
    options = parser(__doc__, rounds=7, any_device=False).parse_args()
    refuse_unless_green("tests/ops", "tests/models")
    parts = [
        "# Where the time of CBAM in ResNeXt-50 goes",
        f"{environment('cpu')}; batch {options.batch_size} of 3x224x224, float32; self times by torch's profiler, ms, "
        f"medians of {options.rounds} interleaved rounds.",
    ]
    rows = []
    for format_name, memory_format in FORMATS.items():
        images = torch.randn(options.batch_size, 3, 224, 224).to(memory_format=memory_format)
        models = {
            name: create_model(f"{prefix}resnext50_32x4d").to(memory_format=memory_format)
            for name, prefix in (("plain", ""), ("CBAM", "cbam_"))
        }
        for task in ("training step", "inference"):
            training = task == "training step"
            rounds: dict[str, list[dict[str, float]]] = {name: [] for name in models}
            for _ in range(options.rounds + 1):
                for name, model in models.items():
                    rounds[name].append(milliseconds(model.train(training), images, training))
            kinds = sorted({kind for found in rounds.values() for round_ in found for kind in round_})
            lines = []
            for kind in kinds:
                plain, cbam = (
                    statistics.median(round_.get(kind, 0.0) for round_ in found[1:]) for found in rounds.values()
                )
                rows.append({"format": format_name, "task": task, "kind": kind, "plain_ms": plain, "cbam_ms": cbam})
                lines.append([kind, f"{plain:.1f}", f"{cbam:.1f}", f"{cbam - plain:+.1f}"])
            parts.append(f"## {task}, {format_name}\n\n{table(['operators', 'plain', 'CBAM', 'difference'], lines)}")
    report("breakdown", "cpu", parts, rows)


if __name__ == "__main__":
    main()
