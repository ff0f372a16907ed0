"""One run on several processes, as torchrun starts them; gloo between CPUs, NCCL between GPUs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, as one of them sees it."""

    rank: int = 0
    world_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, without gradient; with one process the tensor itself, detached."""
        tensor = tensor.detach()
        if self.world_size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:  # noqa: FBT001 - the one argument is the question
        """Whether some process says so."""
        return bool(self.sum(torch.tensor(int(flag)))) if self.world_size > 1 else flag

    def agreed(self, value: T) -> T:
        """The first process's value, on all of them."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


SINGLE = Ranks()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Within the block, this process is one of those that torchrun started; `SINGLE` when it started none."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SINGLE
        return
    # Flags and settings travel between CPUs, so that asking never waits for a GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Ranks(rank=dist.get_rank(), world_size=dist.get_world_size())
    finally:
        dist.destroy_process_group()


def local_device() -> str:
    """The GPU of this process, one each on a host, or the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
