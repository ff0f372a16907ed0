"""What MUST trains: a CLIP image tower with a class head and, for masked images, a mask token and a decoder.

Shapes: B images, K classes, D embedding width, W tower width, N patches of an image, M masked patches of the batch,
P values of one patch (3 · side²).
"""

import re
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from must_core.backbone import BaseModel, masking_support

_BLOCK = re.compile(r"visual\.transformer\.resblocks\.(\d+)\.")
_EMBEDDINGS = (
    "mask_token",
    "visual.class_embedding",
    "visual.positional_embedding",
    "visual.conv1.",
    "visual.ln_pre.",
)


@dataclass(frozen=True)
class MaskedOutput:
    """What the student says of masked images; rows of the last three are masked patches, image by image."""

    logits_BK: Tensor
    predicted_MP: Tensor
    patch_MD: Tensor
    class_token_MD: Tensor


class Student(nn.Module):
    """An image classifier: ``logit_scale · cos(visual(image), class weights)``.

    Called with ``images_BCHW`` it returns ``logits_BK``; `forward_masked` is for training. The class weights
    ``classifier`` are a parameter of shape D x K, one unit column per class when built from text; like the original,
    they are not normalised again.
    """

    classifier: nn.Parameter

    def __init__(self, visual: nn.Module, class_weights_DK: Tensor, *, logit_scale: float) -> None:
        super().__init__()
        self.visual = visual
        self.classifier = nn.Parameter(class_weights_DK.clone())
        self.logit_scale = logit_scale
        self.can_mask = masking_support(visual).supported
        if self.can_mask:
            tower: Any = visual
            width: int = tower.conv1.out_channels
            self.patch_size: int = tower.patch_size[0]
            self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
            nn.init.trunc_normal_(self.mask_token, std=0.02)
            self.ln_patch = nn.LayerNorm(width)
            # The reference's 1x1 convolution and PixelShuffle, token by token: same weights, no image to rebuild.
            self.decoder = nn.Linear(width, 3 * self.patch_size**2)

    @classmethod
    def from_base(cls, base: BaseModel, class_weights_DK: Tensor, *, seed: int = 0) -> "Student":
        """Build a student on a copy of the base's tower; ``seed`` decides the mask token and decoder."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            student = cls(deepcopy(base.visual), class_weights_DK, logit_scale=base.logit_scale)
        return student.requires_grad_()

    @property
    def num_layers(self) -> int:
        """Transformer blocks with a learning rate of their own."""
        return len(self.visual.transformer.resblocks) if self.can_mask else 0  # type: ignore[union-attr,arg-type]

    def layer_of(self, name: str) -> int:
        """Layer of a parameter for layer-wise decay: 0 embeddings, 1 … blocks, last the top."""
        if match := _BLOCK.match(name):
            return int(match.group(1)) + 1
        return 0 if self.can_mask and name.startswith(_EMBEDDINGS) else self.num_layers + 1

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Image features of unit length, ``features_BD``."""
        return F.normalize(self.visual(images_BCHW), dim=-1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Classify whole images."""
        return self.logit_scale * self.features(images_BCHW) @ self.classifier

    def forward_masked(self, images_BCHW: Tensor, mask_BN: Tensor) -> MaskedOutput:
        """Classify images whose masked patches are hidden, and say what was there.

        Every image must hide the same number of patches (see `must_core.masking`).
        """
        visual: Any = self.visual
        # Hidden patches take the mask token right after the patch convolution, before class token and positions.
        hook = visual.conv1.register_forward_hook(lambda _module, _args, output: self._hide(output, mask_BN))
        try:
            tokens_BLW = visual.transformer(visual._embeds(images_BCHW))
        finally:
            hook.remove()
        features_BD = F.normalize(visual.ln_post(tokens_BLW[:, 0]) @ visual.proj, dim=-1)
        patch_MW = self.ln_patch(tokens_BLW[:, 1:][mask_BN])
        return MaskedOutput(
            logits_BK=self.logit_scale * features_BD @ self.classifier,
            predicted_MP=self.decoder(patch_MW),
            patch_MD=F.normalize(patch_MW @ visual.proj, dim=-1),
            class_token_MD=features_BD.repeat_interleave(mask_BN.sum(dim=1), dim=0),
        )

    def _hide(self, embeddings_BWRC: Tensor, mask_BN: Tensor) -> Tensor:
        b, width, rows, columns = embeddings_BWRC.shape
        hidden = mask_BN.view(b, 1, rows, columns)
        return torch.where(hidden, self.mask_token.view(1, width, 1, 1).to(embeddings_BWRC.dtype), embeddings_BWRC)
