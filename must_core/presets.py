"""The paper's settings by name (its Table 7), for ViT-B/16 and ViT-L/14, with each data set's prompts and metric."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

from must_core.config import AdaptConfig
from must_core.errors import InvalidConfig
from must_core.text import templates as clip

Metric = Literal["top1", "mean_per_class"]
"""Names of `must_core.evaluate.accuracy`."""


class Column(NamedTuple):
    """One model's settings for a data set. All others of `AdaptConfig` keep their defaults, as in the paper."""

    mask_patch_size: int
    mask_ratio: float
    alignment_weight: float
    fairness_weight: float
    confidence_threshold: float
    learning_rate_per_256: float
    ema_decay_init: float
    ema_warmup_steps: int
    epochs: int


@dataclass(frozen=True)
class Preset:
    """What the paper did on one data set."""

    name: str
    vit_b_16: Column
    vit_l_14: Column | None
    """None where the paper has no ViT-L/14."""
    templates: tuple[str, ...]
    """CLIP's own for this data set."""
    templates_source: str
    """Where they are published."""
    metric: Metric = "top1"
    """What the paper's accuracy is."""

    def config(self, patch_size: int, seed: int = 0) -> AdaptConfig:
        """The settings for a tower; patches of 14 pixels get the ViT-L/14 column, all others ViT-B/16's.

        The batch size stays `AdaptConfig`'s 64. The paper's is 1,024 over 16 GPUs; learning rates are per 256 images
        and follow the batch, ``ema_warmup_steps`` does not. Raises `InvalidConfig` where the paper has no such column.
        """
        column = self.vit_l_14 if patch_size == 14 else self.vit_b_16
        if column is None:
            raise InvalidConfig(f"The paper has no ViT-L/14 setting for {self.name}.", param="preset")
        return AdaptConfig(seed=seed, **column._asdict())


_PROMPTS_MD = "https://github.com/openai/CLIP/blob/main/data/prompts.md"
_NOTEBOOK = "https://github.com/openai/CLIP/blob/main/notebooks/Prompt_Engineering_for_ImageNet.ipynb"

_ALL = (
    Preset(
        "imagenet",
        Column(32, 0.3, 0.2, 1, 0.7, 2e-5, 0.999, 2000, 30),
        Column(56, 0.3, 0.5, 1, 0.5, 4e-5, 0.999, 2000, 20),
        clip.IMAGENET,
        _NOTEBOOK,
    ),
    Preset(
        "sun397",
        Column(32, 0.1, 1, 0.2, 0.4, 1e-4, 0.99, 500, 20),
        Column(28, 0.2, 0.5, 0.2, 0.3, 2e-4, 0.99, 500, 20),
        clip.SUN397,
        f"{_PROMPTS_MD}#sun397",
    ),
    Preset(
        "food101",
        Column(32, 0.1, 0.1, 1, 0.7, 2e-5, 0.999, 2000, 40),
        Column(56, 0.1, 0.1, 1, 0.7, 4e-5, 0.999, 2000, 40),
        clip.FOOD101,
        f"{_PROMPTS_MD}#food101",
    ),
    Preset(
        "gtsrb",
        Column(32, 0.5, 0.5, 1, 0.3, 2e-5, 0.99, 500, 20),
        Column(56, 0.3, 0.5, 1, 0.2, 4e-5, 0.99, 500, 20),
        clip.GTSRB,
        f"{_PROMPTS_MD}#gtsrb",
    ),
    Preset(
        "dtd",
        Column(32, 0.1, 0.2, 1, 0.4, 2e-5, 0.99, 100, 60),
        Column(56, 0.1, 0.5, 1, 0.5, 4e-5, 0.99, 100, 60),
        clip.DTD,
        f"{_PROMPTS_MD}#describabletextures",
    ),
    Preset(
        "ucf101",
        Column(16, 0.1, 0.5, 1, 0.5, 1e-5, 0.99, 500, 60),
        Column(28, 0.1, 0.5, 1, 0.6, 2e-5, 0.99, 500, 60),
        clip.UCF101,
        f"{_PROMPTS_MD}#ucf101",
    ),
    Preset(
        "pets",
        Column(32, 0.1, 0.2, 1, 0.7, 1e-5, 0.99, 100, 60),
        None,
        clip.PETS,
        f"{_PROMPTS_MD}#oxfordpets",
        metric="mean_per_class",
    ),
    Preset(
        "caltech101",
        Column(32, 0.1, 0.2, 1, 0.7, 1e-5, 0.99, 100, 60),
        None,
        clip.CALTECH101,
        f"{_PROMPTS_MD}#caltech101",
        metric="mean_per_class",
    ),
)

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})
"""Every preset by its name, in the paper's order."""


def preset(name: str, *, patch_size: int, seed: int = 0) -> AdaptConfig:
    """The paper's setting for a data set; raises `InvalidConfig` for a name or column that the paper does not have."""
    found = PRESETS.get(name)
    if found is None:
        raise InvalidConfig(f"There is no preset of this name; there are {', '.join(PRESETS)}.", param="preset")
    return found.config(patch_size, seed)
