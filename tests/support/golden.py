"""Recorded runs of the original MUST implementation, and the replay of ours over the same inputs.

See tests/must_core/golden/README.md for the format.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from must_core.adaptation import Adaptation, StepResult
from must_core.backbone import build_visual
from must_core.config import AdaptConfig
from must_core.masking import PatchMask
from must_core.student import Student

FOLDER = Path(__file__).parent.parent / "must_core" / "golden"

OUR_NAMES = {
    "visual.mask_token_embedding": "mask_token",
    "visual.ln_patch.weight": "ln_patch.weight",
    "visual.ln_patch.bias": "ln_patch.bias",
    "visual.decoder.0.weight": "decoder.weight",
    "visual.decoder.0.bias": "decoder.bias",
    "visual.classifier": "classifier",
}


@dataclass(frozen=True)
class Case:
    """One recorded run."""

    meta: dict[str, Any]
    arrays: dict[str, Any]

    @classmethod
    def load(cls, name: str) -> "Case":
        with np.load(FOLDER / f"{name}.npz") as archive:
            arrays = {key: archive[key] for key in archive.files}
        return cls(json.loads((FOLDER / f"{name}.json").read_text()), arrays)

    @property
    def config(self) -> AdaptConfig:
        h = self.meta["hyperparameters"]
        return AdaptConfig(
            epochs=h["epochs"],
            batch_size=self.meta["batch_size"],
            learning_rate_per_256=h["base_lr"],
            min_learning_rate_per_256=h["min_lr"],
            layer_decay=h["layer_decay"],
            weight_decay=h["weight_decay"],
            confidence_threshold=h["conf_threshold"],
            fairness_weight=h["w_fair"],
            alignment_weight=h["w_align"],
            masking=self.meta["masked"],
            mask_patch_size=h["mask_patch_size"],
            mask_ratio=h["mask_ratio"],
            ema_decay_init=h["ema_decay_init"],
            ema_decay=h["ema_decay"],
            ema_warmup_steps=h["ema_warmup_steps"],
        )

    def weights(self, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Weights under our names; what the unmasked run never recorded is missing."""
        named = {}
        for key, value in self.arrays.items():
            if key.startswith(f"{prefix}/"):
                theirs = key.removeprefix(f"{prefix}/")
                ours = OUR_NAMES.get(theirs, theirs)
                tensor = torch.from_numpy(value).to(dtype)
                named[ours] = tensor.flatten(1) if ours == "decoder.weight" else tensor
        return named

    def student(self, dtype: torch.dtype) -> Student:
        b = self.meta["backbone"]
        vision = {k: b[k] for k in ("width", "layers", "head_width", "patch_size", "image_size", "mlp_ratio")}
        visual = build_visual({"embed_dim": b["embed_dim"], "vision_cfg": vision, "quick_gelu": b["quick_gelu"]})
        initial = self.weights("init", dtype)
        student = Student(visual, initial["classifier"], logit_scale=100.0).to(dtype)
        missing, unexpected = student.load_state_dict(initial, strict=False)
        assert not unexpected
        assert self.meta["masked"] == (not missing)
        return student


def replay(case: Case, dtype: torch.dtype, config: AdaptConfig | None = None) -> tuple[Adaptation, list[StepResult]]:
    """Run every recorded step with our code."""
    run = Adaptation(case.student(dtype), config or case.config, steps_per_epoch=case.meta["steps_per_epoch"])
    results = []
    for i in range(run.total_steps):
        weak = torch.from_numpy(case.arrays[f"step{i:02}/weak"]).to(dtype)
        strong = torch.from_numpy(case.arrays[f"step{i:02}/strong"]).to(dtype)
        mask = None
        if case.meta["masked"]:
            mask = PatchMask.of(torch.from_numpy(case.arrays[f"step{i:02}/mask"]).bool().flatten(1))
        results.append(run.step(weak, strong, mask))
    return run, results


def without_key_bias(name: str, tensor: Tensor) -> Tensor:
    """Leave out attention's key bias: its true gradient is zero and AdamW turns rounding into steps."""
    if not name.endswith("attn.in_proj_bias"):
        return tensor
    query, _key, value = tensor.chunk(3)
    return torch.cat([query, value])


def differences(case: Case, run: Adaptation, results: list[StepResult]) -> dict[str, float]:
    """Largest relative difference of each loss, and absolute difference of weights and teacher logits, in float64."""
    found: dict[str, float] = {}
    for recorded, result in zip(case.meta["steps_fp64"], results, strict=True):
        ours = {
            name: float(getattr(result.losses, name).detach())
            for name in ("total", "self_training", "fairness", "reconstruction", "alignment")
        }
        ours |= {
            "confident_ratio": float(result.confident_B.double().mean()),
            "ema_decay": result.ema_decay,
            "lr_max": result.learning_rate,
        }
        for name, value in ours.items():
            if name in recorded:
                error = abs(value - recorded[name]) / max(abs(recorded[name]), 1e-300)
                found[name] = max(found.get(name, 0.0), error)
    for prefix, module in (("student", run.student), ("teacher", run.teacher)):
        state = module.state_dict()
        for name, expected in case.weights(f"{prefix}_fp64", torch.float64).items():
            error = (without_key_bias(name, state[name]) - without_key_bias(name, expected)).abs().max()
            found[prefix] = max(found.get(prefix, 0.0), float(error))
    with torch.inference_mode():
        logits = run.teacher(torch.from_numpy(case.arrays["eval/images"]).double())
    found["logits"] = float((logits - torch.from_numpy(case.arrays["eval/logits_teacher_fp64"])).abs().max())
    return found
