"""The state of one adaptation and its one step, in the paper's order.

Shapes: B images of this process, K classes.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from must_core.config import AdaptConfig
from must_core.ema import TeacherUpdate, decay_at, make_teacher
from must_core.gradient import BatchGradient, LabelledBatch, autocast
from must_core.masking import PatchMask
from must_core.objective import Losses
from must_core.optim import lr_at, make_optimizer, set_lr
from must_core.parallel import SINGLE, Ranks
from must_core.student import Student

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """What one step computed; tensors stay on the device so that nobody waits for them.

    Losses and ``confident_ratio`` are the whole batch's; scores and labels those of this process's share of it.
    """

    losses: Losses
    teacher_score_B: Tensor
    pseudo_label_B: Tensor
    confident_B: Tensor
    confident_ratio: Tensor
    learning_rate: float
    ema_decay: float


class Adaptation:
    """Student, EMA teacher, optimizer and position of a run; `step` does one MUST step (algorithm 1 of the paper).

    With several ``ranks`` each process holds all of it and works on its share of every batch. The numbers are those
    of one process with the whole batch, up to rounding: fairness and the mean over confident samples span the ranks.

    ``micro_batch_size`` splits a process's share where memory is short; the student then runs forward twice, because
    the fairness term of the first part depends on the last.
    """

    def __init__(
        self,
        student: Student,
        config: AdaptConfig,
        *,
        steps_per_epoch: int,
        ranks: Ranks = SINGLE,
        micro_batch_size: int | None = None,
    ) -> None:
        # Evaluation mode while it trains: dropout and batch statistics would make a step depend on how its batch is
        # split, and on more than seed and step. CLIP's own transformers have neither.
        self.student = student.eval()
        self.ranks = ranks
        self._gradient = BatchGradient(student, config, ranks)  # gives all ranks the first one's weights
        self.teacher = make_teacher(student)
        self._ask_teacher: Any = torch.compile(self.teacher) if config.compiled else self.teacher
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = steps_per_epoch * config.epochs
        self.step_index = 0
        """Steps done."""
        self.micro_batch_size = micro_batch_size
        self.marginal_K: Tensor | None = None
        """Average of the fairness term: the paper's for many classes, within an epoch, or the running one."""
        self.optimizer = make_optimizer(student, layer_decay=config.layer_decay, weight_decay=config.weight_decay)
        self._update_teacher = TeacherUpdate(self.teacher, student)
        self._memory_tried = ranks.world_size == 1

    def step(self, weak_BCHW: Tensor, strong_BCHW: Tensor, mask: PatchMask | None) -> StepResult:
        """Do one step on two views of a batch; ``mask`` hides patches of the strong one, None hides none.

        There must be a mask at every step or at none, as the configuration's ``masking`` says. With several ranks,
        each gives its share of the batch (`Ranks.share_of`).
        """
        config = self.config
        if not self._memory_tried:
            self._try_memory(weak_BCHW, strong_BCHW, mask)

        # Schedule.
        learning_rate = lr_at(
            self.step_index,
            total_steps=self.total_steps,
            peak=config.learning_rate,
            final=config.min_learning_rate,
        )
        set_lr(self.optimizer, learning_rate)
        ema_decay = decay_at(
            self.step_index,
            init=config.ema_decay_init,
            final=config.ema_decay,
            warmup_steps=config.ema_warmup_steps,
        )

        # Teacher labels: the weak view, unmasked.
        score_B, label_B = self._within_memory(self._pseudo_label, weak_BCHW)
        confident_B = score_B > config.confidence_threshold
        num_confident = self.ranks.sum(confident_B.sum())

        # Student loss: the strong view, masked. Backward.
        batch = LabelledBatch(strong_BCHW, mask, label_B, confident_B)
        losses = self._within_memory(self._learn, batch, num_confident)

        # Optimizer step.
        self.optimizer.step()

        # Teacher follows.
        self._update_teacher.apply(ema_decay)

        self.step_index += 1
        return StepResult(
            losses=losses,
            teacher_score_B=score_B,
            pseudo_label_B=label_B,
            confident_B=confident_B,
            confident_ratio=num_confident / config.batch_size,
            learning_rate=learning_rate,
            ema_decay=ema_decay,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes from step to step, for a checkpoint."""
        state = {f"student/{name}": tensor for name, tensor in self.student.state_dict().items()}
        state |= {f"teacher/{name}": tensor for name, tensor in self.teacher.state_dict().items()}
        for name, parameter in self.student.named_parameters():
            for key, tensor in self.optimizer.state[parameter].items():
                state[f"optimizer/{key}/{name}"] = tensor
        if self.marginal_K is not None:
            state["marginal"] = self.marginal_K
        return state

    def load_tensors(self, state: dict[str, Tensor], *, step_index: int) -> None:
        """Go back to the state that `tensors` returned after ``step_index`` steps; `KeyError` for a part of it."""
        for prefix, module in (("student", self.student), ("teacher", self.teacher)):
            module.load_state_dict(_below(state, prefix))
        for name, parameter in self.student.named_parameters():
            for key, tensor in self.optimizer.state[parameter].items():
                tensor.copy_(state[f"optimizer/{key}/{name}"])
        marginal_K = state.get("marginal")
        self.marginal_K = None if marginal_K is None else marginal_K.to(self.student.classifier.device)
        self.step_index = step_index

    def end_training(self) -> None:
        """Give back the memory of gradients and moments; student and teacher stay, and no step can follow."""
        self.optimizer.state.clear()
        self._free()

    def _pseudo_label(self, weak_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(), autocast(self.config, weak_BCHW):
            logits_BK = torch.cat(
                [self._ask_teacher(part) for part in weak_BCHW.split(self._part_size(len(weak_BCHW)))]
            )
        score_B, label_B = logits_BK.softmax(dim=-1).max(dim=-1)
        return score_B, label_B

    def _learn(self, batch: LabelledBatch, num_confident: Tensor) -> Losses:
        self.optimizer.zero_grad(set_to_none=True)
        starts_anew = self.config.fairness_form == "paper" and self.step_index % self.steps_per_epoch == 0
        losses, self.marginal_K = self._gradient.accumulate(
            batch,
            num_images=self.config.batch_size,
            num_confident=num_confident,
            part_size=self._part_size(len(batch)),
            in_parts=self._part_size(largest := self.ranks.largest_share(self.config.batch_size)) < largest,
            step_index=self.step_index,
            previous_marginal_K=None if starts_anew else self.marginal_K,
        )
        return losses

    def _part_size(self, num_images: int) -> int:
        return min(self.micro_batch_size or num_images, num_images)

    def _within_memory(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do a part of a step that can be done again; where the GPU's memory is too small, in smaller parts.

        The smaller size stays for the rest of the run. Ranks cannot step down alone (see `_try_memory`), so with
        several of them the error is passed on.
        """
        while True:
            try:
                return work(*args, **kwargs)
            except torch.OutOfMemoryError:
                if self.ranks.world_size > 1 or not self._step_down():
                    raise
            # Outside the handler: the exception's traceback keeps the failed attempt's tensors.
            self._free()

    def _try_memory(self, weak_BCHW: Tensor, strong_BCHW: Tensor, mask: PatchMask | None) -> None:
        """Before the first of several ranks' steps: find the parts that fit all of them, each trying by itself.

        A rank that ran out of memory in the middle of a step would leave the others waiting for its numbers. Every
        step needs the memory of the first.
        """
        alone = BatchGradient(self.student, self.config, SINGLE)
        fits = False
        while not fits:
            try:
                _, label_B = self._pseudo_label(weak_BCHW)
                batch = LabelledBatch(strong_BCHW, mask, label_B, torch.ones_like(label_B, dtype=torch.bool))
                alone.accumulate(
                    batch,
                    num_images=len(batch),
                    num_confident=batch.confident_B.sum(),
                    part_size=self._part_size(len(batch)),
                    in_parts=self._part_size(len(batch)) < len(batch),
                    step_index=0,
                    previous_marginal_K=None,
                )
                failed = False
            except torch.OutOfMemoryError:
                failed = True
            self._free()
            (some_failed,) = self.ranks.any(failed)
            fits = not some_failed
            if some_failed and not self._step_down():
                raise torch.OutOfMemoryError("not even one image at a time fits the memory of every rank")
        self._memory_tried = True

    def _step_down(self) -> bool:
        """Halve the parts; False when they are single images."""
        size = self._part_size(self.ranks.largest_share(self.config.batch_size))
        if size == 1:
            return False
        self.micro_batch_size = size // 2
        logger.warning("out of GPU memory: %d images at a time from here on", self.micro_batch_size)
        return True

    def _free(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}/"): t for name, t in state.items() if name.startswith(f"{prefix}/")}
