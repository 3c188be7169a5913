"""A comparison on a Ray cluster: a task for each seed, which Ray starts again where a node is lost."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import torch

import whatwhere

from ..base.errors import Stopped, UserError
from ..base.files import InUse
from ..base.processes import on_signals
from ..base.screen import Silent
from ..base.words import brief, cause
from ..training.run_folder import METRICS
from ..training.train import run_training
from .runs import Runner, RunScreen, Share, Task, outcome

_RETRIES = 10  # of a seed: nodes of a cloud come and go, and a run goes on from its checkpoint
# seconds until another process lets go of a run, or until this machine sees the file that a node wrote
_PATIENCE = 120.0
_SAVING = 60.0  # seconds that the runs have to save and end


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process has joined: what a run gets there, and how many runs fit at the same time.

    Attributes:
        resources: `num_cpus` and `num_gpus` of a run.
        num_threads: Threads of a run on cores: those that it would have in this process, because another number
            changes the last bits of its figures.
        num_runs: Runs at the same time.
        nodes: Name by identity of each node with room for a run.
    """

    resources: Mapping[str, float]
    num_threads: int
    num_runs: int
    nodes: Mapping[str, str]

    def do(self, runner: Runner, tasks: Sequence[Task], *more: str) -> None:
        """Do tasks of a comparison: each seed is a task of Ray, with its runs one after another.

        What fails is kept in `runner.failures`.

        Raises:
            UserError: A node does not see the folder or the images, or has another version of whatwhere.
            Stopped: This process was asked to stop, or the cluster is lost.
        """
        import ray

        seeds: dict[str, list[Task]] = {}
        for task in tasks:
            seeds.setdefault(task.folder.name, []).append(task)
        # a new name: a node that sees another folder, or a copy of this one, lacks it
        with tempfile.NamedTemporaryFile(dir=runner.share.out, prefix=".ray-") as mark:
            named = [runner.data, *(str(tasks[0].options.get(name) or "") for name in ("data_dir", "pretrained"))]
            seen = [mark.name, *(path for path in named if path and os.path.exists(path))]
            self._check_nodes(os.getcwd(), seen)
            options = dict(runner.free)
            if self.resources.get("num_gpus"):
                options["device"] = "cuda"  # each task sees its own GPU alone
            train = ray.remote(max_retries=_RETRIES, **self.resources)(_train)
            shared = (runner.data, options, runner.command, self.num_threads, os.getcwd(), seen)
            pending = {train.remote(tasks, *shared): tasks for tasks in seeds.values()}
            progress = _Progress(runner, tasks)

            def take(reference: Any) -> None:
                progress.take(pending[reference], _result(reference, pending[reference], runner.command))

            _follow(list(pending), take, progress.look, runner.command)

    def _check_nodes(self, folder: str, paths: Sequence[str]) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for node, name in self.nodes.items():
            here = NodeAffinitySchedulingStrategy(node, soft=False)
            look = ray.remote(num_cpus=0, scheduling_strategy=here)(_look)
            try:
                version, missing = ray.get(look.remote(folder, paths))
            except ray.exceptions.RayError as error:
                why = cause(getattr(error, "cause", None) or error)
                raise UserError(f"the Ray node {name} cannot run whatwhere ({why}); install it there") from error
            if missing:
                raise UserError(_not_seen(name, missing))
            if version != whatwhere.__version__:
                raise UserError(
                    f"the Ray node {name} has whatwhere {version}, this machine {whatwhere.__version__}; install one "
                    "version on all nodes"
                )


