"""Folders of runs that other programs wrote themselves."""

import argparse
import contextlib
import shutil
import warnings

import pytest
import torch
import yaml

from client import wanted
from whatwhere.collect.collect import collect
from whatwhere.statistics.columns import Reading

MAP = "metrics/mAP50(B)"
COUNTED = ("cosine", "tanh", "poly", "wsd", "rsqrt")  # schedules with a cooldown


@pytest.fixture
def detection_data(tmp_path):
    """Four images with a square each, in YOLO's format."""
    from PIL import Image

    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for index in range(4):
        image = Image.new("RGB", (32, 32), (20, 20, 20))
        image.paste((230, 200, 40), (4 + index, 6, 18 + index, 20))
        image.save(tmp_path / "data" / "images" / f"{index}.png")
        box = f"0 {(11 + index) / 32} {13 / 32} {14 / 32} {14 / 32}\n"
        (tmp_path / "data" / "labels" / f"{index}.txt").write_text(box)
    content = {"path": str(tmp_path / "data"), "train": "images", "val": "images", "names": {0: "square"}}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "data.yaml"


def test_runs_of_ultralytics(detection_data, tmp_path):
    ultralytics = wanted("ultralytics")
    from whatwhere.ultralytics import trainer

    for arm in ("none", "cbam"):
        for seed in (0, 1):
            chosen = {} if arm == "none" else {"trainer": trainer("cbam", at="blocks")}
            ultralytics.YOLO("yolo11n.yaml", verbose=False).train(
                data=str(detection_data), epochs=2, imgsz=32, batch=4, workers=0, device="cpu", seed=seed, plots=False,
                project=str(tmp_path / "runs"), name=f"{arm}-{seed}", verbose=False, amp=False, **chosen,
            )  # fmt: skip
    collected = collect([tmp_path / "runs"])
    results = collected.results
    assert sorted(results.arms) == ["cbam", "none"]
    assert results.seeds == ["0", "1"]
    assert set(collected.epochs.values()) == {2}
    assert {"train/box_loss", MAP, "metrics/mAP50-95(B)"} <= set(results.metrics)
    assert not any(name.startswith("lr/") or name == "time" for name in results.metrics)
    assert results.notes[:2] == [
        "4 runs of Ultralytics", "the arm is taken from the setting attention, the seed from the setting seed"
    ]  # fmt: skip
    # what Ultralytics' own reader finds in the last line
    polars = wanted("polars")
    last = polars.read_csv(tmp_path / "runs" / "cbam-1" / "results.csv").to_dicts()[-1]
    assert results.runs("cbam")["1"] == {name: last[name] for name in results.metrics}
    # cut off in the middle of the second epoch
    table = tmp_path / "runs" / "cbam-1" / "results.csv"
    table.write_text(table.read_text()[:-20])
    notes = collect([tmp_path / "runs"], Reading(metric=MAP)).results.notes
    assert any("cbam-1 has another last line in results.csv than attention.json tells" in note for note in notes)
    # without attention, into the folder of a run with attention
    folder = tmp_path / "runs" / "cbam-0"
    ultralytics.YOLO("yolo11n.yaml", verbose=False).train(
        data=str(detection_data), epochs=2, imgsz=32, batch=4, workers=0, device="cpu", seed=0, plots=False,
        project=str(folder.parent), name=folder.name, exist_ok=True, verbose=False, amp=False,
    )  # fmt: skip
    notes = collect([tmp_path / "runs"], Reading(metric=MAP)).results.notes
    assert any("cbam-0 has another last line" in note for note in notes)


def test_a_run_that_ultralytics_resumed(detection_data, tmp_path):
    ultralytics = wanted("ultralytics")
    from whatwhere.ultralytics import trainer

    def stop(running):
        raise KeyboardInterrupt

    for arm in ("none", "cbam"):
        for seed in (0, 1):
            chosen = {} if arm == "none" else {"trainer": trainer("cbam", at="blocks")}
            yolo = ultralytics.YOLO("yolo11n.yaml", verbose=False)
            is_stopped = (arm, seed) == ("cbam", 1)
            if is_stopped:
                yolo.add_callback("on_model_save", stop)
            with pytest.raises(KeyboardInterrupt) if is_stopped else contextlib.nullcontext():
                yolo.train(
                    data=str(detection_data), epochs=2, imgsz=32, batch=4, workers=0, device="cpu", seed=seed,
                    plots=False, project=str(tmp_path / "runs"), name=f"{arm}-{seed}", verbose=False, amp=False,
                    **chosen,
                )  # fmt: skip
    shutil.copytree(tmp_path / "runs", tmp_path / "again")
    last = tmp_path / "runs" / "cbam-1" / "weights" / "last.pt"
    ultralytics.YOLO(last).train(trainer=trainer("cbam", at="blocks"), resume=True)
    collected = collect([tmp_path / "runs"], Reading(metric=MAP))
    assert list(collected.results.values("cbam", MAP)) == ["0", "1"]
    (note,) = [note for note in collected.doubts if "resumed" in note]
    assert "cbam-1" in note
    # the folder of a run with attention that was stopped, trained again without attention
    ultralytics.YOLO("yolo11n.yaml", verbose=False).train(
        data=str(detection_data), epochs=2, imgsz=32, batch=4, workers=0, device="cpu", seed=1, plots=False,
        project=str(tmp_path / "again"), name="cbam-1", exist_ok=True, verbose=False, amp=False,
    )  # fmt: skip
    notes = collect([tmp_path / "again"], Reading(metric=MAP)).results.notes
    assert any("cbam-1 has another last line" in note for note in notes)


