"""Folders of runs, with files as Ultralytics, timm's train.py and Lightning's CSVLogger write them."""

import json
import random

import yaml


def accuracy(arm, seed, epoch):
    """Return a figure between 0 and 1 that an arm, a seed and an epoch fix."""
    drawn = random.Random(f"{arm} {seed} {epoch}").gauss(0, 0.005)
    return 0.5 + 0.05 * epoch + 0.01 * (seed % 5) + {"none": 0.0, "se": 0.01, "cbam": 0.02}.get(arm, 0.0) + drawn


def ultralytics_run(folder, arm, seed, *, epochs=3, rows=None, figures=accuracy, **settings):
    """Write a run of Ultralytics 8.4, with the attention that whatwhere.ultralytics notes where arm is not none."""
    folder.mkdir(parents=True)
    args = {"task": "detect", "mode": "train", "model": "yolo11n.yaml", "data": "shapes.yaml", "epochs": epochs}
    args |= {"time": None, "patience": 100, "batch": 16, "name": folder.name, "save_dir": str(folder), "seed": seed}
    (folder / "args.yaml").write_text(yaml.safe_dump({**args, **settings}, sort_keys=False))
    if arm != "none":
        part = {"attention": arm, "at": "blocks", "start": "identity", "replace": False, "attention_kwargs": {}}
        content = {"format": 1, "attention": [part], "places": ["model.2"], "parameters": 10}
        (folder / "attention.json").write_text(json.dumps(content))
    lines = ["epoch,time,train/box_loss,metrics/mAP50(B),metrics/mAP50-95(B),lr/pg0"]
    for epoch in range(epochs if rows is None else rows):
        value = figures(arm, seed, epoch)
        row = (epoch + 1, 2.5 * epoch, 1 - value / 2, value, 0.6 * value, 0.01)
        lines.append(",".join(f"{number:.6g}" for number in row))
    (folder / "results.csv").write_text("\n".join(lines) + "\n")
    return folder


def timm_run(folder, settings, rows):
    """Write a run of timm's train.py: it dumps its arguments as they are, and adds a line for each epoch.

    As https://github.com/huggingface/pytorch-image-models/blob/main/train.py does: `yaml.safe_dump(args.__dict__,
    default_flow_style=False)` to args.yaml, `utils.update_summary` to summary.csv.
    """
    folder.mkdir(parents=True)
    args = {"data_dir": "photos", "model": "resnet18", "opt": "sgd", "sched": "cosine", "epochs": len(rows), "seed": 0}
    args |= {"output": str(folder.parent), "experiment": folder.name, "model_kwargs": {}, "workers": 4}
    (folder / "args.yaml").write_text(yaml.safe_dump({**args, **settings}, default_flow_style=False))
    lines = ["epoch,train_loss,eval_loss,eval_top1,eval_top5,lr"]
    lines += [f"{epoch},{2 - top1 / 50},{2 - top1 / 60},{top1},{top1 + 5},0.1" for epoch, top1 in enumerate(rows)]
    (folder / "summary.csv").write_text("\r\n".join(lines) + "\r\n")
    return folder


def lightning_run(folder, hparams, rows):
    """Write a run of Lightning: hparams.yaml as text, and metrics.csv from dictionaries that lack some figures."""
    folder.mkdir(parents=True)
    (folder / "hparams.yaml").write_text(hparams)
    head = sorted({name for row in rows for name in row})
    lines = [",".join(head), *(",".join(str(row.get(name, "")) for name in head) for row in rows)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder
