"""Runs of Lightning with its CSVLogger: `metrics.csv` and `hparams.yaml`."""

from __future__ import annotations

from pathlib import Path

from ..base.files import open_file
from .run import Choice, Program, Run, run_with_csv

_TABLE, _SETTINGS = "metrics.csv", "hparams.yaml"
_IGNORED = frozenset(
    {"name", "version", "save_dir", "log_dir", "output_dir", "default_root_dir", "checkpoint_dir", "devices"}
    | {"accelerator", "num_workers", "workers", "device", "pin_memory", "run_name", "experiment_name"}
)


def _is_run(folder: Path, names: set[str]) -> bool:
    if _SETTINGS in names:
        # TensorBoard's logger, Lightning's default, writes this file too
        return _TABLE in names or not any(".tfevents." in name for name in names)
    if _TABLE not in names:
        return False
    with open_file(folder / _TABLE) as file:
        return {"epoch", "step"} <= set(file.readline(10_000).decode("utf-8", "replace").strip().split(","))


def _read(folder: Path, choice: Choice) -> Run:
    run = run_with_csv(folder, _SETTINGS, _TABLE, choice, asked="max_epochs")
    # a test follows the training, so that this one ended on purpose
    if any(name.startswith("test") for name in run.curve.last):
        run.epochs_asked = None
    return run


PROGRAM = Program("Lightning", _TABLE, _is_run, _read, _IGNORED)
