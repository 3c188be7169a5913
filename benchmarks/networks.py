"""What attention costs in time: ResNeXt-50 plain, with SE and with CBAM, beside timm's and torchvision's.

    python benchmarks/networks.py [--batch-size 8] [--rounds 10] [--device cpu]

Every round times all networks in turn, so that drift of the machine hits all alike; quoted are medians, and ratios to
torchvision's plain network. Prints the table and writes it under benchmarks/results/.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import platform

import timm
import torch
import torchvision
from torch import nn

from whatwhere import create_model
from whatwhere.cost import Latency, measure_latency

RESULTS = pathlib.Path(__file__).parent / "results"


def networks() -> dict[str, nn.Module]:
    return {
        "torchvision plain": torchvision.models.resnext50_32x4d(),
        "whatwhere plain": create_model("resnext50_32x4d"),
        "whatwhere SE": create_model("se_resnext50_32x4d"),
        "timm SE": timm.create_model("seresnext50_32x4d"),
        "whatwhere CBAM": create_model("cbam_resnext50_32x4d"),
        "timm CBAM": timm.create_model("resnext50_32x4d", block_args={"attn_layer": "cbam"}),
    }


def measure(batch_size: int, rounds: int, device: str, memory_format: torch.memory_format) -> dict[str, Latency]:
    models = {name: model.to(device, memory_format=memory_format) for name, model in networks().items()}
    images = torch.randn(batch_size, 3, 224, 224, device=device).to(memory_format=memory_format)
    times = measure_latency(list(models.values()), [images] * len(models), rounds, max_seconds=float("inf"))
    return dict(zip(models, times, strict=True))


def table(times: dict[str, Latency]) -> str:
    base = times["torchvision plain"]
    lines = ["| network | forward, ms | ratio | training step, ms | ratio |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, value in times.items():
        lines.append(
            f"| {name} | {value.forward_ms:.0f} | x{value.forward_ms / base.forward_ms:.2f} "
            f"| {value.training_step_ms:.0f} | x{value.training_step_ms / base.training_step_ms:.2f} |"
        )
    return "\n".join(lines)


def processor() -> str:
    for line in (
        pathlib.Path("/proc/cpuinfo").read_text().splitlines() if pathlib.Path("/proc/cpuinfo").exists() else ()
    ):
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    on_cpu = options.device == "cpu"
    hardware = f"{torch.get_num_threads()} threads of {processor()}" if on_cpu else torch.cuda.get_device_name()
    parts = [
        "# ResNeXt-50 32x4d: time of a forward pass and of a training step",
        f"{hardware}; torch {torch.__version__}, timm {timm.__version__}, torchvision {torchvision.__version__}; "
        f"batch {options.batch_size} of 3x224x224, float32, eager; medians of {options.rounds} interleaved rounds, "
        f"{datetime.date.today()}. A training step is forward, mean of the output, backward; ratios to torchvision's "
        "plain network.",
    ]
    for name, memory_format in (("channels_last", torch.channels_last), ("contiguous", torch.contiguous_format)):
        times = measure(options.batch_size, options.rounds, options.device, memory_format)
        parts.append(f"## {name}\n\n{table(times)}")
    report = "\n\n".join(parts) + "\n"
    print(report)
    RESULTS.mkdir(exist_ok=True)
    slug = f"{options.device}{torch.get_num_threads()}" if on_cpu else torch.cuda.get_device_name().split()[-1].lower()
    (RESULTS / f"networks_{slug}_{datetime.date.today():%Y%m}.md").write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
