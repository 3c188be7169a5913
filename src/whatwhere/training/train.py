"""The start of a training run from DATA, options and a folder: what `whatwhere train` calls."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace
from torch import nn

from ..attention import attention_by_path
from ..base.errors import UserError
from ..base.files import check_writable, locked
from ..base.screen import Screen, Silent, duration
from ..base.words import brief, counted, few, short
from ..data.split import Prepared, fingerprint, prepare
from ..networks.factory import checked, create
from ..networks.spec import NetworkSpec, is_import_path
from .config import Config, network_of
from .distributed import Team, team
from .run import Run
from .run_folder import RunFolder
from .setup import Material, build_material, build_model, describe, device_name, resolve
from .stops import Stopped, listening, lost_processes, memory_errors
from .trainer import Diverged, LossNotFinite, Trainer


def run_training(
    data: str,
    given: Mapping[str, Any],
    *,
    out: Path | None,
    resume: bool,
    dry_run: bool,
    command: str,
    screen: Screen,
    with_test: bool = True,
) -> dict[str, Any] | None:
    """Train a network on DATA and return the result, as `result.json` has it.

    None from a dry run, and in every process but the first.

    Args:
        data: As `find_source` takes it.
        given: Options by name; those left out are chosen (`config.defaults`). An `attention` MODULE:NAME is imported,
            so that it must come from whoever calls, not from a file.
        out: Folder of the run; by default runs/{DATA}/{model}-seed{seed}.
        resume: Continue the run that is there; start one where there is none.
        dry_run: Check everything, train for a few steps, write nothing.
        command: What to type to continue the run, for the sentences that advise it.
        screen: Hears of the progress.
        with_test: Whether the kept network is judged on the test images at the end. Without it they are not looked at
            beyond the check, and the result is that of the validation images.

    Raises:
        UserError: Anything that the user can mend.
        Stopped: The run was asked to stop and is saved.
    """
    if out is not None and not resume and not dry_run:
        RunFolder(out).check_new()
    Config(data=data, **given)  # what is wrong in itself is said before a long check of the images
    given, attention = _named(given)
    if given.get("tensorboard") and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs TensorBoard: pip install 'whatwhere[tensorboard]'")
    if given.get("deterministic"):
        # read by cuBLAS when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with team(given.get("device", "")) as processes, lost_processes(processes, command):
        screen = screen if processes.is_first else Silent()
        with processes.first_alone():
            prepared = prepare_images(data, given, screen)
        config = resolve(data, given, prepared, processes)
        name = config.model.replace(":", "-")
        path = out or Path("runs") / (Path(data).stem or "data") / f"{name}-seed{config.seed}"
        folder = RunFolder(path)
        check_apart(path, prepared)
        if resume:
            # what is not given is as it was: another machine would choose otherwise
            before = folder.fixed_options()
            _check_no_code(before, given, path)
            config = resolve(data, {**before, **given}, prepared, processes)
        processes.check_same(json.dumps([fingerprint(prepared), asdict(config)], default=str), "images or options")
        with processes.first_alone():
            model, spec = build_model(config, len(prepared.classes), attention)
        for line in describe(config, given, prepared, model, processes):
            screen.line(line)
        with memory_errors(config, command), _deterministic(config):
            if dry_run:
                _try_out(config, prepared, model, processes, screen, with_test)
                return None
            result = _run(
                config, spec, prepared, model, attention, processes, folder, resume, command, screen, with_test
            )
            return result if processes.is_first else None


def _named(given: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[..., nn.Module] | None]:
    """Return the options, the network by its full name, and what a given import path names.

    Raises:
        UserError: A network that cannot be, before a long check.
    """
    text = given.get("attention", "")
    if not isinstance(text, str):
        kind = type(text).__name__
        raise UserError(f"attention must be text, the name of an attention or MODULE:NAME, got a {kind}")
    attention = attention_by_path(text) if is_import_path(text) else None
    # where none is named, one will be chosen that takes the same options
    spec = network_of({"model": "resnext50_32x4d", **given})
    spec = checked(spec, pretrained=given.get("pretrained") or False)
    if spec.is_own and attention is None and (spec.width_factor != 1 or spec.attention_kwargs):
        with torch.device("meta"):
            create(replace(spec, at=""), seed=0)  # groups may leave no channel; an argument may be none of its own
    return {**given, "model": spec.name} if "model" in given else dict(given), attention


def _check_no_code(before: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> None:
    """Raise UserError if the attention of the run in `path` is code that was not given anew."""
    named = str(before.get("attention", ""))
    if "attention" not in given and is_import_path(named):
        text = short(named, 200)
        raise UserError(
            f"the run in {str(path)!r} has the attention {brief(text)}, code that no file may have run; give "
            f"--attention {text} again"
        )


def _run(
    config: Config,
    spec: NetworkSpec,
    prepared: Prepared,
    model: nn.Module,
    attention: Callable[..., nn.Module] | None,
    processes: Team,
    folder: RunFolder,
    resume: bool,
    command: str,
    screen: Screen,
    with_test: bool,
) -> dict[str, Any]:
    if processes.is_first:
        check_writable(folder.path)
    with locked(folder.path) if processes.is_first else contextlib.nullcontext():
        if processes.is_first:
            folder.begin(config, prepared, _session(config, processes), resume=resume)
        processes.wait()
        if folder.result is not None:
            screen.line(f"the run in {str(folder.path)!r} is finished; nothing to do")
            return folder.result
        material, trainer = _material_and_trainer(config, prepared, model, processes, screen, with_test)
        run = Run(config, spec, processes, prepared.classes, material, trainer, folder, screen, attention)
        if resume:
            run.restore()
        with listening(trainer.request_stop, alone=processes.world_size == 1) as received:
            try:
                run.train()
                return run.finish()
            except Stopped as stopped:
                message = f"{stopped}, saved in {str(folder.path)!r}; continue with: {command}"
                raise Stopped(message, received[0] if received else 0) from None
            except KeyboardInterrupt:
                message = f"interrupted at once; what was saved before is kept in {str(folder.path)!r}"
                raise Stopped(f"{message}; continue with: {command}", signal.SIGINT) from None
            except LossNotFinite as error:
                raise Diverged(_with_paths(error, prepared, folder)) from error


def check_apart(path: Path, prepared: Prepared) -> None:
    """Raise UserError if a folder to write to lies among the user's images."""
    root = prepared.source.root
    is_folder = root is not None and Path(prepared.source.name).is_dir()
    if root is not None and is_folder and path.absolute().resolve().is_relative_to(root.resolve()):
        raise UserError(f"--out {str(path)!r} lies in the folder of the images; give one elsewhere")


