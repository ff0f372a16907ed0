"""How many images fit through a step at once: what it keeps for backward against the memory that is free.

What is kept is measured on one image and two rather than worked out: it is right for every tower, precision and way
of attention. All sizes are in bytes.

Legend: B images.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from must_core.masking import PatchMask
from must_core.student import Student

_BACKWARD = 1.5
"""Peak of a pass back and forth over what it keeps, rather above it: blocks' gradients come on top."""

_COPIES = 5
"""Of the weights, in a run: student, teacher, gradients and the optimizer's two moments."""

_LIBRARIES = 50 * 10**6
"""What they take for themselves at the first pass back, whatever the tower."""

_USABLE = 0.8
"""Share of the free memory that a step may take; the rest is for loader processes and everybody else."""


@dataclass(frozen=True)
class Memory:
    """What a step needs of a device, and what is free there."""

    free: int | None
    """None: not known."""
    fixed: int
    """Whatever the batch."""
    views: int
    """For each image of the batch."""
    kept: int
    """For each image that goes through the student at once."""
    num_ranks: int = 1
    """Processes that share a batch."""

    def needed(self, num_images: int, at_once: int) -> int:
        """By a step of one process."""
        return self.fixed + num_images * self.views + at_once * self.kept

    def part_of(self, num_images: int) -> int:
        """How many of the images to take at once: all, or else a power of two, 1 where not even that fits."""
        if self.free is None or self.needed(num_images, num_images) <= _USABLE * self.free:
            return num_images
        room = int(_USABLE * self.free - self.needed(num_images, 0)) // self.kept
        return 1 << max(1, room).bit_length() - 1


def memory_of(student: Student, image_size: int, *, bfloat16: bool, num_ranks: int = 1) -> Memory:
    """Measure a student on the device where it is."""
    parameter = student.classifier
    one, two = (_kept(student, image_size, num_images, bfloat16=bfloat16) for num_images in (1, 2))
    weights = sum(p.nbytes for p in student.parameters())
    view = 3 * image_size**2 * parameter.element_size()
    return Memory(
        free=free_bytes(parameter.device),
        fixed=_LIBRARIES + _COPIES * weights + max(0, 2 * one - two),
        views=2 * view,
        kept=int(_BACKWARD * (two - one)),
        num_ranks=num_ranks,
    )


def _kept(student: Student, image_size: int, num_images: int, *, bfloat16: bool) -> int:
    """Of a forward pass until the one back, beside the weights; with all patches hidden, where they can be."""
    parameter = student.classifier
    images_BCHW = parameter.new_zeros(num_images, 3, image_size, image_size)
    weights = {p.untyped_storage().data_ptr() for p in student.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    mask: Any = ()
    if student.can_mask:
        num_patches = (image_size // student.patch_size) ** 2
        mask = (PatchMask.of(torch.ones(num_images, num_patches, dtype=torch.bool)).to(parameter.device),)
    with (
        torch.enable_grad(),
        torch.autocast(parameter.device.type, torch.bfloat16, enabled=bfloat16),
        saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        output = student(images_BCHW, *mask)  # holds what it keeps, so that no two tensors have one address
    sizes = [size for address, size in kept.items() if address not in weights]
    del output
    return sum(sizes)


def free_bytes(device: torch.device) -> int | None:
    """What a process of this run can have of a device's memory; None where nobody says."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    available = available_ram()
    return None if available is None else available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def available_ram(root: Path = Path("/")) -> int | None:
    """The host's, or what is left of a control group's limit where that is less; None where there is no ``/proc``."""
    try:
        meminfo = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return min([available, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> Iterator[int]:
    """Of the limits of this process's control groups, of either version, and of all groups around them."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in {"", "memory"}:
            continue
        version_2 = not controllers
        limit, usage, cache = (
            ("memory.max", "memory.current", "inactive_file")
            if version_2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        top = root / "sys/fs/cgroup" / controllers
        group = top / path.lstrip("/")
        # In a container the path may be the host's, and the group itself is what is mounted at the top.
        for folder in (group, *group.parents):
            try:
                left = int((folder / limit).read_text()) - int((folder / usage).read_text())
                stat = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                yield max(0, left + int(stat.get(cache, 0)))
            except (OSError, ValueError):  # no such group here, or "max"
                pass
            if folder == top:
                break
