"""What a step needs, as estimated and as it was: ``peak_main JSON`` writes both, in bytes, for each tower in it.

JSON is a list of ``[vision_cfg, batch size, micro batch size or 0]``, from small to large: no process's peak falls.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from must_core.adaptation import Adaptation
from must_core.backbone import build_visual
from must_core.config import AdaptConfig
from must_core.masking import PatchMasker
from must_core.memory import memory_of
from must_core.student import Student


def peak_bytes() -> int:
    """Of this process so far; ``getrusage`` would start from what the parent process had."""
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def measured(vision: dict[str, Any], batch_size: int, micro_batch_size: int) -> tuple[int, int]:
    """Estimate, then two steps; what comes before them, a run has behind it when it asks."""
    side, patch = vision["image_size"], vision["patch_size"]
    visual = build_visual({"embed_dim": 64, "vision_cfg": vision, "quick_gelu": True})
    student = Student(visual, F.normalize(torch.randn(64, 10), dim=0), logit_scale=30.0)
    generator = torch.Generator().manual_seed(0)
    weak_BCHW, strong_BCHW = torch.randn(2, batch_size, 3, side, side, generator=generator)
    masker = PatchMasker(image_size=side, patch_size=patch, mask_patch_size=patch, mask_ratio=0.3)
    mask = masker.sample(batch_size, generator)
    memory_of(student, side, bfloat16=False)
    gc.collect()
    before = _status("VmRSS") - sum(parameter.nbytes for parameter in student.parameters())
    estimate = memory_of(student, side, bfloat16=False).needed(batch_size, micro_batch_size or batch_size)
    config = AdaptConfig(batch_size=batch_size, mask_patch_size=patch, confidence_threshold=0.0)
    run = Adaptation(student, config, steps_per_epoch=10, micro_batch_size=micro_batch_size)
    for _ in range(2):
        run.step(weak_BCHW, strong_BCHW, mask)
    return estimate, peak_bytes() - before


def main() -> None:
    """Write a pair a line."""
    torch.set_num_threads(1)
    for tower in json.loads(sys.argv[1]):
        sys.stdout.write("{} {}\n".format(*measured(*tower)))


if __name__ == "__main__":
    main()
