"""What MUST asks of an image tower, whatever its make.

Shapes: B images, N patches of an image, J hidden patches of an image, W tower width, D embedding width.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from must_core.masking import PatchMask


@dataclass(frozen=True)
class MaskingSupport:
    """Whether a tower can be trained on masked images, and why."""

    supported: bool
    reason: str


class MaskedFeatures(NamedTuple):
    """A tower's view of masked images, and of the hidden patches in them."""

    pooled_BD: Tensor
    patch_BJW: Tensor


class Tower(Protocol):
    """A way through an image tower whose modules and weights belong to somebody else."""

    support: MaskingSupport
    num_layers: int
    """Blocks with a learning rate of their own; 0 where the whole tower trains at one."""
    width: int
    """Of the patch tokens, whether or not they can be masked; 0 where there are none."""
    patch_size: int
    """In pixels; 0 where there are no patches to mask."""

    def layer_of(self, name: str) -> int:
        """Layer of the tower's parameter ``name``: 0 embeddings, 1 ... blocks, ``num_layers + 1`` what follows."""

    def features(self, images_BCHW: Tensor) -> Tensor:
        """``features_BD``, not normalised."""

    def masked_features(self, images_BCHW: Tensor, mask: PatchMask, mask_token_W: Tensor) -> MaskedFeatures:
        """Features of images some of whose patches are hidden.

        Hidden patches leave the patch convolution as the mask token, before class token and positions are added (the
        paper's section 3.2).
        """

    def project(self, tokens_BJW: Tensor) -> Tensor:
        """Bring patch tokens to where features are, ``tokens_BJD``, for the alignment loss."""


def taken(tokens_BLW: Tensor, positions_BJ: Tensor) -> Tensor:
    """The tokens at some positions of each image, ``tokens_BJW``; picking them by a bool mask would wait for a GPU."""
    return tokens_BLW.gather(1, positions_BJ[..., None].expand(-1, -1, tokens_BLW.shape[-1]))


def patch_objection(convolution: nn.Conv2d, image_size: tuple[int, int]) -> str | None:
    """Why a tower's patches cannot be hidden one by one, and an image rebuilt from them; None when they can."""
    side = convolution.kernel_size[0]
    # Dilation spreads a kernel over its neighbours, padding moves all patches; neither shows in kernel and stride.
    plain = convolution.dilation == (1, 1) and convolution.padding == (0, 0)
    if convolution.kernel_size != convolution.stride or not plain:
        return "Patches overlap: self-training only."
    if convolution.kernel_size != (side, side) or image_size[0] != image_size[1]:
        return "Patches or images are not square: self-training only."
    return None