def join(address: str, device: str) -> Cluster:
    """Join a Ray cluster.

    Args:
        address: HOST:PORT, auto or local, as Ray takes it; "" is that of RAY_ADDRESS, a cluster that this machine is a
            node of, or a new one of this machine alone.
        device: The option of the runs. They use the kind of device that this machine would use.

    Raises:
        UserError: There is no Ray or no such cluster, or it has no room for a run.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is started here reports to nobody
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError("--ray needs Ray: pip install 'whatwhere[ray]'") from error
    _check_answers(address or os.environ.get("RAY_ADDRESS", ""))
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or None, log_to_driver=False, logging_level=logging.CRITICAL, include_dashboard=False)
    except Exception as error:
        raise UserError(
            f"cannot join a Ray cluster at {brief(address or 'its default address')} ({cause(error)}); give HOST:PORT "
            "of one, or --ray=local"
        ) from error
    signal.signal(signal.SIGTERM, before)  # Ray's own handler ends the process without a word
    # of lost nodes it prints pages on standard output
    ray._private.worker._worker_logs_enabled = False
    on_gpu = device.partition(":")[0] in ("", "cuda") and torch.cuda.is_available()
    num_threads = torch.get_num_threads()
    resources = {"num_cpus": 1.0, "num_gpus": 1.0} if on_gpu else {"num_cpus": float(num_threads)}
    kind, needed = ("GPU", 1) if on_gpu else ("CPU", num_threads)
    alive = [node for node in ray.nodes() if node["Alive"]]
    room = {node["NodeID"]: int(node["Resources"].get(kind, 0) // needed) for node in alive}
    if not any(room.values()):
        most = max((int(node["Resources"].get(kind, 0)) for node in alive), default=0)
        raise UserError(
            "no node of the Ray cluster has a GPU, as this machine has; give --device cpu"
            if on_gpu
            else f"no node of the Ray cluster has {num_threads} cores for a run, as this machine has (at most {most}); "
            f"begin the command with OMP_NUM_THREADS={max(1, most)}"
        )
    if not on_gpu and not device and any(node["Resources"].get("GPU") for node in alive):
        raise UserError(
            "the Ray cluster has GPUs and this machine has none, where the design is chosen and measured; start the "
            "command on a node with a GPU, or give --device cpu"
        )
    names = {node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in alive}
    return Cluster(resources, num_threads, sum(room.values()), {node: names[node] for node in room if room[node]})


def _check_answers(address: str) -> None:
    """Raise UserError where nothing answers at HOST:PORT: Ray itself would try for minutes."""
    if address.startswith("ray://"):
        raise UserError("--ray takes no ray:// address; start the command on a node of the cluster, with --ray alone")
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), 10).close()
        except (OSError, OverflowError) as error:
            raise UserError(
                f"no Ray cluster answers at {brief(address)} ({cause(error)}); `ray start --head` starts one"
            ) from error


def _look(folder: str, paths: Sequence[str]) -> tuple[str, str]:
    """Return the version of whatwhere of a node, and the first path that it does not see from `folder`, or ""."""
    try:
        os.chdir(folder)
    except OSError:
        return str(whatwhere.__version__), folder
    return str(whatwhere.__version__), next((path for path in paths if not os.path.exists(path)), "")


def _not_seen(name: str, missing: str) -> str:
    what = str(Path(missing).parent) if Path(missing).name.startswith(".ray-") else missing
    return (
        f"the Ray node {name} does not see {brief(what, 150)} of this machine; use a file system that all nodes see, "
        "for the current folder, DATA and --out"
    )


def _train(
    tasks: Sequence[Task],
    data: str,
    options: Mapping[str, Any],
    command: str,
    num_threads: int,
    folder: str,
    paths: Sequence[str],
) -> dict[str, tuple[str, list[str]]]:
    """Train the runs of a seed on a node; return by label why a run failed, or "", and its warnings."""
    if missing := _look(folder, paths)[1]:
        return {task.label: (_not_seen(socket.gethostname(), missing), []) for task in tasks}
    torch.set_num_threads(num_threads)
    runner = Runner(data, options, command, Silent(), Share(tasks[0].folder), set(), _train_when_free)
    ended: dict[str, tuple[str, list[str]]] = {}
    for task in tasks:
        before, why = set(runner.warned), ""
        try:
            if not task.is_done():  # a node that was lost may have done it
                runner.attempt(task)
        except UserError as error:
            why = str(error)
        except Stopped as stopped:
            if stopped.signal != signal.SIGINT:  # which Ray sends for `cancel`
                os._exit(128 + stopped.signal)  # the node ends: Ray takes the task for lost, and tries again elsewhere
            raise
        ended[task.label] = why, sorted(runner.warned - before)
    return ended


def _train_when_free(*arguments: Any, **named: Any) -> dict[str, Any] | None:
    """Train as `run_training`, once the folder is free: its process on a lost node may not have ended yet."""
    limit = time.monotonic() + _PATIENCE
    while True:
        try:
            return run_training(*arguments, **named)
        except InUse:
            if time.monotonic() > limit:
                raise
            time.sleep(1)


def _follow(references: list[Any], take: Callable[[Any], None], look: Callable[[], None], command: str) -> None:
    """Call `take` with each task of Ray that ends, and `look` now and then; at a signal let all save and end.

    Raises:
        Stopped: This process was asked to stop.
    """
    import ray

    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    with on_signals(stop):
        try:
            while references and not received:
                ended, references = ray.wait(references, timeout=1)
                look()
                for reference in ended:
                    take(reference)
        finally:
            with contextlib.suppress(ray.exceptions.RayError):
                for reference in references:
                    ray.cancel(reference)
                if references:
                    ray.wait(references, num_returns=len(references), timeout=_SAVING)
    if received:
        raise Stopped(f"the runs are stopped and saved; continue with: {command}", received[0])


def _result(reference: Any, tasks: Sequence[Task], command: str) -> dict[str, tuple[str, list[str]]]:
    """Return what `_train` returned; where Ray lost it too often, that is why each run that is not done failed.

    Raises:
        Stopped: The cluster is lost.
    """
    import ray
    from ray import exceptions

    try:
        ended: dict[str, tuple[str, list[str]]] = ray.get(reference)
        return ended
    except exceptions.LocalRayletDiedError:
        raise Stopped(f"the Ray cluster is lost; what was saved is kept, and goes on with: {command}") from None
    except exceptions.RayTaskError:
        raise
    except exceptions.RayError as error:
        return {task.label: ("" if task.is_done() else cause(error), []) for task in tasks}


class _Progress:
    """Shows on this machine how far the runs are, by the files that the nodes write."""

    def __init__(self, runner: Runner, tasks: Sequence[Task]) -> None:
        self.runner, self.tasks, self.told = runner, tasks, set[str]()

    def look(self) -> None:
        """Show each run that has ended since the last look, and the epochs of all."""
        for task in self.tasks:
            if task.label not in self.told and task.is_done():
                self.told.add(task.label)
                self._show(task)
        done = sum(map(self._epochs_done, self.tasks))
        self.runner.screen.progress("epochs", done, sum(task.options["epochs"] for task in self.tasks))

    def take(self, tasks: Sequence[Task], ended: Mapping[str, tuple[str, list[str]]]) -> None:
        """Show the failures and warnings of a seed whose runs have ended."""
        limit = time.monotonic() + _PATIENCE  # a network file system may show a new file late
        for task in tasks:
            why, warnings = ended[task.label]
            screen = RunScreen(self.runner.screen, task.label, self.runner.warned)
            for text in warnings:
                screen.warn(text)
            while not why and not task.is_done():
                if time.monotonic() > limit:
                    why = f"its node has finished it, and {str(task.folder)!r} shows no result here"
                time.sleep(0.5)
            if why:
                self.runner.fail(task, why)
        self.look()

    def _show(self, task: Task) -> None:
        run, number = task.finished(), f"run {len(self.told)} of {len(self.tasks)}"
        if run is None:
            self.runner.screen.line(f"{task.label} diverged")
            return
        judged = run.result.judged_on
        part = run.result.val if isinstance(run.result.test, msgspec.UnsetType) else run.result.test
        self.runner.screen.line(f"{number}: {outcome(task, judged, part.accuracy, run.result.seconds)}")

    def _epochs_done(self, task: Task) -> int:
        epochs: int = task.options["epochs"]
        if task.label in self.told:
            return epochs
        with contextlib.suppress(OSError):
            return min(epochs, (task.folder / METRICS).read_bytes().count(b"\n"))
        return 0