def prepare_images(data: str, given: Mapping[str, Any], screen: Screen) -> Prepared:
    """Return the images of DATA in parts, after the options `given`, with what is wrong with them as warnings.

    Raises:
        UserError: DATA is not to be found, not sound, or not to be split as asked.
    """
    names = ("val_fraction", "test_fraction", "skip_bad", "check", "download")
    texts = ("group_from", "path_column", "label_column", "data_dir")
    options = {name: given[name] for name in names if name in given}
    options |= {name: given[name] for name in texts if given.get(name)}
    seed = given.get("seed", 0)
    prepared = prepare(
        data, seed=seed, progress=lambda done, total: screen.progress("checking the images", done, total), **options
    )
    if prepared.left_out:
        screen.warn(f"left out as bad: {few(prepared.left_out, 5)}")
    for finding in prepared.report.findings if prepared.report is not None else ():
        if finding.severity == "warning":
            screen.warn(f"{finding.message} (`whatwhere check` names them)")
    for part, samples in prepared.parts.items():
        missing = sorted(set(prepared.classes) - {sample.label for sample in samples})
        if samples and missing:
            screen.warn(
                f"no {part} images of {few(missing)}: too few, or near duplicates and groups that were kept together; "
                f"the figures say nothing of {'it' if len(missing) == 1 else 'them'}"
            )
    return prepared


def _material_and_trainer(
    config: Config, prepared: Prepared, model: nn.Module, processes: Team, screen: Screen, with_test: bool
) -> tuple[Material, Trainer]:
    began = time.monotonic()
    material = build_material(config, prepared, processes, with_test=with_test)
    if material.cache != "none":
        where = "on the device" if material.cache == "device" else "in memory"
        screen.line(f"images decoded and kept {where} ({time.monotonic() - began:.1f} s)")
    model = model.to(processes.device)
    if config.sync_bn and processes.world_size > 1:
        if processes.device.type != "cuda":
            raise UserError("--sync-bn needs a GPU for each process: torch has it for CUDA only; leave it out")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    trainer = Trainer(
        model,
        config,
        material.order,
        num_classes=len(prepared.classes),
        seed=config.seed,
        team=processes,
        class_weights=material.class_weights,
        compile=config.compile,
    )
    return material, trainer


def _try_out(
    config: Config, prepared: Prepared, model: nn.Module, processes: Team, screen: Screen, with_test: bool
) -> None:
    material, trainer = _material_and_trainer(config, prepared, model, processes, screen, with_test)
    times = []
    for _ in trainer.run(material.train):
        trainer.settle()
        times.append(time.monotonic())
        if len(times) == 4 or trainer.position.step == trainer.num_steps:
            break
    step = (times[-1] - times[0]) / max(1, len(times) - 1)
    memory = ""
    if processes.device.type == "cuda":
        memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU memory"
    whole = duration(step * trainer.num_steps)
    steps = counted(trainer.order.steps_per_epoch, "step")
    screen.line(
        f"dry run: {step:.2g} s a step{memory}; {steps} an epoch, about {whole} in all without evaluation; nothing "
        "written"
    )


@contextlib.contextmanager
def _deterministic(config: Config) -> Iterator[None]:
    """Use deterministic algorithms where that is asked for; else let cuDNN search the fastest."""
    before, searching = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(config.deterministic or before)
    torch.backends.cudnn.benchmark = not (config.deterministic or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = searching


def _with_paths(error: LossNotFinite, prepared: Prepared, folder: RunFolder) -> str:
    paths = [prepared.parts["train"][index].path for index in error.indices]
    return (
        f"{error}; the batch: {few(paths, 8)}; the weights saved before are kept in {str(folder.last)!r} "
        f"and {str(folder.best)!r}, and a new run, with another --out, can start from the latter with --pretrained"
    )


def _session(config: Config, processes: Team) -> dict[str, Any]:
    """Return what is to be known of where and with what a run is computed."""
    import PIL
    import torchvision

    return {
        "began": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
        "device": device_name(processes.device),
        "num_processes": processes.world_size,
        "num_threads": torch.get_num_threads(),
        "workers": config.workers,
    }
