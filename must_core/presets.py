"""The paper's settings by name (its Table 7), for ViT-B/16 and ViT-L/14."""

from must_core.config import AdaptConfig
from must_core.errors import InvalidConfig

_COLUMNS = (
    "mask_patch_size",
    "mask_ratio",
    "alignment_weight",
    "fairness_weight",
    "confidence_threshold",
    "learning_rate_per_256",
    "ema_decay_init",
    "ema_warmup_steps",
    "epochs",
)

_VIT_B_16: dict[str, tuple[float, ...]] = {
    "imagenet": (32, 0.3, 0.2, 1, 0.7, 2e-5, 0.999, 2000, 30),
    "sun397": (32, 0.1, 1, 0.2, 0.4, 1e-4, 0.99, 500, 20),
    "food101": (32, 0.1, 0.1, 1, 0.7, 2e-5, 0.999, 2000, 40),
    "gtsrb": (32, 0.5, 0.5, 1, 0.3, 2e-5, 0.99, 500, 20),
    "dtd": (32, 0.1, 0.2, 1, 0.4, 2e-5, 0.99, 100, 60),
    "ucf101": (16, 0.1, 0.5, 1, 0.5, 1e-5, 0.99, 500, 60),
    "pets": (32, 0.1, 0.2, 1, 0.7, 1e-5, 0.99, 100, 60),
    "caltech101": (32, 0.1, 0.2, 1, 0.7, 1e-5, 0.99, 100, 60),
}

_VIT_L_14: dict[str, tuple[float, ...]] = {
    "imagenet": (56, 0.3, 0.5, 1, 0.5, 4e-5, 0.999, 2000, 20),
    "sun397": (28, 0.2, 0.5, 0.2, 0.3, 2e-4, 0.99, 500, 20),
    "food101": (56, 0.1, 0.1, 1, 0.7, 4e-5, 0.999, 2000, 40),
    "gtsrb": (56, 0.3, 0.5, 1, 0.2, 4e-5, 0.99, 500, 20),
    "dtd": (56, 0.1, 0.5, 1, 0.5, 4e-5, 0.99, 100, 60),
    "ucf101": (28, 0.1, 0.5, 1, 0.6, 2e-5, 0.99, 500, 60),
}

PRESETS: tuple[str, ...] = tuple(_VIT_B_16)
"""Names `preset` knows; those without a ViT-L/14 column have none in the paper."""


def preset(name: str, *, patch_size: int, seed: int = 0) -> AdaptConfig:
    """The paper's setting for a data set; towers with patches of 14 pixels get the ViT-L/14 column.

    Raises `InvalidConfig` for a name or a column that the paper does not have.
    """
    column = _VIT_L_14 if patch_size == 14 else _VIT_B_16
    if name not in column:
        raise InvalidConfig(f"There is no preset of this name here; there are {', '.join(column)}.", param="preset")
    values = dict(zip(_COLUMNS, column[name], strict=True))
    whole = {"mask_patch_size", "ema_warmup_steps", "epochs"}
    return AdaptConfig(seed=seed, **{k: int(v) if k in whole else v for k, v in values.items()})  # type: ignore[arg-type]
