"""Hyper-parameters that choose themselves from the model and the unlabeled images; no label is ever looked at.

Shapes: N images, K classes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from must_core.backbone import BaseModel
from must_core.config import AUTO, HYPERPARAMETERS, AdaptConfig, check_hyperparameters
from must_core.errors import InvalidConfig
from must_core.masking import PatchMasker
from must_core.memory import Memory
from must_core.objective import RUNNING_IMAGES_PER_CLASS
from must_core.presets import Preset
from must_core.towers import tower_of

_STEPS_WANTED = 500
_LARGEST_BATCH = 64
_THRESHOLDS = 0.3, 0.7
"""The paper's lowest and highest for ViT-B/16."""


@dataclass(frozen=True)
class Choice:
    """A hyper-parameter's value and why it has it, in a sentence."""

    value: float | str
    reason: str


@dataclass(frozen=True)
class Evidence:
    """What the base model says of the unlabeled images, as far as choices depend on it."""

    num_images: int
    num_classes: int
    flip_disagreement: float
    """Share of images whose zero-shot answer changes when they are mirrored, 0 to 1."""
    crop_disagreement: float = 0.0
    """The same when they are cropped a little, which changes nothing that matters."""
    low_score: float = 1.0
    """A twentieth of zero-shot's answers have a score below it, 0 to 1."""


def check_fit(requested: Mapping[str, Any], base: BaseModel) -> None:
    """Check requested values that depend on the base model; raises `InvalidConfig`."""
    _, patch, image = _geometry(base)
    given = {name: value for name, value in requested.items() if value != AUTO}
    masking = given.get("masking", base.masking.supported)
    if masking and not base.masking.supported:
        raise InvalidConfig(base.masking.reason, param="masking")
    if masking:
        PatchMasker(
            image_size=image,
            patch_size=patch,
            mask_patch_size=given.get("mask_patch_size", patch),
            mask_ratio=given.get("mask_ratio", 0.0),
        )


def choose(
    requested: Mapping[str, Any],
    evidence: Evidence,
    base: BaseModel,
    *,
    seed: int,
    preset: Preset | None = None,
    memory: Memory | None = None,
) -> tuple[AdaptConfig, dict[str, Choice]]:
    """Fill in every hyper-parameter that is missing or ``"auto"``; a value given always wins.

    With a ``preset``, what is missing is the paper's, but for the batch size, and only ``"auto"`` is chosen. Without
    ``memory``, batches are taken whole. Returns the configuration and all choices by name. Raises `InvalidConfig` for
    names that do not exist and values that are out of range or do not fit the images.
    """
    check_hyperparameters(requested)
    choices = {name: Choice(value, "As requested.") for name, value in requested.items()}
    if preset is not None:
        choices = _papers(preset, base) | choices
    choices = {name: choice for name, choice in choices.items() if choice.value != AUTO}
    given = {name: choice.value for name, choice in choices.items()}
    check_fit(given, base)

    def settle(name: str, value: float | str, reason: str) -> Any:
        return choices.setdefault(name, Choice(value, reason)).value

    n = evidence.num_images
    width, patch, image = _geometry(base)
    batch = settle("batch_size", *_batch_size(n))
    if batch > n:
        raise InvalidConfig("batch_size is larger than the number of images.", param="batch_size")
    per_epoch = n // batch
    epochs = settle("epochs", *_epochs(per_epoch))
    total = per_epoch * epochs
    _settle_teacher(settle, total, given)

    settle("learning_rate_per_256", *_learning_rate(width))
    settle("min_learning_rate_per_256", 1e-6, "The paper's value.")
    settle("layer_decay", 0.65, "The paper's value.")
    settle("weight_decay", 0.05, "The paper's value.")
    settle("confidence_threshold", *_threshold(evidence))
    settle("fairness_weight", 1.0, "The paper's most common value.")
    settle("fairness_form", *_fairness_form(batch, evidence.num_classes))
    settle("alignment_weight", 0.2, "The paper's most common value for ViT-B/16.")
    settle("masking", value=base.masking.supported, reason=base.masking.reason)
    settle("mask_patch_size", *_mask_patch(image, patch))
    settle("mask_ratio", 0.1, "The paper's most common value.")
    small = image <= 64
    settle(
        "crop_scale_min",
        0.7 if small else 0.3,
        "Small images have little to cut away." if small else "The paper's value.",
    )
    settle("horizontal_flip", *_flip(evidence))
    settle("rand_augment", "rand-m9-mstd0.5-inc1", "The paper's value.")
    settle("precision", "float32", "Exact; bfloat16 is faster where the processor has it.")
    settle("compiled", value=False, reason="Exact; compiling is faster on GPUs.")
    settle("augment_on", "loader", "The paper's way; the device is faster where loader processes cannot keep up.")

    settle("micro_batch_size", *_micro_batch(batch, memory))
    config = AdaptConfig(seed=seed, **{name: choice.value for name, choice in choices.items()})  # type: ignore[arg-type]
    return config, {name: choices[name] for name in HYPERPARAMETERS}