def test_runs_of_timm(tmp_path):
    """As train.py of timm writes them: its arguments by yaml.safe_dump, each epoch by timm.utils.update_summary.

    https://github.com/huggingface/pytorch-image-models/blob/main/train.py
    """
    wanted("timm")
    from timm.utils import update_summary

    for model in ("resnet18", "cbam_resnet18"):
        for seed in (0, 42):
            folder = tmp_path / "output" / "train" / f"20261128-1200{seed}-{model}-224"
            folder.mkdir(parents=True)
            args = argparse.Namespace(
                data_dir="photos", model=model, epochs=2, opt="sgd", sched="cosine", seed=seed, model_kwargs={},
                output=str(tmp_path), experiment="", workers=4, mean=None, drop=0.0,
            )  # fmt: skip
            (folder / "args.yaml").write_text(yaml.safe_dump(args.__dict__, default_flow_style=False))
            for epoch in range(2):
                update_summary(
                    epoch, {"loss": 2.0 - epoch}, {"loss": 1.5, "top1": 60.0 + epoch + seed / 10, "top5": 90.0},
                    str(folder / "summary.csv"), lr=0.1, write_header=epoch == 0,
                )  # fmt: skip
    collected = collect([tmp_path / "output"])
    assert collected.results.arms == ["cbam_resnet18", "resnet18"]
    assert collected.results.values("resnet18", "eval_top1") == {"0": 61.0, "42": 65.2}
    assert set(collected.epochs.values()) == {1}
    assert collected.results.metrics == ["train_loss", "eval_loss", "eval_top1", "eval_top5"]


@pytest.mark.parametrize("sched", [*COUNTED, "step", "plateau", "multistep", "constant", "none"])
@pytest.mark.parametrize("prefix", [False, True])
def test_epochs_of_timm_are_those_of_its_scheduler(sched, prefix):
    wanted("timm")
    from timm.scheduler import create_scheduler_v2

    from whatwhere.collect.timm import _total_epochs

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    given = {"warmup_epochs": 3, "warmup_prefix": prefix, "cooldown_epochs": 4}
    _, expected = create_scheduler_v2(optimizer, sched, num_epochs=20, cycle_limit=2, **given)
    settings = {"sched": sched, "lr_cycle_limit": "2", **{name: str(value).lower() for name, value in given.items()}}
    assert _total_epochs(20, settings) == expected


def test_runs_of_lightning(tmp_path):
    lightning = wanted("pytorch_lightning")
    from pytorch_lightning.loggers import CSVLogger

    class Linear(lightning.LightningModule):
        def __init__(self, attention, seed, betas=(0.9, 0.999), where=tmp_path):
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(4, 2)

        def step(self, name, batch):
            loss = torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
            self.log(name, loss)
            return loss

        def training_step(self, batch, index):
            return self.step("train_loss", batch)

        def validation_step(self, batch, index):
            self.step("val_loss", batch)

        def test_step(self, batch, index):
            self.step("test_loss", batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    found = {}
    for attention in ("none", "cbam"):
        for seed in (0, 1):
            lightning.seed_everything(seed, verbose=False)
            data = torch.utils.data.TensorDataset(torch.randn(8, 4), torch.arange(8) % 2)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trainer = lightning.Trainer(
                    max_epochs=3, accelerator="cpu", logger=CSVLogger(tmp_path, name=attention), log_every_n_steps=1,
                    enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
                )  # fmt: skip
                model, loader = Linear(attention, seed), torch.utils.data.DataLoader(data, 4)
                trainer.fit(model, loader, loader)
                found[attention, str(seed)] = float(trainer.callback_metrics["val_loss"])
                trainer.test(model, loader, verbose=False)
    assert "!!python" in (tmp_path / "cbam" / "version_0" / "hparams.yaml").read_text()
    collected = collect([tmp_path])
    results = collected.results
    assert (results.arms, results.seeds) == (["cbam", "none"], ["0", "1"])
    assert results.metrics == ["train_loss", "val_loss", "test_loss"]
    for (arm, seed), value in found.items():
        assert results.values(arm, "val_loss")[seed] == pytest.approx(value)
    assert set(collected.epochs.values()) == {2}
    reading = Reading(arm_from="{arm}/version_{seed}", may_differ=frozenset({"attention"}))
    assert collect([tmp_path], reading).results.arms == ["cbam", "none"]
