"""Ways through the image towers that open_clip brings, behind one protocol."""

from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import nn

from must_core.towers import timm_vit
from must_core.towers.clip_vit import ClipVit
from must_core.towers.timm_vit import TimmVit
from must_core.towers.tower import MaskedFeatures, MaskingSupport, Tower
from must_core.towers.whole import WholeImages

__all__ = ["MaskedFeatures", "MaskingSupport", "Tower", "tower_of"]


def tower_of(visual: nn.Module) -> Tower:
    """Choose the way through an image tower; its ``support`` says whether MUST's masked losses apply."""
    if isinstance(visual, TimmModel):
        objection = timm_vit.can_mask(visual.trunk)
        return WholeImages(visual, objection) if objection else TimmVit(visual)
    if not isinstance(visual, VisionTransformer):
        return WholeImages(visual, "Not a vision transformer: self-training only.")
    if visual.attn_pool is not None or visual.pool_type != "tok":
        return WholeImages(visual, "Pools without a class token, which the alignment needs: self-training only.")
    blocks = visual.transformer.resblocks
    if not all(type(b) is ResidualAttentionBlock and type(b.attn) is nn.MultiheadAttention for b in blocks):
        return WholeImages(
            visual, "Blocks of an unusual make, which masking has not been tried with: self-training only."
        )
    if not isinstance(visual.patch_dropout, nn.Identity):
        return WholeImages(visual, "Drops patches by itself while it trains: self-training only.")
    return ClipVit(visual)
