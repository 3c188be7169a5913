"""Time the maps of 100 images: gates, and Grad-CAM by whatwhere and by pytorch-grad-cam, which must be the same.

    python benchmarks/explain.py [--batch-size 10]

cbam_resnext50_32x4d at 224 px, Grad-CAM of `layer4` for the predicted classes. One call is all 100 images; the
candidates take turns within each round. "the page" is what `whatwhere explain` computes: gates, gate health, Grad-CAM,
the curves and the check with random weights on 16 images; once. pytorch-grad-cam keeps the whole graph, so that its
memory grows with the batch. A ratio is the median, over the rounds, of a time divided by that of our Grad-CAM in the
same round, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from harness import environment, measure, parser, refuse_unless_green, report, row_of, table
from whatwhere import create_model
from whatwhere.explain import explain, grad_cam, maps
from whatwhere.report.explanation import explanation_page

NETWORK, LAYER, NUM_IMAGES = "cbam_resnext50_32x4d", "layer4", 100
OURS = "Grad-CAM, whatwhere"


def theirs(model: nn.Module, images: Tensor, classes: Tensor, batch_size: int) -> np.ndarray:
    """Return the maps of pytorch-grad-cam, enlarged and each scaled to [0, 1], as it gives them."""
    found = []
    with GradCAM(model, [model.get_submodule(LAYER)]) as cam:
        for part, wanted in zip(images.split(batch_size), classes.split(batch_size), strict=True):
            found.append(cam(part, [ClassifierOutputTarget(int(number)) for number in wanted]))
    return np.concatenate(found)


def check_same(model: nn.Module, images: Tensor, classes: Tensor) -> None:
    """Raise an error where the maps of both differ, at the places of the feature map."""
    ours = grad_cam(model, images, classes, layer=LAYER)
    large = nn.functional.interpolate(ours, images.shape[2:], mode="bilinear").numpy()[:, 0]
    low, high = (end(large, (1, 2), keepdims=True) for end in (np.min, np.max))
    np.testing.assert_allclose((large - low) / (high - low), theirs(model, images, classes, len(images)), atol=0.05)


def main() -> None:
    given = parser(__doc__, rounds=7, batch_size=10, any_device=False)
    options: argparse.Namespace = given.parse_args()
    refuse_unless_green("tests/explain")
    torch.manual_seed(0)
    model = create_model(NETWORK, seed=0).eval()
    images = torch.randn(NUM_IMAGES, 3, 224, 224)
    batches = images.split(options.batch_size)
    with torch.no_grad():
        classes = torch.cat([model(part).argmax(1) for part in batches])
    check_same(model, images[:2], classes[:2])
    candidates = {
        "the network alone": lambda: [forward(model, part) for part in batches],
        "gates": lambda: [maps(model, part) for part in batches],
        OURS: lambda: [grad_cam(model, part, layer=LAYER) for part in batches],
        "Grad-CAM, pytorch-grad-cam": lambda: theirs(model, images, classes, options.batch_size),
    }
    times = measure(candidates, options.rounds, "cpu")
    began = time.monotonic()
    page = explanation_page([explain(model, batches, network=NETWORK)])
    seconds, size = time.monotonic() - began, len(page) / 1e6
    rows = [row_of(taken, times[OURS], what=name) for name, taken in times.items()]
    lines = [
        (
            name,
            f"{taken.median / 1000:.2f}",
            "x{:.2f} ({:.2f} to {:.2f})".format(*taken.paired_ratio(times[OURS])),
            f"{taken.peak_bytes / 2**20:,.0f}",
        )
        for name, taken in times.items()
    ]
    parts = [
        f"# The maps of {NUM_IMAGES} images of 224 px, {NETWORK}",
        f"{environment('cpu')}; batches of {options.batch_size}, {options.rounds} interleaved rounds.",
        table(("what", "median, s", "ratio", "peak, MiB"), lines),
        f"The page, with curves and the check with random weights on 16 images: {seconds:.0f} s once, {size:.1f} MB.",
    ]
    report("explain", "cpu", parts, rows)


@torch.no_grad()
def forward(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


if __name__ == "__main__":
    main()
