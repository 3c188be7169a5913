"""The trainer with an older Ultralytics: `OLDER_ULTRALYTICS=DIR make test-clients`.

DIR is filled by `pip install --target DIR --no-deps ultralytics==8.3.0` and by what that version needs besides what is
installed: numpy below 2 and pandas, by `pip install --target DIR "numpy<2" "pandas<3"`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHOSEN = (
    "resume or no_decay or frozen or predict_val or starts_processes[1] or not_installed or "
    "(from_a_checkpoint and (yolo11n-detect or yolo11n-seg or yolo11n-cls))"
)


def test_an_older_version(tmp_path):
    folder = os.environ.get("OLDER_ULTRALYTICS")
    if not folder:
        pytest.skip("OLDER_ULTRALYTICS names no folder with an older version")
    path = os.pathsep.join(filter(None, (str(Path(folder).resolve()), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "YOLO_CONFIG_DIR": str(tmp_path)}
    tests = Path(__file__).with_name("test_ultralytics_trainer.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--show-capture=no", tests, "-k", CHOSEN]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout[-5000:]
