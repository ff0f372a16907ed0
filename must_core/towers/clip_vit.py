"""open_clip's own vision transformer, computed with few passes over memory.

The modules and their weights stay open_clip's; this is another way through them that gives the same numbers:

- attention reads queries, keys and values as views of one packed projection, and no attention matrix is kept;
- the last block computes only tokens that somebody reads, from keys and values of all: the class token, and masked
  patches in training. That is 10 of a block's 12 products for every token left out.

Shapes: B images, L tokens of an image, N = L - 1 patches, Q tokens that are read of each, M masked patches of the
batch, W width, H heads, E = W / H, D embedding width.
"""

import re
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from must_core.towers.activations import quick_gelu
from must_core.towers.linear import linear
from must_core.towers.tower import MaskedFeatures, MaskingSupport, hidden_patches

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
        return self._pooled(self._blocks(self._visual._embeds(images_BCHW), None)[:, 0])

    def masked_features(self, images_BCHW: Tensor, mask_BN: Tensor, mask_token_W: Tensor) -> MaskedFeatures:
        """See `Tower.masked_features`."""
        visual = self._visual
        with hidden_patches(visual.conv1, mask_BN, mask_token_W):
            tokens_BLW = visual._embeds(images_BCHW)
        read_BL = F.pad(mask_BN, (1, 0), value=True)
        read_BQW = self._blocks(tokens_BLW, read_BL)
        return MaskedFeatures(pooled_BD=self._pooled(read_BQW[:, 0]), patch_MW=read_BQW[:, 1:].flatten(0, 1))

    def project(self, patch_MW: Tensor) -> Tensor:
        """See `Tower.project`."""
        patch_MD: Tensor = patch_MW @ self._visual.proj
        return patch_MD

    def _pooled(self, token_BW: Tensor) -> Tensor:
        visual = self._visual
        pooled_BD: Tensor = visual.ln_post(token_BW)
        return pooled_BD if visual.proj is None else pooled_BD @ visual.proj

    def _blocks(self, tokens_BLW: Tensor, read_BL: Tensor | None) -> Tensor:
        """All blocks; the last one for the tokens marked in ``read_BL`` (as many in every image), or the class token.

        Returns ``tokens_BQW`` in the order of their positions.
        """
        *blocks, last = self._visual.transformer.resblocks
        for block in blocks:
            tokens_BLW = _mlp(block, tokens_BLW + block.ls_1(_self_attention(block.attn, block.ln_1(tokens_BLW))))
        normed_BLW = last.ln_1(tokens_BLW)
        tokens_BQW, normed_BQW = _picked(tokens_BLW, read_BL), _picked(normed_BLW, read_BL)
        return _mlp(last, tokens_BQW + last.ls_1(_cross_attention(last.attn, normed_BQW, normed_BLW)))


def _picked(tokens_BLW: Tensor, read_BL: Tensor | None) -> Tensor:
    if read_BL is None:
        # Contiguous: for strided input, torch's choice of product depends on whether the weights want a gradient.
        return tokens_BLW[:, :1].contiguous()
    return tokens_BLW[read_BL].view(len(tokens_BLW), -1, tokens_BLW.shape[-1])


def _mlp(block: Any, tokens_BLW: Tensor) -> Tensor:
    mlp = block.mlp
    hidden = _applied(mlp.c_fc, block.ln_2(tokens_BLW))
    hidden = quick_gelu(hidden) if type(mlp.gelu).__name__ == "QuickGELU" else mlp.gelu(hidden)
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
