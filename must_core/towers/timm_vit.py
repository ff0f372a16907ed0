"""Vision transformers that timm brings to open_clip: SigLIP, EVA, PE and their kin.

Their forward is theirs; masking hooks into the patch convolution, and patch tokens are read where they enter the final
norm.

Shapes: as in `must_core.towers.tower`; L tokens of an image, its prefix tokens first.
"""

import re
from typing import Any

from torch import Tensor, nn

from must_core.towers.tower import MaskedFeatures, MaskingSupport, hidden_patches

_BLOCK = re.compile(r"trunk\.blocks\.(\d+)\.")
_EMBEDDINGS = ("cls_token", "reg_token", "pos_embed", "patch_embed.", "norm_pre.", "rope.")


class TimmVit:
    """A `must_core.towers.Tower` over ``open_clip.timm_model.TimmModel`` with a vision transformer for a trunk."""

    def __init__(self, visual: Any) -> None:
        self._visual = visual
        trunk = self._visual.trunk
        self.support = MaskingSupport(supported=True, reason=_reason(trunk))
        self.width: int = trunk.embed_dim
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

    def masked_features(self, images_BCHW: Tensor, mask_BN: Tensor, mask_token_W: Tensor) -> MaskedFeatures:
        """See `Tower.masked_features`."""
        trunk = self._visual.trunk
        seen: list[Tensor] = []
        reader = trunk.norm.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
        try:
            with hidden_patches(trunk.patch_embed.proj, mask_BN, mask_token_W):
                pooled_BD = self._visual(images_BCHW)
        finally:
            reader.remove()
        (tokens_BLW,) = seen
        patches_BNW = tokens_BLW[:, -mask_BN.shape[1] :]
        return MaskedFeatures(pooled_BD=pooled_BD, patch_MW=patches_BNW[mask_BN])

    def project(self, patch_MW: Tensor) -> Tensor:
        """See `Tower.project`: through the head; where there is none (SigLIP), patches are compared as they are."""
        visual = self._visual
        patch_MD: Tensor = visual.head(visual.trunk.head(patch_MW))
        return patch_MD


def can_mask(trunk: Any) -> str | None:
    """Why a trunk's patches cannot be masked; None when they can."""
    projection = getattr(getattr(trunk, "patch_embed", None), "proj", None)
    if not isinstance(getattr(trunk, "blocks", None), nn.Sequential | nn.ModuleList) or projection is None:
        return "Not a plain vision transformer: self-training only."
    if not isinstance(projection, nn.Conv2d) or projection.kernel_size != projection.stride:
        return "Patches overlap or come out of a convolutional stem: self-training only."
    if not isinstance(getattr(trunk, "norm", None), nn.LayerNorm):
        return "No norm after the last block to read patches from: self-training only."
    return None


def _reason(trunk: Any) -> str:
    pooled = {"token": "a class token", "map": "attention pooling", "avg": "the patches' mean"}
    how = pooled.get(trunk.global_pool, f"{trunk.global_pool} pooling")
    return f"timm vision transformer with {how}; masked patches are aligned with the pooled feature."
