"""Hyper-parameters of one adaptation, in the paper's order; units are in the names."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from must_core.errors import InvalidConfig


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Every value that decides the result of a run, given the base model, the classes and the images.

    The defaults are the paper's ImageNet setting for ViT-B/16 (Table 7); ``must_core.presets`` has the others.
    Raises `InvalidConfig` when a value is out of range.
    """

    seed: int = 0
    """Crops, masks and the order of the images are functions of this and the step alone."""

    epochs: int = 30
    """Passes over the images; each drops its last incomplete batch."""

    batch_size: int = 64
    """Images per optimizer step."""

    micro_batch_size: int = 0
    """Of those, how many a process takes through the towers at once; 0, or more than there are, takes all. Parts need
    less memory and more time, and give the same up to rounding."""

    learning_rate_per_256: float = 2e-5
    """Peak learning rate of the topmost parameter group for a batch of 256; scales linearly with the batch."""

    min_learning_rate_per_256: float = 1e-6
    """Where the cosine ends, likewise per 256 images."""

    layer_decay: float = 0.65
    """Learning rate of each transformer block relative to the one above it. 1 turns it off."""

    weight_decay: float = 0.05
    """AdamW's decoupled decay, for tensors of two or more dimensions."""

    confidence_threshold: float = 0.7
    """τ: a pseudo-label counts when the teacher's score is strictly above it."""

    fairness_weight: float = 1.0
    """w_fair."""

    fairness_form: str = "paper"
    """What p̄ is a mean over: ``paper``, the batch, and from 512 classes on half of it the batch before; or
    ``running``, as many batches as make two images of each class."""

    alignment_weight: float = 0.2
    """w_align."""

    masking: bool = True
    """Mask patches of the strong view and learn from reconstructing and aligning them."""

    mask_patch_size: int = 32
    """Side of a mask block in pixels; a multiple of the model's patch and a divisor of its image."""

    mask_ratio: float = 0.3
    """Share of mask blocks hidden in each image, rounded up to a whole block."""

    ema_decay_init: float = 0.999
    """The teacher's decay at the first step."""

    ema_decay: float = 0.9998
    """The teacher's decay after the ramp."""

    ema_warmup_steps: int = 2000
    """Length of the linear ramp between the two."""

    crop_scale_min: float = 0.3
    """Smallest share of the image's area that the strong view's crop may keep."""

    horizontal_flip: bool = True
    """Mirror half of the strong views. Wrong for digits, text and traffic signs."""

    rand_augment: str = "rand-m9-mstd0.5-inc1"
    """timm's RandAugment of the strong view; empty for none."""

    precision: str = "float32"
    """Of the forward passes: ``float32`` is exact, ``bfloat16`` is faster and moves some samples across τ. Weights,
    class head, optimizer and teacher update are float32 in both."""

    compiled: bool = False
    """Let torch.compile translate the student's and the teacher's passes. It takes a minute at the start, pays on GPUs
    and rounds differently."""

    augment_on: str = "loader"
    """Where strong views are made: ``loader``, by timm on Pillow images in the loader processes, as the paper does; or
    ``device``, a batch at a time beside the model, from the same distribution, with pixels that differ a little."""

    def __post_init__(self) -> None:
        """Check each value against its range, and the pairs that must agree."""
        for f in fields(self):
            _check_range(f.name, getattr(self, f.name))
        _check_teacher(self.ema_decay_init, self.ema_decay)

    @property
    def learning_rate(self) -> float:
        """Peak learning rate at this batch size."""
        return self.learning_rate_per_256 * self.batch_size / 256

    @property
    def min_learning_rate(self) -> float:
        """Last learning rate at this batch size."""
        return self.min_learning_rate_per_256 * self.batch_size / 256

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """sha256 of every value but ``micro_batch_size``, which a run may change when it goes on elsewhere.

        Two runs with the same digest, model, classes and images do the same, up to rounding where their parts differ.
        """
        values = self.to_dict()
        del values["micro_batch_size"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# Lowest and highest value, both allowed.
_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "epochs": (1, 10_000),
    "batch_size": (2, 65_536),
    "micro_batch_size": (0, 65_536),
    "learning_rate_per_256": (1e-12, 10),
    "min_learning_rate_per_256": (0, 10),
    "layer_decay": (0.01, 1),
    "weight_decay": (0, 10),
    "confidence_threshold": (0, 1),
    "fairness_weight": (0, 1000),
    "alignment_weight": (0, 1000),
    "mask_patch_size": (1, 4096),
    "mask_ratio": (0, 1),
    "ema_decay_init": (0, 1),
    "ema_decay": (0, 1),
    "ema_warmup_steps": (0, 10**9),
    "crop_scale_min": (0.01, 1),
}

_RAND_AUGMENT = re.compile(r"rand-m(\d|10)(-mstd[01](\.\d+)?|-mstd2|-n[1-5]|-inc[01])*")

PRECISIONS = ("float32", "bfloat16")

_WORDS: dict[str, tuple[str, ...]] = {
    "fairness_form": ("paper", "running"),
    "precision": PRECISIONS,
    "augment_on": ("loader", "device"),
}

HYPERPARAMETERS: tuple[str, ...] = tuple(f.name for f in fields(AdaptConfig) if f.name != "seed")
"""Names a user may set; the seed is given beside them."""

_TYPE_NAMES: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}

AUTO = "auto"
"""In the place of a value: choose it from the data."""


def check_hyperparameters(requested: Mapping[str, object]) -> None:
    """Check what can be checked of each value by itself; ``"auto"`` is always right.

    Raises `InvalidConfig` ``unknown_field``, ``invalid_type``, ``out_of_range`` or ``invalid_value``. A whole number
    will do for a fractional one, and no other type for another.
    """
    types = {f.name: f.type for f in fields(AdaptConfig)}
    for name, value in requested.items():
        if name not in HYPERPARAMETERS:
            raise InvalidConfig(
                f"There is no such hyper-parameter; there are {', '.join(HYPERPARAMETERS)}.",
                code="unknown_field",
                param="hyperparameters",
            )
        if value == AUTO:
            continue
        wanted = types[name]
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise InvalidConfig(f"{name} is {_TYPE_NAMES[wanted]}.", code="invalid_type", param=name)
        _check_range(name, value)
    _check_teacher(requested.get("ema_decay_init", AUTO), requested.get("ema_decay", AUTO))


def _check_teacher(init: Any, final: Any) -> None:
    if AUTO not in (init, final) and init > final:
        raise InvalidConfig("ema_decay_init must not be above ema_decay.", param="ema_decay_init")


def _check_range(name: str, value: Any) -> None:
    if name == "rand_augment":
        if value and not _RAND_AUGMENT.fullmatch(value):
            raise InvalidConfig(
                "rand_augment is rand-m0 to rand-m10, optionally with -mstd0 to -mstd2, -n1 to -n5, -inc0 or -inc1.",
                code="invalid_value",
                param=name,
            )
        return
    if name in _WORDS and value not in _WORDS[name]:
        raise InvalidConfig(f"{name} is {' or '.join(_WORDS[name])}.", code="invalid_value", param=name)
    if name in _RANGES:
        low, high = _RANGES[name]
        if not low <= value <= high:  # neither NaN nor a number of any size passes
            raise InvalidConfig(f"{name} must be from {low} to {high}.", code="out_of_range", param=name)
