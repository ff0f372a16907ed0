"""ClipVit computes what open_clip's own vision transformer does, and towers that it would not are refused.

Shapes: B images, N patches, M masked patches of the batch, W width, D embedding width.
"""

from typing import Any

import pytest
import torch
from open_clip.transformer import PatchDropout
from torch import Tensor, nn

from must_core.backbone import build_visual
from must_core.masking import PatchMask
from must_core.towers import tower_of
from must_core.towers.clip_vit import ClipVit
from must_core.towers.whole import WholeImages

VISION: dict[str, Any] = {"image_size": 16, "layers": 3, "width": 32, "head_width": 16, "patch_size": 4}

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": {"ls_init_value": 0.3},
    "no norm before": {"no_ln_pre": True},
    "fixed positions": {"pos_embed_type": "sin_cos_2d"},
    "norm after pooling": {"final_ln_after_pool": True},
    "tanh GELU": {"act_kwargs": {"approximate": "tanh"}},
    "another epsilon": {"norm_kwargs": {"eps": 1e-2}},
    "narrow heads": {"head_width": 4},
    "one head": {"head_width": 32},
    "small MLP": {"mlp_ratio": 1.5},
    "one block": {"layers": 1},
    "tokens beside the feature": {"output_tokens": True},
    "one patch": {"patch_size": 16},
    "patches that do not tile the image": {"image_size": 18},
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mean of patches": ({"pool_type": "avg"}, "class token"),
    "attention": ({"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}, "class token"),
    "two poolers": ({"attentional_pool": "cascade", "attn_pooler_queries": 4, "attn_pooler_heads": 2}, "class token"),
    "query norm": ({"qk_norm": True}, "unusual make"),
    "scaled cosine": ({"scaled_cosine_attn": True}, "unusual make"),
    "scaled heads": ({"scale_heads": True}, "unusual make"),
    "norm within attention": ({"scale_attn_inner": True}, "unusual make"),
    "norm after attention": ({"scale_attn": True}, "unusual make"),
    "norm within MLP": ({"scale_fc": True}, "unusual make"),
}


UNCALLABLE = {"two poolers", "scaled cosine"}
"""Those of them that open_clip itself fails to call, or gives no feature of."""


def make_visual(changes: dict[str, Any], *, quick_gelu: bool = False) -> nn.Module:
    torch.manual_seed(0)
    visual = build_visual({"embed_dim": 24, "vision_cfg": {**VISION, **changes}, "quick_gelu": quick_gelu})
    with torch.no_grad():  # biases, scales and norms are zeros and ones at first, and would hide a missing one
        for parameter in visual.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return visual.eval()


def called(visual: nn.Module, images_BCHW: Tensor) -> Tensor:
    """What open_clip takes for the feature."""
    output = visual(images_BCHW)
    features_BD: Tensor = output[0] if isinstance(output, tuple) else output
    return features_BD


def hide(visual: Any, mask_BN: Tensor, token_W: Tensor) -> None:
    """From here on the visual itself hides patches, where open_clip has them as a list; to compare with."""
    embeds = visual.conv1.forward

    def forward(images_BCHW: Tensor) -> Tensor:
        embedded_BWRC = embeds(images_BCHW)
        listed_BNW = embedded_BWRC.flatten(2).transpose(1, 2).clone()
        listed_BNW[mask_BN] = token_W
        return listed_BNW.transpose(1, 2).reshape(embedded_BWRC.shape)

    visual.conv1.forward = forward


def make_mask(num_images: int, num_patches: int) -> Tensor:
    count = max(1, num_patches // 3)
    hidden = torch.rand(num_images, num_patches).argsort(dim=1)[:, :count]
    return torch.zeros(num_images, num_patches, dtype=torch.bool).scatter_(1, hidden, value=True)


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_numbers_as_open_clip(name: str, *, quick_gelu: bool) -> None:
    changes = VARIANTS[name]
    visual: Any = make_visual(changes, quick_gelu=quick_gelu and "act_kwargs" not in changes)  # it takes no options
    tower = tower_of(visual)
    assert isinstance(tower, ClipVit)
    images_BCHW = torch.randn(3, 3, 16, 16)
    mask_BN, token_W = make_mask(3, (16 // tower.patch_size) ** 2), torch.randn(32)
    with torch.inference_mode():
        assert torch.allclose(tower.features(images_BCHW), called(visual, images_BCHW), atol=1e-5)
        masked = tower.masked_features(images_BCHW, PatchMask.of(mask_BN), token_W)
        unmasked_BD = called(visual, images_BCHW)
        hide(visual, mask_BN, token_W)
        pooled_BD = called(visual, images_BCHW)
        tokens_BNW = visual.transformer(visual._embeds(images_BCHW))[:, 1:]
    assert torch.allclose(masked.pooled_BD, pooled_BD, atol=1e-5)
    assert torch.allclose(masked.patch_BJW.flatten(0, 1), tokens_BNW[mask_BN], atol=1e-5)
    assert not torch.allclose(masked.pooled_BD, unmasked_BD, atol=1e-3)


def test_without_a_projection_patches_are_compared_as_they_are() -> None:
    visual: Any = make_visual({})
    visual.proj = None
    tower = tower_of(visual)
    images_BCHW = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        assert torch.allclose(tower.features(images_BCHW), called(visual, images_BCHW), atol=1e-5)
    patch_MW = torch.randn(5, 32)
    assert tower.project(patch_MW) is patch_MW


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_and_had_to_be(name: str) -> None:
    changes, reason = REFUSED[name]
    visual = make_visual(changes)
    tower = tower_of(visual)
    assert isinstance(tower, WholeImages)
    assert not tower.support.supported
    assert reason in tower.support.reason
    assert "self-training only" in tower.support.reason
    if name in UNCALLABLE:
        return
    images_BCHW = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        expected_BD = called(visual, images_BCHW)
        assert expected_BD.shape == (2, 24)
        assert torch.equal(tower.features(images_BCHW), expected_BD)
        try:
            forced_BD = ClipVit(visual).features(images_BCHW)
        except (AttributeError, RuntimeError):
            return
    assert forced_BD.shape != expected_BD.shape or not torch.allclose(forced_BD, expected_BD, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_size": (16, 24)}, "not square"),
        ({"image_size": 16, "patch_size": (4, 2)}, "not square"),
    ],
)
def test_images_that_cannot_be_rebuilt_from_patches_are_refused(changes: dict[str, Any], reason: str) -> None:
    visual: Any = make_visual(changes)
    tower = tower_of(visual)
    assert not tower.support.supported
    assert reason in tower.support.reason
    images_BCHW = torch.randn(2, 3, *visual.image_size)
    with torch.inference_mode():
        assert torch.equal(tower.features(images_BCHW), called(visual, images_BCHW))


def test_overlapping_patches_are_refused() -> None:
    visual: Any = make_visual({})
    assert tower_of(visual).support.supported
    for convolution in (
        nn.Conv2d(3, 32, 6, stride=4, bias=False),
        nn.Conv2d(3, 32, 4, stride=4, padding=2, bias=False),
        nn.Conv2d(3, 32, 4, stride=4, dilation=2, bias=False),
    ):
        visual.conv1 = convolution
        assert "overlap" in tower_of(visual).support.reason


def test_a_tower_that_drops_patches_is_refused_and_none_is_built() -> None:
    visual: Any = make_visual({"patch_dropout": 0.5})
    assert isinstance(visual.patch_dropout, nn.Identity)
    assert tower_of(visual).support.supported
    visual.patch_dropout = PatchDropout(0.5)
    assert "Drops patches" in tower_of(visual).support.reason


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_has_the_layer_it_is_used_in(name: str) -> None:
    visual: Any = make_visual(VARIANTS[name])
    tower = tower_of(visual)
    layers = len(visual.transformer.resblocks)
    below = {"class_embedding", "positional_embedding", "conv1", "ln_pre"}
    for parameter, _ in visual.named_parameters():
        first, *rest = parameter.split(".")
        expected = int(rest[1]) + 1 if first == "transformer" else 0 if first in below else layers + 1
        assert tower.layer_of(parameter) == expected, parameter
