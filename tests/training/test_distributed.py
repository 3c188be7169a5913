"""Two processes over gloo, as torchrun starts them."""

import json
import os
import signal
import subprocess
import time

import pytest
import torch

from pictures import make_folder
from processes import finish, newest_weights, start, steps_saved, wait_for_step
from whatwhere.data.batches import Order
from whatwhere.training.bundle import load_bundle
from whatwhere.training.predict import evaluate_bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    # 9 validation and 15 test images, which two processes cannot share evenly
    splits = {"train": 9, "val": 3, "test": 5}
    return make_folder(tmp_path_factory.mktemp("data") / "patterns", splits=splits)


def test_two_processes_evaluate_what_one_does(tmp_path, data):
    status, _, err = finish(start(tmp_path, data, tmp_path / "run", ranks=2))
    assert status == 0, err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    bundle = load_bundle(tmp_path / "run")
    for part in ("val", "test"):
        alone = evaluate_bundle(bundle, str(data), split=part)["images"]
        assert result[part]["num_images"] == alone["num_images"]
        assert result[part]["accuracy"] == alone["accuracy"]
        assert result[part]["macro_f1"] == alone["macro_f1"]
        for name in ("loss", "auroc", "calibration_error"):
            assert result[part][name] == pytest.approx(alone[name], rel=1e-6)


def test_two_processes_start_and_judge_together(tmp_path, data):
    """The line of the guide, with --resume where there is nothing yet; the lines' figures are those of what is kept."""
    status, _, err = finish(start(tmp_path, data, tmp_path / "run", "--resume", ranks=2))
    assert status == 0, err
    bundle = load_bundle(tmp_path / "run")
    alone = evaluate_bundle(bundle, str(data), split="val")["images"]
    for name in ("accuracy", "balanced_accuracy", "loss"):
        assert bundle.info[f"val_{name}"] == pytest.approx(alone[name], rel=1e-6)


def test_bad_data_is_one_sentence_of_the_first_process(tmp_path):
    status, _, err = finish(start(tmp_path, tmp_path / "nothing", tmp_path / "run", ranks=2))
    assert status != 0
    assert "there is no folder" in err
    assert "Traceback" not in err.partition("there is no folder")[0]


def test_two_processes_train_as_one_does_in_two_pieces(tmp_path, data):
    """The norms see the same halves and the gradients have the same mean; only the running statistics differ."""
    plain = {"mixup": 0, "cutmix": 0, "drop_rate": 0, "ema": 0, "epochs": 2, "lr": 0.02}
    for name, ranks, accumulate in (("one", 1, 2), ("two", 2, 1)):
        status, _, err = finish(start(tmp_path, data, tmp_path / name, ranks=ranks, accumulate=accumulate, **plain))
        assert status == 0, err
    one, two = newest_weights(tmp_path / "one"), newest_weights(tmp_path / "two")
    assert one.keys() == two.keys()
    parameters = [key for key in one if key.startswith("trainer/model") and "running" not in key and "num_" not in key]
    assert len(parameters) > 20
    for key in parameters:
        torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=1e-5, msg=key)


def test_sync_bn_on_a_cpu_is_refused(tmp_path, data):
    status, _, err = finish(start(tmp_path, data, tmp_path / "run", "--sync-bn", ranks=2))
    assert status != 0
    assert "--sync-bn needs a GPU" in err
    assert "Traceback" not in err.partition("whatwhere:")[0]


def test_a_killed_process_ends_all_and_the_run_goes_on(tmp_path, data):
    process = start(tmp_path, data, tmp_path / "run", ranks=2, epochs=2000)
    wait_for_step(process, tmp_path / "run", 3)
    own = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    assert len(own) == 2
    os.kill(int(own[1]), signal.SIGKILL)
    began = time.monotonic()
    status, _, _ = finish(process, timeout=120)
    assert status != 0
    print(f"\nall ended {time.monotonic() - began:.1f} s after the kill")
    for pid in own:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
    saved = steps_saved(tmp_path / "run")
    assert saved >= 3
    # and one signal stops both, saved
    process = start(tmp_path, data, tmp_path / "run", "--resume", ranks=2, epochs=2000)
    wait_for_step(process, tmp_path / "run", saved + 3)
    os.kill(process.pid, signal.SIGTERM)
    status, _, err = finish(process, timeout=120)
    assert status != 0
    assert "stopped after step" in err
    assert steps_saved(tmp_path / "run") >= saved + 3


def test_every_image_is_seen_once_an_epoch():
    order = Order(27, 8, seed=0)
    for epoch in range(2):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        seen = [index for step in steps for rank in range(2) for index in order.share(step, rank, 2).tolist()]
        assert sorted(seen) == list(range(27))
