"""Bytes saved for backward by ResNeXt-50 with attention: whatwhere, timm, and the CBAM authors' module.

    python benchmarks/saved_bytes.py [--batch-size 4]

Measured by the saved-tensor hooks and the graph (`whatwhere.cost`), and by the allocator after a forward pass.
"""

from __future__ import annotations

import torch
from torch import nn

from harness import environment, parser, refuse_unless_green, report, table
from peers import NETWORKS
from whatwhere import cost


def live_bytes(model: nn.Module, batch_size: int) -> int:
    """Return the bytes that a training forward pass on a CPU has allocated and not freed, without its output."""
    images = torch.randn(batch_size, 3, 224, 224)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
        out = model.train()(images)
    allocated = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    return allocated - out.untyped_storage().nbytes()


def main() -> None:
    options = parser(__doc__, rounds=1, batch_size=4, any_device=False).parse_args()
    refuse_unless_green("tests/ops", "tests/models", "tests/cost")
    rows = []
    for name, build in NETWORKS.items():
        model = build()
        saved = cost(model, (3, 224, 224), batch_size=options.batch_size).total.saved_bytes
        rows.append({"network": name, "saved_bytes": saved, "live_bytes": live_bytes(model, options.batch_size)})
    base = rows[0]
    lines = [
        [
            row["network"],
            *(f"{row[key] / 2**20:.1f} | x{row[key] / base[key]:.4f}" for key in ("saved_bytes", "live_bytes")),
        ]
        for row in rows
    ]
    header = ["network", "saved for backward, MiB", "ratio", "alive after forward, MiB", "ratio"]
    parts = [
        "# ResNeXt-50 32x4d: bytes kept for backward",
        f"{environment('cpu')}; batch {options.batch_size} of 3x224x224, float32; ratios to torchvision's plain "
        "network.",
        table(header, lines),
    ]
    report("saved_bytes", "cpu", parts, rows)


if __name__ == "__main__":
    main()
