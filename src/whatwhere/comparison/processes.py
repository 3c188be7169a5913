"""A comparison in several processes of one machine, one for each GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from ..base.errors import UserError
from ..base.processes import num_cores, on_stop_signals


def default_count(device: str) -> int:
    """Return one for each GPU that is to be used, else 1."""
    import torch

    if device not in ("", "cuda") or not torch.cuda.is_available():
        return 1
    return torch.cuda.device_count()


def run_shards(arguments: Sequence[str], shard: tuple[int, int], count: int, *, num_gpus: int, command: str) -> None:
    """Run `whatwhere compare` in `count` processes, each on its share of the runs, and wait for all of them.

    Args:
        arguments: Of the command, after `whatwhere compare`.
        shard: The share (i, n) of this machine.
        count: How many processes.
        num_gpus: With several, each process takes one, in turn; else they share the device and the cores.
        command: What to type to continue the whole.

    Raises:
        UserError: One of them failed; what it said stands on standard error.
    """
    index, total = shard
    cores = num_cores()
    environment = dict(os.environ)
    if num_gpus <= 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
    children: list[subprocess.Popen[bytes]] = []
    with _passing_on(children) as received:
        for number in range(count):
            if received:
                raise SystemExit(128 + received[0])
            own = ["--shard", f"{(index - 1) * count + number + 1}/{total * count}", "--processes", "1"]
            own += ["--whole", command]
            own += ["--device", f"cuda:{number % num_gpus}"] if num_gpus > 1 else []
            # what they say is progress; the result is this process's to print
            children.append(
                subprocess.Popen(
                    [sys.executable, "-m", "whatwhere", "compare", *arguments, *own], env=environment, stdout=sys.stderr
                )
            )
        statuses = [child.wait() for child in children]
    stopped = [status for status in statuses if status >= 128 or status < 0]
    if stopped:
        # as a shell says it of a process that a signal ended
        raise SystemExit(stopped[0] if stopped[0] >= 0 else 128 - stopped[0])
    if any(statuses):
        raise UserError(f"{sum(map(bool, statuses))} of {count} processes failed; what they said stands above")


@contextmanager
def _passing_on(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Pass signals on to the children, who save and end; yield those received."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        # the terminal sends Ctrl-C to the children itself
        for child in children if number != signal.SIGINT else ():
            if child.poll() is None:
                child.send_signal(number)

    with on_stop_signals(pass_on):
        yield received
