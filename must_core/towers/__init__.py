"""Ways through the image towers that open_clip brings, behind one protocol."""

from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from must_core.towers import clip_vit, timm_vit
from must_core.towers.clip_vit import ClipVit
from must_core.towers.timm_vit import TimmVit
from must_core.towers.tower import MaskedFeatures, MaskingSupport, Tower
from must_core.towers.whole import WholeImages

__all__ = ["MaskedFeatures", "MaskingSupport", "Tower", "tower_of"]


def tower_of(visual: nn.Module) -> Tower:
    """Choose the way through an image tower; its ``support`` says whether MUST's masked losses apply.

    Nothing is computed, so a tower on the meta device will do.
    """
    if isinstance(visual, TimmModel):
        objection = timm_vit.objection(visual)
        return WholeImages(visual, objection, width=timm_vit.width_of(visual)) if objection else TimmVit(visual)
    if isinstance(visual, VisionTransformer):
        objection = clip_vit.objection(visual)
        return WholeImages(visual, objection, width=visual.conv1.out_channels) if objection else ClipVit(visual)
    return WholeImages(visual, "Not a vision transformer: self-training only.", width=0)
