"""The yardstick of `bench.train`: MUST's step and class head written the plain way, as the paper's text says them.

Attention with its matrix, every token through every block, reconstruction of the whole image, an optimizer and a
teacher update that go tensor by tensor, and numbers read back after every step. The mathematics is must_core's:
`bench.train` starts both from the same weights and prints by how much their losses differ.

Shapes: B images, N patches, W tower width, K classes, D embedding width, T texts.
"""

from collections.abc import Sequence
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from must_core.config import AdaptConfig
from must_core.ema import decay_at, make_teacher
from must_core.masking import PatchMask
from must_core.optim import lr_at, parameter_groups, set_lr
from must_core.student import Student


class PlainAdaptation:
    """Student, teacher and optimizer; `step` is the plain form of `must_core.adaptation.Adaptation.step`."""

    def __init__(self, student: Student, config: AdaptConfig, *, total_steps: int) -> None:
        self.student = student
        self.teacher = make_teacher(student)
        self.config = config
        self.total_steps = total_steps
        self.step_index = 0
        groups = parameter_groups(student, layer_decay=config.layer_decay, weight_decay=config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, foreach=False, fused=False)

    def step(self, weak_BCHW: Tensor, strong_BCHW: Tensor, mask: PatchMask) -> dict[str, float]:
        """One step; returns the losses."""
        config = self.config
        set_lr(
            self.optimizer,
            lr_at(
                self.step_index,
                total_steps=self.total_steps,
                peak=config.learning_rate,
                final=config.min_learning_rate,
            ),
        )
        with torch.autocast(weak_BCHW.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            score_B, label_B = self.label(weak_BCHW)
            losses = self.losses(strong_BCHW, mask.mask_BN, label_B, score_B > config.confidence_threshold)
        self.optimizer.zero_grad()
        self.backward(losses["total"])
        self.optimizer.step()
        decay = decay_at(
            self.step_index, init=config.ema_decay_init, final=config.ema_decay, warmup_steps=config.ema_warmup_steps
        )
        self.update_teacher(decay)
        self.step_index += 1
        return {name: value.item() for name, value in losses.items()}

    @torch.no_grad()
    def label(self, weak_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's score and label of each image."""
        class_token_BD, _ = _features(self.teacher, weak_BCHW, None)
        logits_BK = self.teacher.logit_scale * class_token_BD @ self.teacher.classifier
        score_B, label_B = logits_BK.softmax(dim=-1).max(dim=-1)
        return score_B, label_B

    def losses(self, strong_BCHW: Tensor, mask_BN: Tensor, label_B: Tensor, confident_B: Tensor) -> dict[str, Tensor]:
        """The four losses and their sum."""
        student, config = self.student, self.config
        class_token_BD, patches_BNW = _features(student, strong_BCHW, mask_BN)
        logits_BK = student.logit_scale * class_token_BD @ student.classifier
        probabilities_BK = logits_BK.softmax(dim=-1)

        self_training = logits_BK.sum() * 0
        if confident_B.any():
            self_training = F.cross_entropy(logits_BK[confident_B], label_B[confident_B])
        fairness = -probabilities_BK.mean(dim=0).log().mean()

        normed_BNW = student.ln_patch(patches_BNW)
        b, _, height, width = strong_BCHW.shape
        side = student.patch_size
        rows, columns = height // side, width // side
        map_BPRC = student.decoder(normed_BNW).transpose(1, 2).reshape(b, -1, rows, columns)
        rebuilt_BCHW = F.pixel_shuffle(map_BPRC, side)
        pixels_BHW = mask_BN.view(b, rows, columns).repeat_interleave(side, 1).repeat_interleave(side, 2)
        error_BCHW = (rebuilt_BCHW - strong_BCHW).abs() * pixels_BHW[:, None]
        reconstruction = error_BCHW.sum() / pixels_BHW.sum() / 3

        projected_BND = F.normalize(normed_BNW @ student.visual.proj, dim=-1)
        distance_BN = (projected_BND - class_token_BD[:, None]).square().sum(dim=-1)
        alignment = (distance_BN * mask_BN).sum() / mask_BN.sum()

        total = self_training + config.fairness_weight * fairness + reconstruction + config.alignment_weight * alignment
        return {
            "total": total,
            "self_training": self_training,
            "fairness": fairness,
            "reconstruction": reconstruction,
            "alignment": alignment,
        }

    def backward(self, total: Tensor) -> None:
        """Gradients of the sum."""
        total.backward()

    @torch.no_grad()
    def update_teacher(self, decay: float) -> None:
        """The moving average, one tensor after another."""
        source = self.student.state_dict()
        for name, entry in self.teacher.state_dict().items():
            entry.mul_(decay).add_(source[name], alpha=1 - decay)


def _features(model: Student, images_BCHW: Tensor, mask_BN: Tensor | None) -> tuple[Tensor, Tensor]:
    """Unit class tokens ``features_BD`` and patch tokens ``patches_BNW``."""
    visual: Any = model.visual
    patches_BNW = visual.conv1(images_BCHW).flatten(2).transpose(1, 2)
    if mask_BN is not None:
        patches_BNW = torch.where(mask_BN[..., None], model.mask_token.to(patches_BNW.dtype), patches_BNW)
    class_token_B1W = visual.class_embedding.expand(len(images_BCHW), 1, -1).to(patches_BNW.dtype)
    tokens_BLW = torch.cat([class_token_B1W, patches_BNW], dim=1)
    tokens_BLW = visual.ln_pre(tokens_BLW + visual.positional_embedding.to(tokens_BLW.dtype))
    for block in visual.transformer.resblocks:
        tokens_BLW = tokens_BLW + _attention(block.attn, block.ln_1(tokens_BLW))
        tokens_BLW = tokens_BLW + block.mlp(block.ln_2(tokens_BLW))
    features_BD = F.normalize(visual.ln_post(tokens_BLW[:, 0]) @ visual.proj, dim=-1)
    return features_BD, tokens_BLW[:, 1:]


def _attention(attention: Any, tokens_BLW: Tensor) -> Tensor:
    b, length, width = tokens_BLW.shape
    heads = attention.num_heads
    projected = F.linear(tokens_BLW, attention.in_proj_weight, attention.in_proj_bias)
    q_BHLE, k_BHLE, v_BHLE = (
        part.reshape(b, length, heads, width // heads).transpose(1, 2) for part in projected.chunk(3, dim=-1)
    )
    weights_BHLL = (q_BHLE * (width // heads) ** -0.5 @ k_BHLE.transpose(-2, -1)).softmax(dim=-1)
    mixed: Tensor = attention.out_proj((weights_BHLL @ v_BHLE).transpose(1, 2).reshape(b, length, width))
    return mixed


@torch.no_grad()
def plain_class_weights(model: Any, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """``class_weights_DK`` as CLIP's own example builds them: class by class, every prompt padded to 77 tokens."""
    columns = []
    for name in class_names:
        tokens_TL = open_clip.tokenize([template.replace("{}", name) for template in templates])
        mean_D = F.normalize(model.encode_text(tokens_TL), dim=-1).mean(dim=0)
        columns.append(F.normalize(mean_D, dim=-1))
    return torch.stack(columns, dim=1)
