"""open_clip's own vision transformer, computed with few passes over memory.

The modules and their weights stay open_clip's; this is another way through them that gives the same numbers:

- attention reads queries, keys and values as views of one packed projection, and no attention matrix is kept;
- the last block computes only tokens that somebody reads, from keys and values of all: the class token, and masked
  patches in training. That is 10 of a block's 12 products for every token left out.

Shapes: B images, L tokens of an image, N = L - 1 patches, J hidden patches of an image, Q tokens that are read of each,
W width, H heads, E = W / H, D embedding width.
"""

import re
from typing import Any

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from must_core.masking import PatchMask
from must_core.towers.activations import quick_gelu
from must_core.towers.linear import linear
from must_core.towers.tower import MaskedFeatures, MaskingSupport, patch_objection, taken

_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.")
_EMBEDDINGS = ("class_embedding", "positional_embedding", "conv1.", "ln_pre.")


class ClipVit:
    """A `must_core.towers.Tower` over ``open_clip.transformer.VisionTransformer`` that pools by its class token."""

    support = MaskingSupport(supported=True, reason="Vision transformer with a class token.")

    def __init__(self, visual: Any) -> None:
        self._visual = visual
        self.width: int = self._visual.conv1.out_channels
        self.patch_size: int = self._visual.patch_size[0]
        self.num_layers = len(self._visual.transformer.resblocks)

    def layer_of(self, name: str) -> int:
        """See `Tower.layer_of`."""
        if match := _BLOCK.match(name):
            return int(match.group(1)) + 1
        return 0 if name.startswith(_EMBEDDINGS) else self.num_layers + 1

    def features(self, images_BCHW: Tensor) -> Tensor:
        """See `Tower.features`."""
        return self._pooled(self._blocks(self._embedded(self._patches(images_BCHW)), None)[:, 0])

    def masked_features(self, images_BCHW: Tensor, mask: PatchMask, mask_token_W: Tensor) -> MaskedFeatures:
        """See `Tower.masked_features`."""
        patches_BNW = self._patches(images_BCHW)
        patches_BNW = torch.where(mask.mask_BN[..., None], mask_token_W.to(patches_BNW.dtype), patches_BNW)
        read_BQ = F.pad(mask.hidden_BJ + 1, (1, 0))  # position 0 is the class token
        read_BQW = self._blocks(self._embedded(patches_BNW), read_BQ)
        return MaskedFeatures(pooled_BD=self._pooled(read_BQW[:, 0]), patch_BJW=read_BQW[:, 1:])

    def project(self, tokens_BJW: Tensor) -> Tensor:
        """See `Tower.project`."""
        projection_WD = self._visual.proj
        return tokens_BJW if projection_WD is None else tokens_BJW @ projection_WD

    def _patches(self, images_BCHW: Tensor) -> Tensor:
        patches_BNW: Tensor = self._visual.conv1(images_BCHW).flatten(2).transpose(1, 2)
        return patches_BNW

    def _embedded(self, patches_BNW: Tensor) -> Tensor:
        visual = self._visual
        class_token_B1W = visual.class_embedding.to(patches_BNW.dtype).expand(len(patches_BNW), 1, -1)
        tokens_BLW = torch.cat([class_token_B1W, patches_BNW], dim=1)
        normed_BLW: Tensor = visual.ln_pre(tokens_BLW + visual.positional_embedding.to(tokens_BLW.dtype))
        return normed_BLW

    def _pooled(self, token_BW: Tensor) -> Tensor:
        return self.project(self._visual.ln_post(token_BW))

    def _blocks(self, tokens_BLW: Tensor, read_BQ: Tensor | None) -> Tensor:
        """All blocks; the last one for the tokens at positions ``read_BQ``, or the class token. ``tokens_BQW``."""
        *blocks, last = self._visual.transformer.resblocks
        for block in blocks:
            tokens_BLW = _mlp(block, tokens_BLW + block.ls_1(_self_attention(block.attn, block.ln_1(tokens_BLW))))
        normed_BLW = last.ln_1(tokens_BLW)
        tokens_BQW, normed_BQW = _picked(tokens_BLW, read_BQ), _picked(normed_BLW, read_BQ)
        return _mlp(last, tokens_BQW + last.ls_1(_cross_attention(last.attn, normed_BQW, normed_BLW)))


def objection(visual: Any) -> str | None:
    """Why `ClipVit` would not compute what a ``VisionTransformer`` does; None when it would."""
    if visual.attn_pool is not None or visual.pool_type != "tok":
        return "Does not pool by its class token, which the alignment needs: self-training only."
    if not all(_is_plain(block) for block in visual.transformer.resblocks):
        return "Blocks of an unusual make, which masking has not been tried with: self-training only."
    if not isinstance(visual.patch_dropout, nn.Identity):
        return "Drops patches by itself while it trains: self-training only."
    return patch_objection(visual.conv1, visual.image_size)


def _is_plain(block: Any) -> bool:
    return type(block) is ResidualAttentionBlock and type(block.attn) is nn.MultiheadAttention


def _picked(tokens_BLW: Tensor, read_BQ: Tensor | None) -> Tensor:
    if read_BQ is None:
        # Contiguous: for strided input, torch's choice of product depends on whether the weights want a gradient.
        return tokens_BLW[:, :1].contiguous()
    return taken(tokens_BLW, read_BQ)


def _mlp(block: Any, tokens_BLW: Tensor) -> Tensor:
    mlp = block.mlp
    hidden = _applied(mlp.c_fc, block.ln_2(tokens_BLW))
    hidden = quick_gelu(hidden) if type(mlp.gelu) is QuickGELU else mlp.gelu(hidden)
    added: Tensor = tokens_BLW + block.ls_2(_applied(mlp.c_proj, hidden))
    return added


def _self_attention(attention: Any, tokens_BLW: Tensor) -> Tensor:
    packed = linear(tokens_BLW, attention.in_proj_weight, attention.in_proj_bias)
    q_BHLE, k_BHLE, v_BHLE = packed.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
    return _attended(attention, q_BHLE, k_BHLE, v_BHLE)


def _cross_attention(attention: Any, tokens_BQW: Tensor, tokens_BLW: Tensor) -> Tensor:
    """`_self_attention` for some of the tokens."""
    width = attention.embed_dim
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    queries = linear(tokens_BQW, weight[:width], bias[:width])
    packed = linear(tokens_BLW, weight[width:], bias[width:])
    q_BHQE = queries.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    k_BHLE, v_BHLE = packed.unflatten(-1, (2, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
    return _attended(attention, q_BHQE, k_BHLE, v_BHLE)


def _attended(attention: Any, q_BHQE: Tensor, k_BHLE: Tensor, v_BHLE: Tensor) -> Tensor:
    mixed_BHQE = F.scaled_dot_product_attention(q_BHQE, k_BHLE, v_BHLE)
    return _applied(attention.out_proj, mixed_BHQE.transpose(1, 2).flatten(2))


def _applied(layer: nn.Linear, rows: Tensor) -> Tensor:
    return linear(rows, layer.weight, layer.bias)
