"""The state of one adaptation and its one step, in the paper's order.

Shapes: B images, K classes, N patches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from must_core import objective
from must_core.config import AdaptConfig
from must_core.ema import TeacherUpdate, decay_at, make_teacher
from must_core.objective import Losses
from must_core.optim import lr_at, make_optimizer, set_lr
from must_core.student import Student


@dataclass(frozen=True)
class StepResult:
    """What one step computed; tensors stay on the device so that nobody waits for them."""

    losses: Losses
    teacher_score_B: Tensor
    pseudo_label_B: Tensor
    confident_B: Tensor
    learning_rate: float
    ema_decay: float


class Adaptation:
    """Student, EMA teacher, optimizer and position of a run; `step` does one MUST step (algorithm 1 of the paper)."""

    def __init__(self, student: Student, config: AdaptConfig, *, steps_per_epoch: int) -> None:
        self.student = student
        self.teacher = make_teacher(student)
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = steps_per_epoch * config.epochs
        self.step_index = 0
        """Steps done."""
        self.marginal_K: Tensor | None = None
        """Moving average of the fairness term for many classes, within an epoch."""
        self.optimizer = make_optimizer(student, layer_decay=config.layer_decay, weight_decay=config.weight_decay)
        self._update_teacher = TeacherUpdate(self.teacher, student)

    def step(self, weak_BCHW: Tensor, strong_BCHW: Tensor, mask_BN: Tensor | None) -> StepResult:
        """Do one step on two views of a batch; ``mask_BN`` hides patches of the strong one, None hides none."""
        config = self.config

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
        with torch.inference_mode():
            teacher_logits_BK = self.teacher(weak_BCHW)
        score_B, label_B = teacher_logits_BK.softmax(dim=-1).max(dim=-1)
        confident_B = score_B > config.confidence_threshold

        # Student loss: the strong view, masked.
        self.student.train()
        losses = self._losses(strong_BCHW, mask_BN, label_B, confident_B)

        # Backward, optimizer step.
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        self.optimizer.step()

        # Teacher follows.
        self._update_teacher.apply(ema_decay)

        self.step_index += 1
        return StepResult(
            losses=losses,
            teacher_score_B=score_B,
            pseudo_label_B=label_B,
            confident_B=confident_B,
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
        """Go back to the state that `tensors` returned after ``step_index`` steps."""
        for prefix, module in (("student", self.student), ("teacher", self.teacher)):
            module.load_state_dict(_below(state, prefix))
        for key in ("step", "exp_avg", "exp_avg_sq"):
            of_parameter = _below(state, f"optimizer/{key}")
            for name, parameter in self.student.named_parameters():
                if name in of_parameter:
                    # The fused kernel wants its step counts beside the parameters, too.
                    self.optimizer.state[parameter][key] = of_parameter[name].to(parameter.device)
        marginal_K = state.get("marginal")
        self.marginal_K = None if marginal_K is None else marginal_K.to(self.student.classifier.device)
        self.step_index = step_index

    def _losses(self, strong_BCHW: Tensor, mask_BN: Tensor | None, label_B: Tensor, confident_B: Tensor) -> Losses:
        reconstruction = alignment = None
        if mask_BN is None:
            logits_BK = self.student(strong_BCHW)
        else:
            output = self.student.forward_masked(strong_BCHW, mask_BN)
            logits_BK = output.logits_BK
            target_MP = objective.patchify(strong_BCHW, self.student.patch_size)[mask_BN]
            reconstruction = objective.reconstruction(output.predicted_MP, target_MP)
            alignment = objective.alignment(output.patch_MD, output.class_token_MD)
        return objective.combine(
            self_training=objective.self_training(logits_BK, label_B, confident_B),
            fairness=self._fairness(logits_BK),
            reconstruction=reconstruction,
            alignment=alignment,
            fairness_weight=self.config.fairness_weight,
            alignment_weight=self.config.alignment_weight,
        )

    def _fairness(self, logits_BK: Tensor) -> Tensor:
        marginal_K = objective.batch_marginal(logits_BK)
        if logits_BK.shape[1] < objective.MOVING_AVERAGE_MIN_CLASSES:
            return objective.fairness(marginal_K)
        first_of_epoch = self.step_index % self.steps_per_epoch == 0
        loss, self.marginal_K = objective.fairness_moving_average(
            marginal_K, None if first_of_epoch else self.marginal_K
        )
        return loss


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}/"): t for name, t in state.items() if name.startswith(f"{prefix}/")}
