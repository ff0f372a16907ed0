"""The devices of a worker, shared out to its jobs: how many are free, and which of them a trainer sees.

Knows no torch: a CUDA context in the supervisor would keep memory of every GPU.
"""

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol, TypeVar

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
_ASK_TIMEOUT_S = 10
_NAME = re.compile(r"[\w.-]{1,80}", re.ASCII)
_CPU = re.compile(r"cpu:([1-9]\d?)", re.ASCII)


class _Claimed(Protocol):
    @property
    def num_gpus(self) -> int: ...


C = TypeVar("C", bound=_Claimed)


@dataclass(frozen=True)
class Owned:
    """What a worker may use: GPUs by the names that CUDA knows them by, or ``num_cpu`` processes at a time on the CPU,
    which stand in for GPUs. With neither, every job of one GPU runs on the CPU."""

    gpus: tuple[str, ...] = ()
    num_cpu: int = 0
    in_bus_order: bool = True
    """GPUs' numbers are nvidia-smi's. CUDA's own may differ: it puts the fastest first. False: as in this process's
    environment, where the numbers come from."""
    hidden: bool = False
    """There may be GPUs, but they are not this worker's."""

    @classmethod
    def parse(cls, setting: str) -> "Owned":
        """``auto``, ``none``, ``cpu:N`` or names separated by commas. Raises `ValueError`."""
        if setting == "auto":
            return cls(gpus=find_gpus(), in_bus_order=VISIBLE not in os.environ)
        if setting == "none":
            return cls(hidden=True)
        if on_cpu := _CPU.fullmatch(setting):
            return cls(num_cpu=int(on_cpu[1]), hidden=True)
        names = tuple(name.strip() for name in setting.split(","))
        if not all(_NAME.fullmatch(name) for name in names) or len(set(names)) < len(names):
            raise ValueError("auto, none, cpu:N, or GPUs separated by commas")
        return cls(gpus=names)


def find_gpus() -> tuple[str, ...]:
    """The GPUs that a process started here would see; empty when there are none or nobody knows."""
    if (visible := os.environ.get(VISIBLE)) is not None:
        names = []
        for name in visible.split(","):
            if not _NAME.fullmatch(name.strip()) or name.strip().startswith("-"):
                break  # as CUDA does: what follows a wrong name is not seen
            names.append(name.strip())
        return () if names == ["NoDevFiles"] else tuple(dict.fromkeys(names))  # twice would be for two jobs
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],  # noqa: S607 - where the driver put it
            capture_output=True,
            text=True,
            timeout=_ASK_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip().isdecimal())


@dataclass(frozen=True, eq=False)
class Share:
    """One job's devices. Give them back once nothing uses them any more."""

    environment: Mapping[str, str]
    """For the trainer, so that it sees these devices and no others."""
    give_back: Callable[[], None] = field(default=lambda: None)
    """May be called again."""


class Devices:
    """The devices of one worker process. Safe to share between threads."""

    def __init__(self, owned: Owned = Owned()) -> None:
        self._owned = owned
        # For N processes on the CPU, the names only count.
        names = owned.gpus or tuple(f"cpu:{n}" for n in range(owned.num_cpu))
        self._free = list(names)
        self._counted = bool(names)
        self._order = {name: position for position, name in enumerate(names)}
        self._claiming = Lock()
        self._lock = Lock()

    @property
    def most_for_a_job(self) -> int:
        """GPUs that one job can get, were all free."""
        return len(self._order) if self._counted else 1

    def num_jobs_at_most(self, num_slots: int) -> int:
        """Jobs of one GPU that run at a time in so many slots."""
        return min(num_slots, len(self._order)) if self._counted else num_slots

    def claim(self, ask: Callable[[int], C | None]) -> tuple[C, Share] | None:
        """Have ``ask`` claim a job that fits the number of free GPUs, and give the job its share. None: no job.

        One thread at a time, or two would be promised the same GPU. Giving back does not wait for it.
        """
        with self._claiming:
            with self._lock:
                num_free = len(self._free) if self._counted else 1
            if num_free == 0 or (claimed := ask(num_free)) is None:
                return None
            return claimed, self._share(claimed.num_gpus)

    def _share(self, num_gpus: int) -> Share:
        if not self._counted:
            return Share({VISIBLE: ""} if self._owned.hidden else {})
        with self._lock:
            taken, self._free = self._free[:num_gpus], self._free[num_gpus:]
        left = list(taken)

        def give_back() -> None:
            with self._lock:
                self._free = sorted([*self._free, *left], key=self._order.__getitem__)
                left.clear()

        if not self._owned.gpus:
            return Share({VISIBLE: ""}, give_back)
        order = {ORDER: "PCI_BUS_ID"} if self._owned.in_bus_order else {}
        return Share({VISIBLE: ",".join(taken), **order}, give_back)
