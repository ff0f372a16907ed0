"""Towers that see whole images only: ResNets, ConvNeXts, hybrid stems, transformers without a class token."""

from torch import Tensor, nn

from must_core.masking import PatchMask
from must_core.towers.tower import MaskedFeatures, MaskingSupport


class WholeImages:
    """A `must_core.towers.Tower` that trains by self-training alone; the whole of it at one learning rate."""

    num_layers = 0
    patch_size = 0

    def __init__(self, visual: nn.Module, reason: str, *, width: int) -> None:
        self._visual = visual
        self.width = width
        self.support = MaskingSupport(supported=False, reason=reason)

    def layer_of(self, _name: str) -> int:
        """See `Tower.layer_of`: all is the top."""
        return 1

    def features(self, images_BCHW: Tensor) -> Tensor:
        """See `Tower.features`."""
        features = self._visual(images_BCHW)
        # CoCa's towers return their tokens beside the feature.
        features_BD: Tensor = features[0] if isinstance(features, tuple) else features
        return features_BD

    def masked_features(self, images_BCHW: Tensor, mask: PatchMask, mask_token_W: Tensor) -> MaskedFeatures:
        """Not possible here: raises `NotImplementedError`."""
        raise NotImplementedError(self.support.reason)

    def project(self, tokens_BJW: Tensor) -> Tensor:
        """Not possible here: raises `NotImplementedError`."""
        raise NotImplementedError(self.support.reason)
