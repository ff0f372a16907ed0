"""Learning rates: a cosine over the steps, and one scale per layer of the tower (layer-wise decay, as in BEiT)."""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from must_core.student import Student


def lr_at(step: int, *, total_steps: int, peak: float, final: float) -> float:
    """Learning rate of a step counted from 0: half a cosine from ``peak`` towards ``final``, without warm-up."""
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * step / total_steps))


def parameter_groups(student: Student, *, layer_decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Group the student's parameters for AdamW.

    Patch convolution, class, position and mask embeddings and ``ln_pre`` are layer 0, transformer block i is layer
    i + 1, all else is the top with scale 1; a layer's scale is ``layer_decay ** distance from the top``. Tensors of
    one dimension are not decayed. Each group carries ``lr_scale``, ``weight_decay``, ``params`` and ``names``.
    """
    members: dict[tuple[int, float], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            members[student.layer_of(name), decay].append((name, parameter))
    top = student.num_layers + 1
    return [
        {
            "params": [parameter for _, parameter in named],
            "names": [name for name, _ in named],
            "lr_scale": layer_decay ** (top - layer),
            "weight_decay": decay,
        }
        for (layer, decay), named in sorted(members.items())
    ]


def make_optimizer(student: Student, *, layer_decay: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (β 0.9 and 0.999, ε 1e-8) over `parameter_groups`; its learning rates are set before each step.

    Its moments are there from the start, all zero, so that no later step needs more memory than the first.
    """
    groups = parameter_groups(student, layer_decay=layer_decay, weight_decay=weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8, fused=True)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set each group's learning rate to ``lr`` times the group's scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
