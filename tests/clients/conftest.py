import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Ultralytics writes its settings when it is imported, and would look for newer versions
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
if "YOLO_CONFIG_DIR" not in os.environ:
    os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="ultralytics-")
    atexit.register(shutil.rmtree, os.environ["YOLO_CONFIG_DIR"], ignore_errors=True)


def pytest_collection_modifyitems(items):
    """What stands in this folder is run by `make test-clients`; warnings of other people's code are theirs."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.clients)
            item.add_marker(pytest.mark.filterwarnings("ignore"))
