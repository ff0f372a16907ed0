"""The teacher: an exponential moving average of the student (section 3.1 of the paper)."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def decay_at(step: int, *, init: float, final: float, warmup_steps: int) -> float:
    """The decay of a step, counted from 0: a linear ramp from ``init`` to ``final``."""
    if step >= warmup_steps:
        return final
    return init + (final - init) * step / warmup_steps


def make_teacher(student: M) -> M:
    """Copy a student into a teacher: the same weights, no gradient, evaluation mode."""
    return copy.deepcopy(student).requires_grad_(requires_grad=False).eval()


class TeacherUpdate:
    """``teacher ← decay · teacher + (1 − decay) · student`` over every entry of the state dict, in one pass.

    Floating-point entries are averaged, all others copied.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        source = student.state_dict()
        pairs = [(entry, source[name]) for name, entry in teacher.state_dict().items()]
        self._averaged: list[tuple[Tensor, Tensor]] = [(t, s) for t, s in pairs if t.is_floating_point()]
        self._copied: list[tuple[Tensor, Tensor]] = [(t, s) for t, s in pairs if not t.is_floating_point()]

    @torch.no_grad()
    def apply(self, decay: float) -> None:
        """Move the teacher one step towards the student."""
        torch._foreach_lerp_([t for t, _ in self._averaged], [s for _, s in self._averaged], 1 - decay)
        for target, source in self._copied:
            target.copy_(source)
