"""One process or many, as `torchrun` starts them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UserError

# a process that waits longer than this for the others ends; each part of the work that one does alone stays below it
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Team:
    """The processes that train one network.

    Attributes:
        rank: Number of this process; 0 writes.
        world_size: Number of processes.
        local_rank: Number on this machine.
        device: Where this process computes.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over all processes."""
        return self.start_sum(values)[0] if self.world_size == 1 else _finished(self.start_sum(values))

    def start_sum(self, values: Tensor) -> tuple[Tensor, dist.Work | None]:
        """Start `sum` without waiting for it; `values` then holds it when the work is done."""
        return values, dist.all_reduce(values, async_op=True) if self.world_size > 1 else None

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world_size > 1:
            # a sum on the CPU: a barrier of NCCL would take a GPU's stream
            dist.all_reduce(torch.zeros(1))

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """Run the block in the first process, then in the others: what it downloads or computes once is there."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


def _finished(started: tuple[Tensor, dist.Work | None]) -> Tensor:
    values, work = started
    if work is not None:
        work.wait()
    return values


@contextlib.contextmanager
def team(device: str) -> Iterator[Team]:
    """Join the processes that torchrun started; alone, without it.

    Args:
        device: As torch names it, or "" for the best there is. With CUDA, each process of a machine takes the GPU of
            its local rank.

    Raises:
        UserError: No such device here.
    """
    world_size, rank, local_rank = (
        int(os.environ.get(name, default))
        for name, default in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))
    )
    chosen = _device(device, local_rank, world_size)
    if world_size == 1:
        yield Team(0, 1, 0, chosen)
        return
    backend = "cuda:nccl,cpu:gloo" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT, device_id=chosen if chosen.type == "cuda" else None)
    try:
        yield Team(rank, world_size, local_rank, chosen)
    finally:
        dist.destroy_process_group()


def _device(name: str, local_rank: int, world_size: int) -> torch.device:
    if not name:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        name = accelerator.type if accelerator is not None else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"no device {name!r}; give cpu, cuda, cuda:1 or mps") from error
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
        raise UserError(f"no device {name!r} here; give --device cpu")
    return device
