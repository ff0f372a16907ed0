"""The four losses of MUST (section 3 of the paper), each a pure function, and their weighted sum.

Shapes: B images, K classes, J hidden patches of an image, D embedding width, P pixels of one patch times 3.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MOVING_AVERAGE_MIN_CLASSES = 512
"""From this many classes on, a batch says too little about the marginal and fairness keeps a moving average."""

_MOVING_AVERAGE_MOMENTUM = 0.5

RUNNING_IMAGES_PER_CLASS = 2
"""What fairness by a running marginal remembers; with as many images in a batch there is nothing to remember."""


@dataclass(frozen=True)
class Losses:
    """One step's losses, 0-d tensors on the model's device; what was not computed is zero."""

    total: Tensor
    self_training: Tensor
    fairness: Tensor
    reconstruction: Tensor
    alignment: Tensor


def self_training(
    logits_BK: Tensor, pseudo_label_B: Tensor, confident_B: Tensor, num_confident: Tensor | None = None
) -> Tensor:
    """Cross-entropy with the teacher's labels, mean over confident samples; zero when none is confident (eq. 2).

    ``num_confident`` is to be given where these samples are a part of a batch: its count, over the whole.
    """
    per_image_B = F.cross_entropy(logits_BK, pseudo_label_B, reduction="none")
    count = confident_B.sum() if num_confident is None else num_confident
    return (per_image_B * confident_B).sum() / count.clamp(min=1)


def batch_marginal(logits_BK: Tensor) -> Tensor:
    """The student's mean prediction over the batch, ``marginal_K``."""
    return logits_BK.softmax(dim=-1).mean(dim=0)


def fairness(marginal_K: Tensor) -> Tensor:
    """−mean log p̄: smallest when every class is predicted equally often (eq. 3)."""
    return -marginal_K.log().mean()


def fairness_moving_average(marginal_K: Tensor, previous_K: Tensor | None) -> tuple[Tensor, Tensor]:
    """Fairness for many classes: the marginal is averaged with the previous step's.

    Only half of the average carries gradient, so the loss is divided by ½ to keep its size; ``previous_K`` is None
    at an epoch's first step, where the reference divides all the same. Returns the loss and the new average,
    detached.
    """
    if previous_K is None:
        average_K = marginal_K
    else:
        momentum = _MOVING_AVERAGE_MOMENTUM
        average_K = momentum * previous_K + (1 - momentum) * marginal_K
    return fairness(average_K) / (1 - _MOVING_AVERAGE_MOMENTUM), average_K.detach()


def fairness_running(
    marginal_K: Tensor, previous_K: Tensor | None, *, batch_size: int, step_index: int
) -> tuple[Tensor, Tensor]:
    """Fairness where a batch has fewer images than classes: the marginal of this step and those before it.

    A batch alone has no image of most classes, and is punished for not predicting them. The memory spans
    `RUNNING_IMAGES_PER_CLASS` and is a plain mean until it is full; ``previous_K`` is None at the run's first step.
    Only this step's share of the mean carries gradient, so the loss is divided by it. Not in the paper. Returns the
    loss and the new mean, detached.
    """
    full = max(0.0, 1 - batch_size / (RUNNING_IMAGES_PER_CLASS * len(marginal_K)))
    momentum = 0.0 if previous_K is None else min(full, step_index / (step_index + 1))
    average_K = marginal_K if previous_K is None else momentum * previous_K + (1 - momentum) * marginal_K
    return fairness(average_K) / (1 - momentum), average_K.detach()


def reconstruction(predicted_BJP: Tensor, target_BJP: Tensor) -> Tensor:
    """Mean absolute error of masked pixels, in normalised pixel units (eq. 5); zero when nothing is masked."""
    if predicted_BJP.numel() == 0:
        return predicted_BJP.sum()
    return (predicted_BJP - target_BJP).abs().mean()


def alignment(patch_BJD: Tensor, class_token_BD: Tensor) -> Tensor:
    """Mean squared distance between each masked patch and its image's class token, both of unit length (eq. 6)."""
    if patch_BJD.numel() == 0:
        return patch_BJD.sum()
    return (patch_BJD - class_token_BD[:, None]).square().sum(dim=-1).mean()


def patchify(images_BCHW: Tensor, patch_size: int) -> Tensor:
    """Cut images into ``patches_BNP``, row-major patches, each flattened in (channel, row, column) order.

    What no whole patch is left of at the lower and right edges is cut off, as the tower's patch convolution does.
    """
    b, c, h, w = images_BCHW.shape
    rows, columns = h // patch_size, w // patch_size
    grid = images_BCHW[:, :, : rows * patch_size, : columns * patch_size].reshape(
        b, c, rows, patch_size, columns, patch_size
    )
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(b, rows * columns, c * patch_size * patch_size)


def combine(
    *,
    self_training: Tensor,
    fairness: Tensor,
    reconstruction: Tensor | None,
    alignment: Tensor | None,
    fairness_weight: float,
    alignment_weight: float,
) -> Losses:
    """The weighted sum (eq. 7): self-training and reconstruction have weight one."""
    zero = torch.zeros_like(self_training)
    total = self_training + fairness_weight * fairness
    if reconstruction is not None:
        total = total + reconstruction
    if alignment is not None:
        total = total + alignment_weight * alignment
    return Losses(
        total=total,
        self_training=self_training,
        fairness=fairness,
        reconstruction=zero if reconstruction is None else reconstruction,
        alignment=zero if alignment is None else alignment,
    )
