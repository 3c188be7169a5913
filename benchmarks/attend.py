"""Attention in torchvision's and timm's networks: number of places, places behind a BatchNorm, cost.

    python benchmarks/attend.py [--size 224]

Bytes saved for backward are for a batch of 2. The output with the identity start is compared with the one before.
"""

from __future__ import annotations

import argparse
import sys
import warnings

import torch

from harness import ROOT, environment, refuse_unless_green, report, table
from whatwhere import UserError, attend, cost
from whatwhere.insert import plan

sys.path.append(str(ROOT / "tests" / "support"))
from strangers import NAMES, build


def row(name: str, size: int) -> dict[str, object]:
    """Return one network's figures with CBAM."""
    torch.manual_seed(0)
    model = build(name)
    images = torch.randn(1, 3, size, size)
    at = "blocks"
    try:
        planned = plan(model, "cbam")
    except UserError:
        at = "stages"
        planned = plan(model, "cbam", at=at)
    with torch.no_grad():
        before = model.eval()(images)
    plain = cost(model, (3, size, size), batch_size=2).total
    attend(model, "cbam", at=at, seed=0)
    attended = cost(model, (3, size, size), batch_size=2).total
    with torch.no_grad():
        unchanged = torch.equal(model.eval()(images), before)
    return {
        "network": name,
        "at": at,
        "places": len(planned.places),
        "in_norm": sum(planned.in_norm),
        "left_out": len(planned.skipped),
        "num_params": plain.num_params,
        "added_params": attended.num_params - plain.num_params,
        "saved_bytes": plain.saved_bytes,
        "saved_bytes_attended": attended.saved_bytes,
        "ratio": attended.saved_bytes / plain.saved_bytes,
        "unchanged": unchanged,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    options = parser.parse_args()
    refuse_unless_green("tests/insert")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's deprecations
        rows = [row(name, options.size) for name in NAMES]
    behind_norms = [item for item in rows if item["in_norm"] == item["places"]]
    worst = max(behind_norms, key=lambda item: item["ratio"])
    header = ["", "at", "places", "behind a BatchNorm", "left out", "parameters", "CBAM adds", "kept, MiB", "ratio"]
    lines = [
        [
            str(item["network"]),
            str(item["at"]),
            str(item["places"]),
            str(item["in_norm"]),
            str(item["left_out"]),
            f"{item['num_params']:,}",
            f"{item['added_params']:,}",
            f"{item['saved_bytes'] / 2**20:.1f}",
            f"x{item['ratio']:.3f}",
        ]
        for item in rows
    ]
    parts = [
        "# CBAM in networks of others",
        f"{environment('cpu')}. 10 classes, {options.size} px; bytes kept for backward at batch 2.",
        f"Output unchanged bit for bit at the identity start in {sum(bool(item['unchanged']) for item in rows)} of "
        f"{len(rows)} networks. Where every gate stands right behind a BatchNorm ({len(behind_norms)} networks), "
        f"training keeps at most x{worst['ratio']:.3f} ({worst['network']}).",
        table(header, lines),
    ]
    report("attend", "cpu", parts, rows)


if __name__ == "__main__":
    main()
