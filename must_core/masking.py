"""Which patches of the strong view are hidden (section 3.2 of the paper).

Shapes: B images, G patches along one side of the image, N = G·G patches.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from must_core.errors import InvalidConfig


@dataclass(frozen=True)
class PatchMasker:
    """Hides square blocks of patches, the same number in every image."""

    image_size: int
    patch_size: int
    mask_patch_size: int
    mask_ratio: float

    def __post_init__(self) -> None:
        """Check that blocks tile the image and hold whole patches."""
        if self.image_size % self.mask_patch_size or self.mask_patch_size % self.patch_size:
            raise InvalidConfig(
                f"mask_patch_size must be a multiple of the model's patch ({self.patch_size}) and divide its "
                f"image ({self.image_size}).",
                param="mask_patch_size",
            )

    @property
    def num_blocks(self) -> int:
        """Mask blocks in an image."""
        return (self.image_size // self.mask_patch_size) ** 2

    @property
    def num_masked_blocks(self) -> int:
        """Hidden blocks in each image."""
        return math.ceil(self.num_blocks * self.mask_ratio)

    def sample(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Draw ``mask_BN``, bool, True where a patch is hidden, patches in row-major order."""
        blocks_per_side = self.image_size // self.mask_patch_size
        patches_per_block = self.mask_patch_size // self.patch_size
        noise = torch.rand(batch_size, self.num_blocks, generator=generator)
        hidden = noise.argsort(dim=1)[:, : self.num_masked_blocks]
        mask = torch.zeros(batch_size, self.num_blocks, dtype=torch.bool).scatter_(1, hidden, value=True)
        mask = mask.view(batch_size, blocks_per_side, blocks_per_side)
        mask = mask.repeat_interleave(patches_per_block, 1).repeat_interleave(patches_per_block, 2)
        return mask.flatten(1)
