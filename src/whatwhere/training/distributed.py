"""One process or several, started by `torchrun`."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..base.errors import UserError
from ..base.words import brief

TIMEOUT = timedelta(minutes=30)  # of a sum within a step
# rank 0 may check a large data set while the others wait; if it dies, the closed connection ends the wait
PATIENCE = timedelta(days=2)


@dataclass(frozen=True)
class Team:
    """The processes that train one network, as process number `rank` of `world_size` sees them."""

    rank: int
    world_size: int
    local_rank: int  # among the processes of this machine
    device: torch.device
    control: Any = None  # CPU process group for messages outside of a step
    local_world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which writes files and messages."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over all processes."""
        values, work = self.start_sum(values)
        if work is not None:
            work.wait()
        return values

    def start_sum(self, values: Tensor) -> tuple[Tensor, dist.Work | None]:
        """Start `sum` without waiting for it: `values` holds the sum once the work is done."""
        return values, dist.all_reduce(values, async_op=True) if self.world_size > 1 else None

    def wait(self) -> None:
        """Wait until every process has called this."""
        self.of_first(0)

    def of_first(self, number: int) -> int:
        """Return `number` of process 0 in all processes."""
        if self.world_size == 1:
            return number
        value = torch.tensor(number)
        # a sum, because a broadcast would not make process 0 wait
        dist.all_reduce(value if self.is_first else value.zero_(), group=self.control)
        return int(value)

    def check_same(self, text: str, what: str) -> None:
        """Raise UserError in a process where `text` differs from that of process 0; `what` names it."""
        own = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:7], "big")
        if self.of_first(own) != own:
            raise UserError(
                f"process {self.rank} has other {what} than process 0; all need the same data, options and versions"
            )

    def align(self, tensors: Iterable[Tensor]) -> None:
        """Broadcast rank 0's values, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """Run the block first in one process of each machine, then in the others, which find its results on disk."""
        if self.local_rank:
            self.wait()
        yield
        if not self.local_rank:
            self.wait()


@contextlib.contextmanager
def team(device: str, command: str = "") -> Iterator[Team]:
    """Join the processes that torchrun started, or return a team of this process alone.

    Args:
        device: A name such as "cpu" or "cuda:1", or "" for the best device. With several processes and CUDA, each takes
            the GPU of its local rank.
        command: The command that continues a run, for the message where torch.distributed loses a process.

    Raises:
        UserError: There is no such device, or another process is lost.
    """
    world_size, rank, local_rank, local_world_size = (
        int(os.environ.get(name, default))
        for name, default in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
    )
    chosen = _device(device, local_rank, world_size)
    if world_size == 1:
        yield Team(0, 1, 0, chosen)
        return
    on_gpu = chosen.type == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT, device_id=chosen if on_gpu else None)
    control = dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield Team(rank, world_size, local_rank, chosen, control, local_world_size)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise UserError(
            f"process {rank} of {world_size} lost another process; read the message of that one, and continue with",
            command,
        ) from error
    # a network that still exists holds its group: Gloo's threads would then abort when the interpreter ends
    gc.collect()
    # not after an error: the other processes still wait in a sum, and the end of NCCL would wait for them
    dist.destroy_process_group()


def _device(name: str, local_rank: int, world_size: int) -> torch.device:
    if not name:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        name = accelerator.type if accelerator is not None else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"no device {brief(name)}; give cpu, cuda, cuda:1 or mps") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type == "cuda":
        index = local_rank if world_size > 1 else device.index or 0
        if index >= torch.cuda.device_count():
            raise UserError(
                f"no device cuda:{index}: there are {torch.cuda.device_count()} CUDA devices here; give --device cpu, "
                "or start as many processes as there are GPUs"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        return device
    if torch.accelerator.current_accelerator(check_available=True) != torch.device(device.type):
        raise UserError(f"no device {brief(name)} here; give --device cpu")
    return device
