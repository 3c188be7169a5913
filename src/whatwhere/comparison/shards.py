"""A comparison in several processes, each with a share of the runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

import torch

from ..base.errors import Stopped, UserError
from ..base.processes import num_cores, on_signals
from ..base.words import cause


def default_processes(device: str) -> int:
    """Return the number of processes: one for each GPU, or 1 where `device` is another."""
    return torch.cuda.device_count() if device in ("", "cuda") and torch.cuda.is_available() else 1


def run_shards(
    arguments: Sequence[str], shard: tuple[int, int], count: int, *more: str, num_gpus: int, command: str
) -> None:
    """Run `whatwhere compare` in `count` processes, each with a share of the runs, and wait for all of them.

    Args:
        arguments: Arguments after `whatwhere compare`.
        shard: The share (i, n) of this machine.
        count: Number of processes.
        more: Further arguments, in place of earlier ones with the same names.
        num_gpus: With several, the processes take them in turn; otherwise they share the device and the cores.
        command: Command that continues the whole comparison.

    Raises:
        Stopped: This process or one that it started was asked to stop, or killed.
        UserError: A process failed, with its message on standard error; or it cannot be started.
    """
    index, total = shard
    environment = dict(os.environ)
    if num_gpus <= 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // count)))
    children = _Children()
    with on_signals(children.stop), children:
        for number in range(count):
            own = ["--shard", f"{(index - 1) * count + number + 1}/{total * count}", "--processes", "1"]
            own += ["--whole", command]
            own += ["--device", f"cuda:{number % num_gpus}"] if num_gpus > 1 else []
            children.start([sys.executable, "-m", "whatwhere", "compare", *arguments, *more, *own], environment)
    statuses = [child.returncode for child in children.started]
    # 128 + the signal, as a shell reports it
    stopped = [status - 128 if status >= 0 else -status for status in statuses if status >= 128 or status < 0]
    if children.received or stopped:
        raise Stopped(f"the processes are stopped; continue with: {command}", (*children.received, *stopped)[0])
    if any(statuses):
        raise UserError(f"{sum(map(bool, statuses))} of {count} processes failed; their messages are above")


class _Children:
    """Processes that end before the block does: they are waited for, and told to stop where the block fails.

    Attributes:
        started: The processes.
        received: The signals that this process got; after the first one, no process is started.
    """

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []
        self.received: list[int] = []

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._pass_on(signal.SIGTERM)
        for child in self.started:
            child.wait()

    def start(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        """Start a process."""
        if self.received:
            return
        try:
            # its lines are progress; standard output is for the result
            self.started.append(subprocess.Popen(arguments, env=environment, stdout=sys.stderr))
        except OSError as error:
            raise UserError(f"no further process can be started ({cause(error)}); give fewer --processes") from error
        if self.received:  # while it started, when `stop` did not know it yet
            self.stop(self.received.pop(), None)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Take a signal and pass it on to the processes, which save and end."""
        self.received.append(number)
        # A terminal sends Ctrl-C to the processes too, and a second one would end them without saving. Other senders
        # of SIGINT send it to this process alone.
        self._pass_on(signal.SIGTERM if number == signal.SIGINT else number)

    def _pass_on(self, number: int) -> None:
        for child in self.started:
            child.send_signal(number)
