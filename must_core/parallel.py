"""One run on several processes, as torchrun starts them; gloo between CPUs, NCCL between GPUs.

Every process (rank) holds the whole state and works on its share of each batch. What decides (a stop, a checkpoint,
settings chosen from the data) is decided once and agreed on.
"""

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from must_core.errors import FailedElsewhere, InvalidConfig, MustError

T = TypeVar("T")

_TIMEOUT = timedelta(hours=2)
"""How long a rank waits for another: the first prepares and saves alone, and both may take long."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, as one of them sees it."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Among the processes of this host."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    @property
    def host(self) -> int:
        """A number of this process's host, the same for all processes there."""
        return self.rank - self.local_rank

    @property
    def first_of_host(self) -> bool:
        """Whether this process is the one that does what a host needs once."""
        return self.local_rank == 0

    def share_of(self, num_items: int) -> slice:
        """This process's part of a batch; parts differ by one item at most.

        Raises `InvalidConfig` when there are fewer items than processes.
        """
        if num_items < self.world_size:
            raise InvalidConfig(
                f"A batch of {num_items} cannot be shared by {self.world_size} processes.", param="batch_size"
            )
        return slice(num_items * self.rank // self.world_size, num_items * (self.rank + 1) // self.world_size)

    def largest_share(self, num_items: int) -> int:
        """The most items that one process gets of a batch."""
        return -(-num_items // self.world_size)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, without gradient; with one process the tensor itself, detached."""
        tensor = tensor.detach()
        if self.world_size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Of each flag, whether some process has set it."""
        if self.world_size == 1:
            return flags
        return tuple(map(bool, self.sum(torch.tensor(flags, dtype=torch.int32)).tolist()))

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """What one process finds wrong within the block ends all of them, at the end of it.

        The first of those with an error of this library or an `OSError` raises it, the others `FailedElsewhere`: it is
        said once, and nobody waits for a process that is gone.
        """
        if self.world_size == 1:
            yield
            return
        error: MustError | OSError | None = None
        try:
            yield
        except (MustError, OSError) as e:
            error = e
        failed = self.any(*(error is not None and rank == self.rank for rank in range(self.world_size)))
        if error is not None and not any(failed[: self.rank]):
            raise error
        if any(failed):
            raise FailedElsewhere("Another process of this run cannot go on.")

    def agreed(self, value: T) -> T:
        """The first process's value, on all of them; any picklable object."""
        if self.world_size == 1:
            return value
        box = [value if self.first else None]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]  # type: ignore[return-value]

    def agreed_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first process's tensors on all of them, on the CPU; what the others pass is not looked at."""
        if self.world_size == 1:
            return dict(tensors)
        layout = self.agreed({name: (t.shape, t.dtype) for name, t in tensors.items()})
        received = {}
        for name, (shape, dtype) in layout.items():
            tensor = tensors[name].cpu().contiguous() if self.first else torch.empty(shape, dtype=dtype)
            dist.broadcast(tensor, src=0)
            received[name] = tensor
        return received


SINGLE = Ranks()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Within the block, this process is one of those that torchrun started; `SINGLE` when it started none or one.

    Raises `InvalidConfig` where torchrun could not restart them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SINGLE
        return
    _require_restarts_that_work(os.environ)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)  # or every process would keep some memory of the first GPU
    # Flags and settings travel between CPUs, so that asking never waits for a GPU.
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))
    except BaseException:
        # Leaving NCCL's group waits for what the others have begun, and they wait for this process.
        if not device.startswith("cuda"):
            dist.destroy_process_group()
        raise
    else:
        # Whatever holds on to the group must go first: the last holder joins its threads, and one that is not the
        # group's own Python object does it with the interpreter locked, which those threads may be waiting for.
        gc.collect()
        dist.destroy_process_group()


def _require_restarts_that_work(environment: Mapping[str, str]) -> None:
    """torchrun shares one store among all lives of the ranks, and a restarted one finds its peers' old addresses there.

    They are refused, or belong to somebody else by then and are waited for without end. torchrun's own switch gives
    every life a store of its own.
    """
    restarts = int(environment.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    if restarts and environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise InvalidConfig(
            "For torchrun's restarts, set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment and use --standalone "
            "or --rdzv-backend=c10d.",
            code="unsafe_restarts",
            param="max_restarts",
        )


def local_device(name: str | None = None) -> str:
    """The device of this name; without one, the GPU of this process, one each on a host, or the CPU.

    Raises `InvalidConfig` for a device that is not here.
    """
    if name is not None:
        kind, _, number = name.partition(":")
        here = name == "cpu" or (
            kind == "cuda" and (number or "0").isdecimal() and int(number or "0") < torch.cuda.device_count()
        )
        if not here:
            raise InvalidConfig("There is no such device here.", code="unknown_device", param="device")
        return name
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
