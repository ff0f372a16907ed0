"""The gradient of MUST's loss over a whole batch, however the batch is spread over processes and parts.

Three of the losses are means over samples and would add up by themselves. Fairness is a function of the whole batch's
mean prediction p̄: every part needs p̄ of all before its own gradient is known.

Shapes: B images, K classes, J hidden patches of an image, P values of one patch.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from must_core import objective
from must_core.config import AdaptConfig
from must_core.masking import PatchMask
from must_core.objective import Losses
from must_core.parallel import Ranks
from must_core.student import Student
from must_core.towers.clip_vit import ClipVit
from must_core.towers.tower import taken


@dataclass(frozen=True)
class LabelledBatch:
    """Strong views with what the teacher said of their weak ones."""

    strong_BCHW: Tensor
    mask: PatchMask | None
    """None hides none."""
    label_B: Tensor
    confident_B: Tensor

    def __len__(self) -> int:
        """Images."""
        return len(self.strong_BCHW)

    def split(self, size: int) -> list["LabelledBatch"]:
        """Cut into parts of ``size`` images, the last perhaps smaller."""
        return [
            LabelledBatch(
                self.strong_BCHW[rows],
                None if self.mask is None else self.mask.rows(rows),
                self.label_B[rows],
                self.confident_B[rows],
            )
            for rows in (slice(start, start + size) for start in range(0, len(self), size))
        ]


@dataclass(frozen=True)
class _Whole:
    """What a part needs to know of the whole batch."""

    num_images: int
    num_confident: Tensor
    marginal_K: Tensor | None
    """p̄; None where each rank's part is all of its share, and p̄ is known once theirs are."""
    previous_marginal_K: Tensor | None
    step_index: int


class BatchGradient:
    """Adds a batch's gradient to the student's parameters."""

    def __init__(self, student: Student, config: AdaptConfig, ranks: Ranks) -> None:
        self._student = student
        self._config = config
        self._ranks = ranks
        self._synchronised: Any = torch.compile(student) if config.compiled else student
        if ranks.world_size > 1:
            # Averages the ranks' gradients while they are still being computed.
            self._synchronised = DistributedDataParallel(
                self._synchronised,
                # Without masks the decoder gets no gradient, and other towers may have heads that nobody reads.
                find_unused_parameters=not (config.masking and isinstance(student.tower, ClipVit)),
                gradient_as_bucket_view=True,
            )

    def accumulate(
        self,
        share: LabelledBatch,
        *,
        num_images: int,
        num_confident: Tensor,
        part_size: int,
        in_parts: bool,
        step_index: int,
        previous_marginal_K: Tensor | None,
    ) -> tuple[Losses, Tensor | None]:
        """Run forward and backward over this process's ``share``, ``part_size`` images at a time.

        ``in_parts`` says whether some rank needs more than one part: that costs a second forward pass of the student,
        for p̄, on all of them. ``num_images`` and ``num_confident`` are those of the whole batch;
        ``previous_marginal_K`` is the fairness term's average so far or None. Returns the losses of the whole batch,
        detached, and the average to give next time, if there is one.
        """
        parts = share.split(part_size)
        whole = _Whole(
            num_images=num_images,
            num_confident=num_confident,
            marginal_K=self._marginal(parts, num_images) if in_parts else None,
            previous_marginal_K=previous_marginal_K,
            step_index=step_index,
        )
        outcomes = []
        for part in parts:
            with self._synchronising(last=part is parts[-1]):
                losses, average_K = self._losses(part, whole)
                # Ranks are averaged, and each has only its own samples' part of the loss.
                (losses.total * self._ranks.world_size).backward()
            outcomes.append(losses)
        return self._summed(outcomes), average_K

    def _losses(self, part: LabelledBatch, whole: _Whole) -> tuple[Losses, Tensor | None]:
        """The part's share of the means, and fairness in full with the part's share of its gradient."""
        reconstruction = alignment = None
        fraction = len(part) / whole.num_images
        with autocast(self._config, part.strong_BCHW):
            if part.mask is None:
                logits_BK = self._synchronised(part.strong_BCHW)
            else:
                output = self._synchronised(part.strong_BCHW, part.mask)
                logits_BK = output.logits_BK
                target_BJP = taken(objective.patchify(part.strong_BCHW, self._student.patch_size), part.mask.hidden_BJ)
                reconstruction = objective.reconstruction(output.predicted_BJP, target_BJP) * fraction
                alignment = objective.alignment(output.patch_BJD, output.class_token_BD) * fraction
        fairness, average_K = self._fairness(objective.batch_marginal(logits_BK) * fraction, whole)
        losses = objective.combine(
            self_training=objective.self_training(logits_BK, part.label_B, part.confident_B, whole.num_confident),
            fairness=fairness,
            reconstruction=reconstruction,
            alignment=alignment,
            fairness_weight=self._config.fairness_weight,
            alignment_weight=self._config.alignment_weight,
        )
        return losses, average_K

    def _fairness(self, own_K: Tensor, whole: _Whole) -> tuple[Tensor, Tensor | None]:
        marginal_K = own_K
        if whole.marginal_K is not None:
            marginal_K = whole.marginal_K + (own_K - own_K.detach())  # adds a gradient and no rounding
        elif self._ranks.world_size > 1:
            marginal_K = self._ranks.sum(own_K) + (own_K - own_K.detach())
        if self._config.fairness_form == "running":
            return objective.fairness_running(
                marginal_K,
                whole.previous_marginal_K,
                batch_size=whole.num_images,
                step_index=whole.step_index,
            )
        if len(own_K) < objective.MOVING_AVERAGE_MIN_CLASSES:
            return objective.fairness(marginal_K), None
        return objective.fairness_moving_average(marginal_K, whole.previous_marginal_K)

    @torch.no_grad()
    def _marginal(self, parts: Sequence[LabelledBatch], num_images: int) -> Tensor:
        """p̄ of the whole batch."""
        sums = []
        for part in parts:
            with autocast(self._config, part.strong_BCHW):
                logits_BK = self._student.masked_logits(part.strong_BCHW, part.mask)
            sums.append(objective.batch_marginal(logits_BK) * len(part))
        return self._ranks.sum(torch.stack(sums).sum(dim=0)) / num_images

    def _summed(self, outcomes: Sequence[Losses]) -> Losses:
        shares = [torch.stack([o.self_training, o.reconstruction, o.alignment]) for o in outcomes]
        self_training, reconstruction, alignment = self._ranks.sum(torch.stack(shares).sum(dim=0)).unbind()
        return objective.combine(
            self_training=self_training,
            fairness=outcomes[-1].fairness.detach(),
            reconstruction=reconstruction,
            alignment=alignment,
            fairness_weight=self._config.fairness_weight,
            alignment_weight=self._config.alignment_weight,
        )

    def _synchronising(self, *, last: bool) -> AbstractContextManager[None]:
        if last or self._ranks.world_size == 1:
            return nullcontext()
        without: AbstractContextManager[None] = self._synchronised.no_sync()
        return without


def autocast(config: AdaptConfig, images_BCHW: Tensor) -> torch.autocast:
    """The context in which forward passes run, by the configuration's precision."""
    return torch.autocast(images_BCHW.device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
