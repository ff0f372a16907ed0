"""What MUST trains: a CLIP image tower with a class head and, for masked images, a mask token and a decoder.

Shapes: B images, K classes, D embedding width, W tower width, J hidden patches of an image, P values of one patch
(3 · side²).
"""

from copy import deepcopy
from typing import NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from must_core.backbone import BaseModel
from must_core.masking import PatchMask
from must_core.towers import tower_of


class MaskedOutput(NamedTuple):
    """What the student says of masked images and of the hidden patches in them; the last two are of unit length."""

    logits_BK: Tensor
    predicted_BJP: Tensor
    patch_BJD: Tensor
    class_token_BD: Tensor


class Student(nn.Module):
    """An image classifier: ``logit_scale · cos(visual(image), class weights)``.

    Called with ``images_BCHW`` it returns ``logits_BK``; with a mask, what training needs. The class weights
    ``classifier`` are a parameter of shape D x K, one unit column per class when built from text; like the original,
    they are not normalised again.
    """

    classifier: nn.Parameter

    def __init__(self, visual: nn.Module, class_weights_DK: Tensor, *, logit_scale: float) -> None:
        super().__init__()
        self.visual = visual
        self.classifier = nn.Parameter(class_weights_DK.clone())
        self.logit_scale = logit_scale
        self.tower = tower_of(visual)
        self.can_mask = self.tower.support.supported
        self.patch_size = self.tower.patch_size
        self.num_layers = self.tower.num_layers
        if self.can_mask:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, self.tower.width))
            nn.init.trunc_normal_(self.mask_token, std=0.02)
            self.ln_patch = nn.LayerNorm(self.tower.width)
            # The reference's 1x1 convolution and PixelShuffle, token by token: same weights, no image to rebuild.
            self.decoder = nn.Linear(self.tower.width, 3 * self.patch_size**2)

    @classmethod
    def from_base(cls, base: BaseModel, class_weights_DK: Tensor, *, seed: int = 0) -> "Student":
        """Build a student on a copy of the base's tower; ``seed`` decides the mask token and decoder."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            student = cls(deepcopy(base.visual), class_weights_DK, logit_scale=base.logit_scale)
        return student.requires_grad_()

    def layer_of(self, name: str) -> int:
        """Layer of a parameter for layer-wise decay: 0 embeddings, 1 … blocks, last the top."""
        if name.startswith("visual."):
            return self.tower.layer_of(name.removeprefix("visual."))
        return 0 if name == "mask_token" else self.num_layers + 1

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Image features of unit length, ``features_BD``, in the precision of the weights."""
        return self._unit(self.tower.features(images_BCHW))

    @overload
    def forward(self, images_BCHW: Tensor) -> Tensor: ...

    @overload
    def forward(self, images_BCHW: Tensor, mask: PatchMask) -> MaskedOutput: ...

    def forward(self, images_BCHW: Tensor, mask: PatchMask | None = None) -> Tensor | MaskedOutput:
        """Classify images; with a mask, also say what was in the hidden patches."""
        if mask is None:
            return self.classify(self.features(images_BCHW))
        masked = self.tower.masked_features(images_BCHW, mask, self.mask_token.flatten())
        features_BD = self._unit(masked.pooled_BD)
        patch_BJW = self.ln_patch(masked.patch_BJW)
        return MaskedOutput(
            logits_BK=self.classify(features_BD),
            predicted_BJP=self.decoder(patch_BJW),
            patch_BJD=self._unit(self.tower.project(patch_BJW)),
            class_token_BD=features_BD,
        )

    def masked_logits(self, images_BCHW: Tensor, mask: PatchMask | None) -> Tensor:
        """``logits_BK`` alone, as calling with or without the mask gives them."""
        if mask is None:
            return self.classify(self.features(images_BCHW))
        masked = self.tower.masked_features(images_BCHW, mask, self.mask_token.flatten())
        return self.classify(self._unit(masked.pooled_BD))

    def _unit(self, vectors_D: Tensor) -> Tensor:
        return F.normalize(vectors_D.to(self.classifier.dtype), dim=-1)

    def classify(self, features_BD: Tensor) -> Tensor:
        """``logits_BK`` of features of unit length."""
        # Not in bfloat16, whatever the tower runs in: of a logit of 25 it knows eighths.
        with torch.autocast(features_BD.device.type, enabled=False):
            return self.logit_scale * features_BD @ self.classifier
