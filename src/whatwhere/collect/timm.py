"""Runs of timm's train.py: `summary.csv` and `args.yaml`."""

from __future__ import annotations

from pathlib import Path

from .run import Choice, Program, Run, run_with_csv
from .settings import has_settings

_TABLE, _SETTINGS = "summary.csv", "args.yaml"
_IGNORED = frozenset(
    {"output", "experiment", "log_interval", "recovery_interval", "checkpoint_hist", "workers", "pin_mem", "device"}
    | {"save_images", "local_rank", "rank", "resume", "log_wandb", "wandb_project", "wandb_tags", "wandb_resume_id"}
)


def _is_run(folder: Path, names: set[str]) -> bool:
    return _SETTINGS in names and (_TABLE in names or has_settings(folder / _SETTINGS, "model", "opt", "sched"))


def _read(folder: Path, choice: Choice) -> Run:
    return run_with_csv(folder, _SETTINGS, _TABLE, choice)


PROGRAM = Program("timm", _TABLE, _is_run, _read, _IGNORED)
