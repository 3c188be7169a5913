import json
import math

import msgspec
import pytest

from whatwhere.experiment import Results, judge
from whatwhere.statistics.verdict import ArmVerdict

# of seeds 0 to 7, without a pattern
WOBBLE = (0.31, -0.42, 0.77, -0.93, 0.05, 0.58, -0.66, 0.24)
# effect and noise of each arm
EFFECTS = {"se": (0.001, 0.012), "cbam": (0.02, 0.012), "wide": (0.0, 0.004), "my gate": (-0.02, 0.012)}


@pytest.fixture
def figures_only():
    """What a comparison of a CSV with four pairs, too few for a verdict, hands to a report."""
    results = Results()
    for seed in range(4):
        results.add("baseline", str(seed), {"map50": 0.61 + 0.004 * seed})
        results.add("mosaic", str(seed), {"map50": 0.621 + 0.004 * seed + 0.002 * WOBBLE[seed]})
    return bare(judge(results), results)


@pytest.fixture
def everything():
    """What a comparison of trained networks hands to a report: four arms, eight seeds, all sections."""
    results = Results()
    for seed, wobble in enumerate(WOBBLE):
        base = 0.9 + 0.002 * seed
        results.add("none", seed, {"accuracy": base, "loss": 0.3})
        for shift, (arm, (effect, noise)) in enumerate(EFFECTS.items()):
            shake = noise * WOBBLE[(seed + shift) % 8]
            results.add(arm, seed, {"accuracy": base + effect + shake, "loss": 0.3 - effect + 0.01 * wobble})
    arms = results.arms
    content = bare(judge(results, first_look=8, max_pairs=24), results)
    epochs = list(range(1, 21))
    content |= {
        "title": "sign-digits: resnext11_8x8d",
        "subtitle": "4 arms compared with none by accuracy on the test images",
        "arms": {arm: f"{arm}_resnext11_8x8d" for arm in arms},
        "images": "96 px, letterbox",
        "curves": {"x": "epoch", "y": "validation accuracy, %", "arms": {arm: curve(epochs) for arm in arms}},
        "per_class": {"metric": "recall", "unit": "points", "rows": class_rows(arms[1:], 10)},
        "cost": {
            "num_images": 32,
            "image_size": 64,
            "device": "cpu (2 threads)",
            "rows": [cost_row(arm, index) for index, arm in enumerate(arms)],
        },
        "settings": [["comparison", [["data", "sign-digits"], ["seeds", "8"]]], ["recipe", [["lr", "0.1"]]]],
        "changes": ["after 8 pairs were seen: margin was 0.5, is 0.3"],
        "environment": [["torch", "2.15.0"], ["python", "3.11.7"]],
        "cautions": ["the test images are the same for every seed"],
        "runs": [
            {"arm": arm, "seed": seed, "figures": figures, "best_epoch": 17, "seconds": 71.4}
            for arm in arms
            for seed, figures in ((0, {"accuracy": 0.9012, "loss": 0.3}), (1, {"accuracy": 0.9034, "loss": None}))
        ],
    }
    return json.loads(json.dumps(content))


def bare(judgement, results):
    """The sections that figures alone have."""
    content = {
        "title": "results.csv",
        "subtitle": f"1 arm compared with {judgement.baseline}",
        "first": [],
        "judgement": judgement.to_dict(),
        "arms": dict.fromkeys(results.arms, ""),
        "curves": None,
        "per_class": None,
        "cost": None,
        "settings": [],
        "changes": [],
        "environment": [],
        "cautions": [],
        "runs": [],
    }
    return json.loads(json.dumps(content))


def curve(epochs):
    mean = [90 - 80 * math.exp(-epoch / 4) for epoch in epochs]
    return {"epochs": epochs, "mean": mean, "low": [y - 2 for y in mean], "high": [y + 1 for y in mean]}


def class_rows(arms, num_classes):
    """Rows in which class 3 of each arm differs for certain."""
    return [
        {
            "arm": arm,
            "class": f"class {number}",
            "num_images": 144,
            "baseline_mean": 90.0,
            "arm_mean": 90.0 + shift,
            "mean_difference": shift,
            "interval_95": [shift - 2, shift + 2],
            "p_t_holm": 0.001 if number == 3 else 1.0,
        }
        for arm in arms
        for number, shift in ((number, 5.0 if number == 3 else 0.1 * number) for number in range(num_classes))
    ]


def cost_row(arm, index):
    return {
        "arm": arm,
        "num_params": 362_000 + 36_200 * index,
        "macs": 71_000_000,
        "saved_bytes": (10 + index) * 2**20,
        "forward_ms": 20.0 + index,
        "training_step_ms": 80.0 + 5 * index,
        "images_per_second": 400.0 - 20 * index,
    }


@pytest.fixture
def arm():
    """A function that makes the verdict on an arm with given differences, and anything else overridden."""

    def make(name, differences, **fields):
        num_pairs = len(differences)
        made = {
            "arm": name,
            "verdict": "cannot tell yet",
            "reason": "for no reason",
            "advice": "",
            "cautions": [],
            "num_pairs": num_pairs,
            "seeds": list(range(num_pairs)),
            "baseline": [90.0] * num_pairs,
            "treatment": [90.0 + difference for difference in differences],
            "differences": list(differences),
            "mean_difference": sum(differences) / num_pairs if num_pairs > 1 else None,
            "standard_deviation": 2.5 if num_pairs > 1 else None,
            "interval_95": [-1.0, 1.0] if num_pairs > 1 else None,
        }
        rest = ("plan", "level", "deciding_interval", "p_t", "p_t_holm", "p_sign_flip", "p_sign_flip_holm")
        rest += ("p_equivalence", "win_probability", "win_interval", "skewness", "pairs_to_settle")
        return msgspec.convert({**dict.fromkeys(rest), **made, **fields}, ArmVerdict)

    return make
