"""What MUST asks of an image tower, whatever its make.

Shapes: B images, N patches of an image, M masked patches of the batch, W tower width, D embedding width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class MaskingSupport:
    """Whether a tower can be trained on masked images, and why."""

    supported: bool
    reason: str


class MaskedFeatures(NamedTuple):
    """A tower's view of masked images; rows of ``patch_MW`` are masked patches, image by image."""

    pooled_BD: Tensor
    patch_MW: Tensor


class Tower(Protocol):
    """A way through an image tower whose modules and weights belong to somebody else."""

    support: MaskingSupport
    num_layers: int
    """Blocks with a learning rate of their own; 0 where the whole tower trains at one."""
    width: int
    """Of the patch tokens; 0 where there are none to mask."""
    patch_size: int
    """In pixels; 0 where there are no patches to mask."""

    def layer_of(self, name: str) -> int:
        """Layer of the tower's parameter ``name``: 0 embeddings, 1 ... blocks, ``num_layers + 1`` what follows."""

    def features(self, images_BCHW: Tensor) -> Tensor:
        """``features_BD``, not normalised."""

    def masked_features(self, images_BCHW: Tensor, mask_BN: Tensor, mask_token_W: Tensor) -> MaskedFeatures:
        """Features of images some of whose patches are hidden, the same number in each."""

    def project(self, patch_MW: Tensor) -> Tensor:
        """Bring patch tokens to where features are, ``patch_MD``, for the alignment loss."""


@contextmanager
def hidden_patches(convolution: nn.Module, mask_BN: Tensor, mask_token_W: Tensor) -> Iterator[None]:
    """Within the block, masked patches leave the patch convolution as the mask token.

    This is before class token and positions are added, as in the paper's section 3.2.
    """

    def hide(_module: nn.Module, _args: object, embeddings_BWRC: Tensor) -> Tensor:
        hidden = mask_BN.view(len(embeddings_BWRC), 1, *embeddings_BWRC.shape[2:])
        token = mask_token_W.view(1, -1, 1, 1).to(embeddings_BWRC.dtype)
        return torch.where(hidden, token, embeddings_BWRC)

    hook = convolution.register_forward_hook(hide)
    try:
        yield
    finally:
        hook.remove()
