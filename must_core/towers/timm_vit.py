"""Vision transformers that timm brings to open_clip: SigLIP, EVA, PE and their kin.

Their forward is theirs; masking hooks into the patch convolution, and patch tokens are read where they enter the final
norm, which is an identity in towers that norm after pooling.

Shapes: as in `must_core.towers.tower`; L tokens of an image, its prefix tokens first, R x C its grid of patches.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from must_core.masking import PatchMask
from must_core.towers.tower import MaskedFeatures, MaskingSupport, patch_objection, taken

_TRUNKS = frozenset({VisionTransformer, VisionTransformerRelPos, Eva})
"""All of them keep patches in row-major order behind their prefix tokens, from the convolution to the final norm."""

_BLOCK = re.compile(r"trunk\.blocks\.(\d+)\.")
_EMBEDDINGS = ("cls_token", "reg_token", "pos_embed", "patch_embed.", "norm_pre.", "rope.", "shared_rel_pos.")


class TimmVit:
    """A `must_core.towers.Tower` over ``open_clip.timm_model.TimmModel`` with a vision transformer for a trunk."""

    def __init__(self, visual: Any) -> None:
        self._visual = visual
        trunk = self._visual.trunk
        self.support = MaskingSupport(supported=True, reason=_reason(trunk))
        self.width = width_of(visual)
        self.patch_size: int = trunk.patch_embed.proj.kernel_size[0]
        self.num_layers = len(trunk.blocks)

    def layer_of(self, name: str) -> int:
        """See `Tower.layer_of`."""
        if match := _BLOCK.match(name):
            return int(match.group(1)) + 1
        return 0 if name.removeprefix("trunk.").startswith(_EMBEDDINGS) else self.num_layers + 1

    def features(self, images_BCHW: Tensor) -> Tensor:
        """See `Tower.features`."""
        features_BD: Tensor = self._visual(images_BCHW)
        return features_BD

    def masked_features(self, images_BCHW: Tensor, mask: PatchMask, mask_token_W: Tensor) -> MaskedFeatures:
        """See `Tower.masked_features`."""
        trunk = self._visual.trunk
        seen: list[Tensor] = []
        reader = trunk.norm.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
        try:
            with _hidden_patches(trunk.patch_embed.proj, mask.mask_BN, mask_token_W):
                pooled_BD = self._visual(images_BCHW)
        finally:
            reader.remove()
        (tokens_BLW,) = seen
        patches_BNW = tokens_BLW[:, -mask.mask_BN.shape[1] :]
        return MaskedFeatures(pooled_BD=pooled_BD, patch_BJW=taken(patches_BNW, mask.hidden_BJ))

    def project(self, tokens_BJW: Tensor) -> Tensor:
        """See `Tower.project`: through the head; where there is none (SigLIP), patches are compared as they are."""
        visual = self._visual
        tokens_BJD: Tensor = visual.head(visual.trunk.head(tokens_BJW))
        return tokens_BJD


def objection(visual: Any) -> str | None:
    """Why `TimmVit` would not hide exactly the masked patches of a ``TimmModel``; None when it would."""
    trunk = visual.trunk
    if type(trunk) not in _TRUNKS:
        return "Not a plain vision transformer: self-training only."
    # Hybrids have a 1x1 patch convolution too, behind a network that has mixed the pixels of all patches by then.
    if type(trunk.patch_embed) is not PatchEmbed:
        return "Patches come out of a convolutional stem: self-training only."
    if not isinstance(getattr(trunk, "patch_drop", None), nn.Identity | None):
        return "Drops patches by itself while it trains: self-training only."
    return patch_objection(trunk.patch_embed.proj, visual.image_size)


def width_of(visual: Any) -> int:
    """Width of a ``TimmModel``'s tokens; 0 where it is no plain vision transformer."""
    return int(visual.trunk.embed_dim) if type(visual.trunk) in _TRUNKS else 0


def _reason(trunk: Any) -> str:
    pooled = {"token": "a class token", "map": "attention pooling", "avg": "the patches' mean"}
    how = pooled.get(trunk.global_pool, f"{trunk.global_pool} pooling")
    return f"timm vision transformer with {how}; masked patches are aligned with the pooled feature."


@contextmanager
def _hidden_patches(convolution: nn.Module, mask_BN: Tensor, mask_token_W: Tensor) -> Iterator[None]:
    """Within the block, masked patches leave the patch convolution as the mask token."""

    def hide(_module: nn.Module, _args: object, embeddings_BWRC: Tensor) -> Tensor:
        hidden = mask_BN.view(len(embeddings_BWRC), 1, *embeddings_BWRC.shape[2:])
        token = mask_token_W.view(1, -1, 1, 1).to(embeddings_BWRC.dtype)
        return torch.where(hidden, token, embeddings_BWRC)

    hook = convolution.register_forward_hook(hide)
    try:
        yield
    finally:
        hook.remove()