def _papers(preset: Preset, base: BaseModel) -> dict[str, Choice]:
    values = preset.config(tower_of(base.visual).patch_size).to_dict()
    return {
        name: Choice(values[name], f"The paper's setting for {preset.name}.")  # type: ignore[arg-type]
        for name in HYPERPARAMETERS
        # The paper's towers can all be masked, and its batches fit 16 GPUs.
        if name not in {"batch_size", "micro_batch_size", "masking"}
    }


def _geometry(base: BaseModel) -> tuple[int, int, int]:
    """Width and patch of the tower, 0 where it has none (see `Tower`), and the side of its images in pixels."""
    # Not from the configuration, which names none of these for the towers that timm brings.
    tower = tower_of(base.visual)
    return tower.width, tower.patch_size, base.preprocess.image_size


def _learning_rate(width: int) -> tuple[float, str]:
    if not width:
        return 2e-5, "The paper's most common value for ViT-B/16; this tower has no width to go by."
    rate = max(2e-5, float(f"{2e-3 * min(1.0, (128 / width) ** 2.57):.2g}"))
    return rate, f"Narrower towers bear larger steps; this one is {width} wide."


def _threshold(evidence: Evidence) -> tuple[float, str]:
    low, high = _THRESHOLDS
    threshold = round(min(high, max(low, evidence.low_score)), 2)
    told = f"A twentieth of zero-shot's answers have a score below {evidence.low_score:.2f}"
    if threshold == high:
        return threshold, f"{told}: the highest of the paper's thresholds lets most images teach."
    if threshold == low:
        return threshold, f"{told}; this is the lowest of the paper's thresholds."
    return threshold, f"{told}: the others teach from the start."


def _fairness_form(batch: int, num_classes: int) -> tuple[str, str]:
    if batch < RUNNING_IMAGES_PER_CLASS * num_classes:
        return "running", f"A batch of {batch} is few for {num_classes} classes, so earlier ones are remembered."
    return "paper", "The paper's form: a batch has two images of each class, or more."


def _mask_patch(image: int, patch: int) -> tuple[int, str]:
    if not patch:
        return 32, "The paper's most common value; nothing is masked here."
    patches = image // patch
    if patches % 2 == 0 and patches >= 8:
        return 2 * patch, "Two patches of the model, as in the paper."
    return patch, "One patch of the model: its image has few of them, or they do not pair up."


def _flip(evidence: Evidence) -> tuple[bool, str]:
    flip, crop = evidence.flip_disagreement, evidence.crop_disagreement
    harmless = flip < 0.1 or flip <= 1.5 * crop
    reason = f"Mirroring changes the base model's answer for {flip:.0%} of the images, a small crop for {crop:.0%}."
    return harmless, reason


def _batch_size(num_images: int) -> tuple[int, str]:
    if num_images >= 8 * _LARGEST_BATCH:
        return _LARGEST_BATCH, "The paper's batch for one device."
    return max(2, 2 ** int(math.log2(max(2, num_images / 8)))), "Smaller, so that an epoch has some eight steps."


def _micro_batch(batch: int, memory: Memory | None) -> tuple[int, str]:
    share = batch if memory is None else -(-batch // memory.num_ranks)
    if memory is None or memory.free is None:
        return share, f"All {share} images at once: how much memory is free is not known."
    part = memory.part_of(share)
    free, all_need = _spoken(memory.free), _spoken(memory.needed(share, share))
    if part == share:
        return part, f"All {share} images at once: a step needs about {all_need} of the {free} that are free."
    part_needs = _spoken(memory.needed(share, part))
    return part, f"A step with all {share} images needs about {all_need}, one in parts {part_needs}; {free} are free."


def _spoken(num_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.{1 if num_bytes < 10 * size else 0}f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"


def _epochs(steps_per_epoch: int) -> tuple[int, str]:
    epochs = min(60, max(20, math.ceil(_STEPS_WANTED / steps_per_epoch)))
    return epochs, (
        f"At least {_STEPS_WANTED} steps, within the paper's 20 to 60 epochs; "
        "a guarded run ends sooner when hardly an answer changes any more."
    )


def _settle_teacher(settle: Any, total_steps: int, given: Mapping[str, Any]) -> None:
    """The paper's teacher averages over a sixth of its ImageNet run at the end; ours a tenth of that at the start."""
    horizon = max(2.0, total_steps / 6)
    reason = f"The teacher's memory is a share of the run's {total_steps} steps."
    init = round(min(0.999, 1 - 1 / max(2.0, horizon / 10)), 5)
    final = settle("ema_decay", max(round(min(0.9998, 1 - 1 / horizon), 5), given.get("ema_decay_init", 0.0)), reason)
    settle("ema_decay_init", min(init, final), reason)
    settle("ema_warmup_steps", min(2000, total_steps // 3), reason)
