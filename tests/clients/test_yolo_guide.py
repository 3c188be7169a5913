"""docs/yolo.md, run as it stands: its Python and its commands, on fewer images and epochs."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from client import wanted

GUIDE = Path(__file__).parents[2] / "docs" / "yolo.md"
BLOCKS = re.findall(r"```(python|)\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
# before and after, so that the test takes a minute: what is done is the same
SHORTER = {"epochs=40": "epochs=1", "epochs=3": "epochs=1", "imgsz=96": "imgsz=32", "patience=40": "patience=1"}


def run(folder, *command):
    # Ultralytics writes elsewhere under pytest
    own = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment = {**own, "YOLO_CONFIG_DIR": str(folder / "settings"), "OMP_NUM_THREADS": "2"}
    finished = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-3000:]
    return finished.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a checkpoint under the name of the published one, and the data set of the page."""
    wanted("ultralytics")
    folder = tmp_path_factory.mktemp("guide")
    prepared = (
        "import os, sys, torch; from ultralytics import YOLO, settings\n"
        "settings.update({'runs_dir': os.path.abspath('runs')})\n"
        "torch.manual_seed(0); YOLO('yolo11n.yaml').save('yolo11n.pt')\n"
        f"sys.path.insert(0, {str(GUIDE.parents[1] / 'examples')!r}); import shapes\n"
        "shapes.write_yolo('shapes', train=8, val=4, test=4, size=32)\n"
    )
    run(folder, sys.executable, "-c", prepared)
    return folder


def test_the_guide(folder):
    python = [code for language, code in BLOCKS if language]
    resumed = next(code for code in python if "resume=True" in code)
    code = "".join(code for code in python if code != resumed)
    for before, after in SHORTER.items():
        code = code.replace(before, after)
    (folder / "guide.py").write_text(code)
    printed = run(folder, sys.executable, "guide.py")
    assert "whatwhere: cbam in 13 places, 9,858 parameters" in printed
    assert len(list((folder / "shapes-runs").iterdir())) == 18
    commands = [line for language, block in BLOCKS if not language for line in block.splitlines()]
    commands = [line for line in commands if line.startswith("whatwhere ")]
    assert len(commands) == 1
    for command in commands:
        run(folder, sys.executable, "-m", *shlex.split(command))
    verdict = json.loads((folder / "shapes-runs.verdict.json").read_text("utf-8"))
    assert verdict["judgement"]["baseline"] == "none"
    assert {arm["arm"] for arm in verdict["judgement"]["arms"]} == {"cbam", "cbam_ultralytics"}
    assert any("hardly begun" in caution for caution in verdict["cautions"])  # after one epoch
    assert (folder / "shapes-runs.verdict.html").stat().st_size > 10_000


def test_what_the_guide_says_of_resuming(folder):
    """The training that goes on was ended after its first epoch."""
    code = next(code for language, code in BLOCKS if "resume=True" in code)
    shutil.rmtree(folder / "runs", ignore_errors=True)
    (folder / "resumed.py").write_text(
        "from ultralytics import YOLO\nfrom whatwhere.ultralytics import trainer\n"
        "def stop(running):\n    raise KeyboardInterrupt\n"
        "model = YOLO('yolo11n.pt')\nmodel.add_callback('on_model_save', stop)\n"
        "try:\n    model.train(trainer=trainer('cbam'), data='shapes/data.yaml', epochs=2, imgsz=32)\n"
        "except KeyboardInterrupt:\n    pass\n" + code
    )
    assert "Resuming training" in run(folder, sys.executable, "resumed.py")


@pytest.mark.parametrize(
    ("name", "places", "before", "added", "taken"),
    [
        tuple(cell.strip().strip("`") for cell in row)
        for row in re.findall(
            r"^\| (yolo\w+) \| (\d+) \| ([\d,]+) \+ ([\d,]+) \| (.*) \|$", GUIDE.read_text("utf-8"), re.M
        )
    ],
)
def test_the_table_of_networks(name, places, before, added, taken):
    wanted("ultralytics")
    import torch
    from ultralytics.nn.tasks import DetectionModel

    from whatwhere.insert import plan

    model = DetectionModel(f"{name}.yaml", nc=80, verbose=False)
    planned = plan(model, "cbam", at="blocks", example=torch.zeros(1, 3, 64, 64))
    assert (len(planned.places), f"{planned.num_params:,}", f"{sum(planned.added_params):,}") == (
        int(places),
        before,
        added,
    )
    assert [f"model.{index}" for index in model.model[-1].f] == [name.strip("` ") for name in taken.split(",")]


def test_a_line_in_the_yaml_loses_weights():
    """What the guide says of one more line behind layer 9."""
    wanted("ultralytics")
    import copy

    from ultralytics.nn.tasks import DetectionModel, yaml_model_load

    def moved(layer):
        source, *rest = layer
        sources = source if isinstance(source, list) else [source]
        later = [index + (index > 9) for index in sources]
        return [later if isinstance(source, list) else later[0], *rest]

    text = " ".join(GUIDE.read_text("utf-8").split())
    said = {"yolov8n": "YOLOv8n takes {} of its {}", "yolo11n": "YOLO11n {} of {}", "yolo26n": "YOLO26n {} of {}"}
    for name, sentence in said.items():
        cfg = yaml_model_load(f"{name}.yaml")
        changed = copy.deepcopy(cfg)
        changed["backbone"] = [*cfg["backbone"][:10], [-1, 1, "nn.Identity", []], *map(moved, cfg["backbone"][10:])]
        changed["head"] = list(map(moved, cfg["head"]))
        plain, other = (DetectionModel(c, nc=80, verbose=False).state_dict() for c in (cfg, changed))
        kept = sum(key in other and other[key].shape == value.shape for key, value in plain.items())
        assert sentence.format(kept, len(plain)) in text
