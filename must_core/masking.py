"""Which patches of the strong view are hidden (section 3.2 of the paper).

Shapes: B images, G patches along one side of the image, N = G·G patches, J hidden patches of an image.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from must_core.errors import InvalidConfig


class PatchMask(NamedTuple):
    """Which patches are hidden, as many in every image; patches are in row-major order.

    It says so twice: with positions at hand, nobody has to wait for a GPU to count what is hidden.
    """

    mask_BN: Tensor
    """Bool, True where hidden."""
    hidden_BJ: Tensor
    """Positions of the hidden ones, int64, ascending."""

    @classmethod
    def of(cls, mask_BN: Tensor) -> "PatchMask":
        """From a bool tensor on the CPU; raises `ValueError` when images do not hide equally many."""
        if mask_BN.sum(dim=1).unique().numel() > 1:
            raise ValueError("every image must hide the same number of patches")
        return cls(mask_BN, mask_BN.nonzero()[:, 1].view(len(mask_BN), -1))

    def rows(self, rows: slice) -> "PatchMask":
        """The masks of some of the images."""
        return PatchMask(self.mask_BN[rows], self.hidden_BJ[rows])

    def to(self, device: torch.device | str) -> "PatchMask":
        """On another device."""
        return PatchMask(self.mask_BN.to(device, non_blocking=True), self.hidden_BJ.to(device, non_blocking=True))


@dataclass(frozen=True)
class PatchMasker:
    """Hides square blocks of patches, the same number in every image."""

    image_size: int
    patch_size: int
    mask_patch_size: int
    mask_ratio: float

    def __post_init__(self) -> None:
        """Check that blocks tile what the patches cover and hold whole patches."""
        if self.covered % self.mask_patch_size or self.mask_patch_size % self.patch_size:
            raise InvalidConfig(
                f"mask_patch_size must be a multiple of the model's patch ({self.patch_size}) and divide its "
                f"image ({self.covered}).",
                param="mask_patch_size",
            )

    @property
    def covered(self) -> int:
        """Side of the square that whole patches cover: not quite the image where they do not tile it."""
        return self.image_size // self.patch_size * self.patch_size

    @property
    def num_blocks(self) -> int:
        """Mask blocks in an image."""
        return (self.covered // self.mask_patch_size) ** 2

    @property
    def num_masked_blocks(self) -> int:
        """Hidden blocks in each image."""
        return math.ceil(self.num_blocks * self.mask_ratio)

    def sample(self, batch_size: int, generator: torch.Generator) -> PatchMask:
        """Draw a mask for each image."""
        blocks_per_side = self.covered // self.mask_patch_size
        patches_per_block = self.mask_patch_size // self.patch_size
        noise = torch.rand(batch_size, self.num_blocks, generator=generator)
        hidden = noise.argsort(dim=1)[:, : self.num_masked_blocks]
        mask = torch.zeros(batch_size, self.num_blocks, dtype=torch.bool).scatter_(1, hidden, value=True)
        mask = mask.view(batch_size, blocks_per_side, blocks_per_side)
        mask = mask.repeat_interleave(patches_per_block, 1).repeat_interleave(patches_per_block, 2)
        return PatchMask.of(mask.flatten(1))
