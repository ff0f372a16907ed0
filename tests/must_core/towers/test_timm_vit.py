"""Every family of timm towers that open_clip brings, with its own make and small sizes, is masked exactly.

Shapes: B images, N patches, M masked patches of the batch, W width, D embedding width, K classes.
"""

from typing import Any

import open_clip
import pytest
import timm
import torch
from timm.layers import PatchDropout
from torch import Tensor, nn
from torch.nn import functional as F

from must_core.adaptation import Adaptation
from must_core.backbone import build_visual
from must_core.config import AdaptConfig
from must_core.masking import PatchMask
from must_core.models import architectures, survey
from must_core.objective import patchify
from must_core.student import Student
from must_core.towers import tower_of
from must_core.towers.timm_vit import TimmVit
from must_core.towers.whole import WholeImages

IMAGE, PATCH, WIDTH, DEPTH, EMBEDDING = 16, 4, 32, 3, 24
SMALL = {"img_size": IMAGE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2}

# Beyond what open_clip ships: timm's name, pooling, projection, and options of the trunk.
FURTHER: dict[str, tuple[str, str, str | None, dict[str, Any]]] = {
    "norm after the mean": ("vit_base_patch16_224", "avg", None, {}),
    "EVA, norm after the mean": ("eva02_base_patch16_clip_224", "avg", None, {"use_fc_norm": True}),
    "registers": ("vit_base_patch16_224", "token", "linear", {"reg_tokens": 3}),
    "registers without positions": ("vit_base_patch16_224", "avg", "mlp", {"reg_tokens": 3, "no_embed_class": True}),
    "EVA with registers": ("eva02_base_patch16_clip_224", "token", None, {"num_reg_tokens": 2}),
    "any image size": ("vit_base_patch16_224", "token", None, {"dynamic_img_size": True}),
    "EVA of any image size": ("eva02_base_patch16_clip_224", "token", None, {"dynamic_img_size": True}),
    "learned rotations": ("eva02_base_patch16_clip_224", "token", None, {"rope_type": "mixed"}),
    "no final norm": ("vit_base_patch16_224", "token", None, {"final_norm": False}),
    "layer scale": ("vit_base_patch16_224", "token", None, {"init_values": 0.1, "qk_norm": True}),
    "one bias of positions for all blocks": (
        "vit_relpos_medium_patch16_cls_224", "token", None, {"shared_rel_pos": True},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def shipped() -> dict[str, dict[str, Any]]:
    """The image side of every architecture whose timm tower is masked."""
    found = {name: open_clip.get_model_config(name)["vision_cfg"] for name in architectures() if survey(name).masked}
    return {name: vision for name, vision in found.items() if "timm_model_name" in vision}


def build(timm_name: str, pool: str, projection: str | None, options: dict[str, Any]) -> Any:
    """A tower through open_clip, its trunk built by timm with other sizes than it has by its name."""
    create = timm.create_model
    embedding = WIDTH if projection == "none" else EMBEDDING
    vision = {"timm_model_name": timm_name, "timm_pool": pool, "timm_proj": projection, "image_size": IMAGE}
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(timm, "create_model", lambda name, **given: create(name, **given, **SMALL, **options))
        visual = build_visual({"embed_dim": embedding, "vision_cfg": vision, "quick_gelu": False})
    with torch.no_grad():  # some families start with projections and scales of next to nothing
        for parameter in visual.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return visual.eval()


def as_shipped(vision: dict[str, Any]) -> Any:
    return build(vision["timm_model_name"], vision["timm_pool"], vision["timm_proj"], {})


def make_mask(num_images: int = 2) -> Tensor:
    """Other patches in each image, the corners among them."""
    hidden = torch.tensor([[0, 3, 5, 10], [2, 9, 12, 15]])[:num_images]
    return torch.zeros(num_images, 16, dtype=torch.bool).scatter_(1, hidden, value=True)


def changed_below(images_BCHW: Tensor, mask_BN: Tensor) -> Tensor:
    """The images with other pixels where they are hidden."""
    pixels = mask_BN.view(-1, 1, 4, 4).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    return torch.where(pixels, images_BCHW + 3 * torch.randn_like(images_BCHW), images_BCHW)


def check_masking(visual: Any) -> None:
    tower = tower_of(visual)
    assert isinstance(tower, TimmVit)
    assert tower.support.supported
    assert (tower.width, tower.patch_size, tower.num_layers) == (WIDTH, PATCH, DEPTH)
    images_BCHW, token_W, mask_BN = torch.randn(2, 3, IMAGE, IMAGE), torch.randn(WIDTH), make_mask()
    with torch.no_grad():
        features_BD = visual(images_BCHW)
        assert features_BD.ndim == 2
        assert torch.equal(tower.features(images_BCHW), features_BD)
        nothing = tower.masked_features(images_BCHW, PatchMask.of(torch.zeros_like(mask_BN)), token_W)
        assert torch.equal(nothing.pooled_BD, features_BD)
        assert nothing.patch_BJW.flatten(0, 1).shape == (0, WIDTH)
        masked = tower.masked_features(images_BCHW, PatchMask.of(mask_BN), token_W)
        again = tower.masked_features(changed_below(images_BCHW, mask_BN), PatchMask.of(mask_BN), token_W)
        other = tower.masked_features(changed_below(images_BCHW, ~mask_BN), PatchMask.of(mask_BN), token_W)
        changed_BD = visual(changed_below(images_BCHW, mask_BN))
        assert not torch.allclose(visual(images_BCHW), masked.pooled_BD, atol=1e-3)
    assert torch.equal(masked.pooled_BD, again.pooled_BD)
    assert torch.equal(masked.patch_BJW.flatten(0, 1), again.patch_BJW.flatten(0, 1))
    assert not torch.allclose(masked.pooled_BD, other.pooled_BD, atol=1e-3)
    assert not torch.allclose(features_BD, changed_BD, atol=1e-3)
    assert tower.project(masked.patch_BJW.flatten(0, 1)).shape == (8, features_BD.shape[1])


def check_token_order(visual: Any) -> None:
    """The tokens read are the hidden ones: without attention they know nothing of the image."""
    tower = tower_of(visual)
    with torch.no_grad():
        for name, parameter in visual.trunk.blocks.named_parameters():
            if ".attn." in name:
                parameter.zero_()
        each_BN, token_W = torch.eye(16, dtype=torch.bool), torch.randn(WIDTH)
        first, second = (
            tower.masked_features(torch.randn(16, 3, IMAGE, IMAGE), PatchMask.of(each_BN), token_W).patch_BJW.flatten(
                0, 1
            )
            for _ in range(2)
        )
    assert torch.equal(first, second)


def check_gradients(visual: Any) -> None:
    tower = tower_of(visual)
    token_W = torch.zeros(WIDTH, requires_grad=True)
    masked = tower.masked_features(torch.randn(2, 3, IMAGE, IMAGE), PatchMask.of(make_mask()), token_W)
    (masked.pooled_BD.square().sum() + tower.project(masked.patch_BJW.flatten(0, 1)).square().sum()).backward()
    assert token_W.grad is not None
    assert token_W.grad.abs().sum() > 0
    assert visual.trunk.patch_embed.proj.weight.grad.abs().sum() > 0
    for block in visual.trunk.blocks:
        for name, parameter in block.named_parameters():
            assert parameter.grad is not None, name
            # A key's bias moves all logits of a query alike, which softmax does not see.
            assert parameter.grad.abs().sum() > 0 or "k_proj.bias" in name or "k_bias" in name, name


class _Reached(Exception):
    """Carries what the first block was given."""


def given_to_first_block(visual: Any, images_BCHW: Tensor) -> list[Tensor]:
    def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached([*args, *kwargs.values()])

    hook = visual.trunk.blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        visual(images_BCHW)
    except _Reached as reached:
        return [value.clone() for value in reached.args[0] if isinstance(value, Tensor)]
    finally:
        hook.remove()
    raise AssertionError("the tower has no block")


def check_layers(visual: Any) -> None:
    """Embeddings are what the first block's input depends on, found by trying; the rest is on top."""
    tower = tower_of(visual)
    images_BCHW = torch.randn(1, 3, IMAGE, IMAGE)
    found = set()
    with torch.no_grad():
        before = given_to_first_block(visual, images_BCHW)
        for name, parameter in visual.named_parameters():
            layer = tower.layer_of(name)
            found.add(layer)
            if name.startswith("trunk.blocks."):
                assert layer == int(name.split(".")[2]) + 1, name
                continue
            kept = parameter.clone()
            parameter.add_(1.0 + torch.rand_like(parameter))
            after = given_to_first_block(visual, images_BCHW)
            parameter.copy_(kept)
            is_embedding = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
            assert layer == (0 if is_embedding else DEPTH + 1), name
    assert found >= set(range(DEPTH + 1))


CHECKS = (check_masking, check_gradients, check_layers, check_token_order)  # the last one changes the weights


@pytest.mark.parametrize("name", FURTHER)
def test_further_makes(name: str) -> None:
    timm_name, pool, projection, options = FURTHER[name]
    for check in CHECKS:
        check(build(timm_name, pool, projection, options))


def test_every_shipped_family(shipped: dict[str, dict[str, Any]]) -> None:
    families = {(v["timm_model_name"].rpartition("_patch")[0], v["timm_pool"]): v for v in shipped.values()}
    assert len(families) >= 15
    for family, vision in families.items():
        for check in CHECKS:
            try:
                check(as_shipped(vision))
            except AssertionError as e:
                raise AssertionError(f"{family}, {check.__name__}") from e


@pytest.mark.parametrize(
    "architecture", ["ViT-B-16-SigLIP", "EVA02-B-16", "PE-Core-B-16", "vit_medium_patch16_gap_256"]
)
def test_the_whole_step_runs_and_learns_to_rebuild(architecture: str, shipped: dict[str, dict[str, Any]]) -> None:
    visual = as_shipped(shipped[architecture])
    torch.manual_seed(1)
    weights_DK = F.normalize(torch.randn(visual(torch.zeros(1, 3, IMAGE, IMAGE)).shape[1], 3), dim=0)
    student = Student(visual, weights_DK, logit_scale=20.0)
    config = AdaptConfig(
        epochs=1, batch_size=8, learning_rate_per_256=0.1, mask_patch_size=PATCH, confidence_threshold=0.4
    )
    run = Adaptation(student, config, steps_per_epoch=40)
    images_BCHW = torch.rand(8, 3, 1, 1).expand(-1, -1, IMAGE, IMAGE) + 0.05 * torch.randn(8, 3, IMAGE, IMAGE)
    losses = [run.step(images_BCHW, images_BCHW, PatchMask.of(make_mask().repeat(4, 1))).losses for _ in range(20)]
    assert all(torch.isfinite(loss.total) for loss in losses)
    assert losses[-1].reconstruction < 0.7 * losses[0].reconstruction
    assert all(torch.isfinite(parameter).all() for parameter in run.teacher.parameters())


@pytest.mark.parametrize("timm_name", ["vit_tiny_r_s16_p8_224", "vit_small_r26_s32_224"])
def test_hybrids_are_refused_for_their_stem(timm_name: str) -> None:
    """Their own patch convolution does not overlap: what leads to it does."""
    vision = {"timm_model_name": timm_name, "timm_pool": "token", "timm_proj": None, "image_size": 224}
    with torch.device("meta"):
        visual: Any = build_visual({"embed_dim": 8, "vision_cfg": vision, "quick_gelu": False})
    projection = visual.trunk.patch_embed.proj
    assert projection.kernel_size == projection.stride
    assert isinstance(tower_of(visual), WholeImages)
    assert "convolutional stem" in tower_of(visual).support.reason


def test_hidden_pixels_would_get_past_a_stem(plain: Any) -> None:
    images_BCHW, token_W, mask_BN = torch.randn(2, 3, IMAGE, IMAGE), torch.randn(WIDTH), make_mask()
    changed_BCHW = changed_below(images_BCHW, mask_BN)
    stem = nn.Conv2d(3, 3, 3, padding=1)
    plain.trunk.patch_embed.register_forward_pre_hook(lambda _module, given: stem(given[0]))
    with torch.inference_mode():
        pooled_BD, again_BD = (
            TimmVit(plain).masked_features(images, PatchMask.of(mask_BN), token_W).pooled_BD
            for images in (images_BCHW, changed_BCHW)
        )
    assert not torch.allclose(pooled_BD, again_BD, atol=1e-3)


@pytest.fixture
def plain() -> Any:
    return build("vit_base_patch16_224", "token", None, {})


def test_a_trunk_that_drops_patches_is_refused(plain: Any) -> None:
    assert tower_of(plain).support.supported
    plain.trunk.patch_drop = PatchDropout(0.5, num_prefix_tokens=1)
    assert "Drops patches" in tower_of(plain).support.reason


def test_none_is_built_that_does(shipped: dict[str, dict[str, Any]]) -> None:
    vision = {**shipped["EVA02-B-16"], "patch_dropout": 0.5}
    with torch.device("meta"):
        visual: Any = build_visual({"embed_dim": 512, "vision_cfg": vision, "quick_gelu": False})
    assert visual.trunk.patch_drop is None
    assert tower_of(visual).support.supported


def test_patches_that_do_not_tile_the_image_are_hidden_all_the_same(plain: Any) -> None:
    """As SigLIP's at 384: what no whole patch is left of is not looked at, masked or not."""
    plain.image_size = (18, 18)
    plain.trunk.patch_embed.img_size = None  # no check: images of both sizes are shown
    tower = tower_of(plain)
    assert tower.support.supported
    images_BCHW, token_W, mask_BN = torch.randn(2, 3, 18, 18), torch.randn(WIDTH), make_mask()
    inner_BCHW = images_BCHW[:, :, :IMAGE, :IMAGE]
    changed_BCHW = images_BCHW.clone()
    changed_BCHW[:, :, :IMAGE, :IMAGE] = changed_below(inner_BCHW, mask_BN)
    changed_BCHW[:, :, IMAGE:] = 9.0
    with torch.inference_mode():
        masked, again, inner = (
            tower.masked_features(images, PatchMask.of(mask_BN), token_W)
            for images in (images_BCHW, changed_BCHW, inner_BCHW)
        )
    assert torch.equal(masked.pooled_BD, again.pooled_BD)
    assert torch.allclose(masked.patch_BJW, inner.patch_BJW, atol=1e-6)
    assert torch.equal(patchify(images_BCHW, PATCH), patchify(inner_BCHW, PATCH))


def test_overlapping_patches_are_refused(plain: Any) -> None:
    plain.image_size = (16, 32)
    assert "not square" in tower_of(plain).support.reason
    plain.trunk.patch_embed.proj = nn.Conv2d(3, WIDTH, 6, stride=4)
    assert "overlap" in tower_of(plain).support.reason


def test_a_trunk_of_another_make_is_refused(plain: Any) -> None:
    class Other(type(plain.trunk)):  # type: ignore[misc]
        pass

    plain.trunk.__class__ = Other
    assert "Not a plain vision transformer" in tower_of(plain).support.reason
