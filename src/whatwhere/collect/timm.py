"""Runs of timm's train.py: `summary.csv` and `args.yaml`."""

from __future__ import annotations

from pathlib import Path

from .run import Choice, Program, Run, run_with_csv, whole_number
from .settings import has_settings

_TABLE, _SETTINGS = "summary.csv", "args.yaml"
_WITH_CYCLES = {"cosine", "tanh", "poly"}
_WITH_COOLDOWN = _WITH_CYCLES | {"wsd", "rsqrt"}  # for other schedules timm adds none
_IGNORED = frozenset(
    {"output", "experiment", "log_interval", "recovery_interval", "checkpoint_hist", "workers", "pin_mem", "device"}
    | {"save_images", "local_rank", "rank", "resume", "log_wandb", "wandb_project", "wandb_tags", "wandb_resume_id"}
)


def _is_run(folder: Path, names: set[str]) -> bool:
    return _SETTINGS in names and (_TABLE in names or has_settings(folder / _SETTINGS, "model", "opt", "sched"))


def _read(folder: Path, choice: Choice) -> Run:
    run = run_with_csv(folder, _SETTINGS, _TABLE, choice)
    if run.epochs_asked is not None:
        run.epochs_asked = _total_epochs(run.epochs_asked, run.settings)
    stop = whole_number(run.settings.get("stop_epoch", ""))
    if stop is not None and run.epochs_asked is not None:
        run.epochs_asked = min(stop, run.epochs_asked)
    return run


def _total_epochs(epochs: int, settings: dict[str, str]) -> int | None:
    """Return how many epochs timm trains, as its scheduler_factory.py counts them; None where cycles grow."""
    if settings.get("sched") in _WITH_CYCLES:
        if settings.get("lr_cycle_mul", "1") != "1":
            return None
        epochs *= max(1, whole_number(settings.get("lr_cycle_limit", "1")) or 1)
    if settings.get("sched") in _WITH_COOLDOWN:
        epochs += whole_number(settings.get("cooldown_epochs", "0")) or 0
    if settings.get("warmup_prefix") == "true":
        epochs += whole_number(settings.get("warmup_epochs", "0")) or 0
    return epochs


PROGRAM = Program("timm", _TABLE, _is_run, _read, _IGNORED)
