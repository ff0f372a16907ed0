"""Short runs on made-up views of a tiny tower, the same wherever they are made."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from must_core.adaptation import Adaptation, StepResult
from must_core.backbone import build_visual
from must_core.config import AdaptConfig
from must_core.masking import PatchMask, PatchMasker
from must_core.student import Student

BATCH = 8
STEPS = 20
STEPS_PER_EPOCH = 10
CONFIG = AdaptConfig(
    epochs=2, batch_size=BATCH, learning_rate_per_256=1e-2, mask_patch_size=8, confidence_threshold=0.15,
    ema_decay_init=0.5, ema_decay=0.9, ema_warmup_steps=4,
)  # fmt: skip


def make_student(num_classes: int = 10, *, layers: int = 3, dtype: torch.dtype = torch.float64) -> Student:
    """A tower of 16 patches with random weights, and random class weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vision = {"image_size": 32, "layers": layers, "width": 32, "head_width": 16, "patch_size": 8}
        visual = build_visual({"embed_dim": 16, "vision_cfg": vision, "quick_gelu": True})
        weights_DK = F.normalize(torch.randn(16, num_classes), dim=0)
        return Student(visual, weights_DK, logit_scale=30.0).to(dtype)


def batch(step: int, *, size: int = BATCH, mask_patch_size: int = 8) -> tuple[Tensor, Tensor, PatchMask]:
    """Weak views, strong views and a mask of a step."""
    generator = torch.Generator().manual_seed(step)
    weak_BCHW = torch.randn(size, 3, 32, 32, generator=generator, dtype=torch.float64)
    strong_BCHW = weak_BCHW + 0.3 * torch.randn(weak_BCHW.shape, generator=generator, dtype=torch.float64)
    masker = PatchMasker(image_size=32, patch_size=8, mask_patch_size=mask_patch_size, mask_ratio=0.3)
    return weak_BCHW, strong_BCHW, masker.sample(size, generator)


def train(run: Adaptation, *, steps: int = STEPS, masked: bool = True) -> list[StepResult]:
    """Do this process's share of so many steps."""
    share = run.ranks.share_of(run.config.batch_size)
    results = []
    for step in range(steps):
        weak_BCHW, strong_BCHW, mask = batch(
            step, size=run.config.batch_size, mask_patch_size=run.config.mask_patch_size
        )
        weak_BCHW, strong_BCHW = (views.to(run.student.classifier.dtype) for views in (weak_BCHW, strong_BCHW))
        results.append(run.step(weak_BCHW[share], strong_BCHW[share], mask.rows(share) if masked else None))
    return results


def make_run(
    config: AdaptConfig = CONFIG, *, num_classes: int = 10, dtype: torch.dtype = torch.float64, **options: Any
) -> Adaptation:
    """A run over `make_student`."""
    return Adaptation(make_student(num_classes, dtype=dtype), config, steps_per_epoch=STEPS_PER_EPOCH, **options)


def history(results: list[StepResult]) -> list[list[float]]:
    """The losses and the confident share, step by step."""
    return [[float(value) for value in (*vars(r.losses).values(), r.confident_ratio)] for r in results]
