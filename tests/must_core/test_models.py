"""Every architecture of open_clip has its decision, with a reason; weights are found without the network."""

import json
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest

from must_core.auto import Evidence, check_fit, choose
from must_core.backbone import BaseModel, build_visual, load_base
from must_core.errors import InvalidConfig, UnknownModel
from must_core.models import ModelSupport, architectures, support_of, survey, weights_at_hand
from tests.support.tiny import CONFIG, make_base

CLIP_VIT = "Vision transformer with a class token."
TIMM_CLASS = "timm vision transformer with a class token"
TIMM_POOL = "timm vision transformer with attention pooling"
TIMM_MEAN = "timm vision transformer with the patches' mean"

MASKED = {
    "ViT-B-16": (CLIP_VIT, 224, 16, 768, 12),
    "ViT-B-32-256": (CLIP_VIT, 256, 32, 768, 12),
    "ViT-L-14-336-quickgelu": (CLIP_VIT, 336, 14, 1024, 24),
    "ViT-bigG-14": (CLIP_VIT, 224, 14, 1664, 48),
    "xlm-roberta-base-ViT-B-32": (CLIP_VIT, 224, 32, 768, 12),
    "coca_base": (CLIP_VIT, 288, 18, 768, 12),
    "ViT-B-16-SigLIP": (TIMM_POOL, 224, 16, 768, 12),
    "ViT-SO400M-14-SigLIP-378": (TIMM_POOL, 378, 14, 1152, 27),
    "ViT-SO400M-14-SigLIP-384": (TIMM_POOL, 384, 14, 1152, 27),
    "nllb-clip-large-siglip": (TIMM_POOL, 384, 14, 1152, 27),
    "ViT-L-16-SigLIP2-512": (TIMM_POOL, 512, 16, 1024, 24),
    "PE-Core-B-16": (TIMM_POOL, 224, 16, 768, 12),
    "PE-Core-bigG-14-448": (TIMM_POOL, 448, 14, 1536, 50),
    "EVA01-g-14": (TIMM_CLASS, 224, 14, 1408, 40),
    "EVA02-B-16": (TIMM_CLASS, 224, 16, 768, 12),
    "EVA02-E-14-plus": (TIMM_CLASS, 224, 14, 1792, 64),
    "MobileCLIP2-L-14": (TIMM_CLASS, 224, 14, 1024, 24),
    "vit_relpos_medium_patch16_cls_224": (TIMM_CLASS, 224, 16, 512, 12),
    "vit_medium_patch16_gap_256": (TIMM_MEAN, 256, 16, 512, 12),
}
"""Reason, image, patch, width and blocks."""

WHOLE = {
    "RN50": ("Not a vision transformer", 224, None),
    "RN50x64-quickgelu": ("Not a vision transformer", 448, None),
    "convnext_base": ("Not a plain vision transformer", 224, None),
    "convnext_xxlarge_320": ("Not a plain vision transformer", 320, None),
    "swin_base_patch4_window7_224": ("Not a plain vision transformer", 224, None),
    "MobileCLIP-S1": ("Not a plain vision transformer", 256, None),
    "MobileCLIP2-S4": ("Not a plain vision transformer", 256, None),
    "MobileCLIP-B": ("Patches come out of a convolutional stem", 224, 768),
    "ViTamin-L-336": ("Patches come out of a convolutional stem", 336, 1024),
    "coca_ViT-B-32": ("Does not pool by its class token", 224, 768),
    "ViT-H-14-CLIPA": ("Does not pool by its class token", 224, 1280),
}
"""Reason, image and width."""


@pytest.fixture(scope="module")
def all_of_them() -> dict[str, ModelSupport]:
    return {name: survey(name) for name in architectures()}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_every_architecture_can_be_surveyed(all_of_them: dict[str, ModelSupport]) -> None:
    """None is left out: one that could not be built would have raised."""
    assert list(all_of_them) == open_clip.list_models()
    kinds: Counter[str] = Counter()
    for name, support in all_of_them.items():
        kind, _, _ = support.reason.partition(":" if not support.masked else ";")
        kinds[kind] += 1
        assert support.architecture == name
        assert support.masked is (support.patch_size is not None) is (support.num_layers is not None)
        assert support.masked is ("self-training only" not in support.reason)
        assert support.num_parameters > 1_000_000
    # Later versions of open_clip may have more of each.
    assert kinds[CLIP_VIT] >= 48
    assert kinds[TIMM_POOL] >= 31
    assert kinds[TIMM_CLASS] >= 9
    assert kinds["Patches come out of a convolutional stem"] >= 17
    assert kinds["Not a plain vision transformer"] >= 18
    assert kinds["Not a vision transformer"] >= 10
    assert kinds["Does not pool by its class token, which the alignment needs"] >= 8


@pytest.mark.parametrize("name", MASKED)
def test_masked_training(name: str) -> None:
    reason, *sizes = MASKED[name]
    support = survey(name)
    assert support.masked
    assert support.reason.startswith(reason)
    assert [support.image_size, support.patch_size, support.width, support.num_layers] == sizes


@pytest.mark.parametrize("name", WHOLE)
def test_self_training_only(name: str) -> None:
    reason, image, width = WHOLE[name]
    support = survey(name)
    assert not support.masked
    assert support.reason.startswith(reason)
    assert support.reason.endswith("self-training only.")
    assert (support.image_size, support.patch_size, support.width, support.num_layers) == (image, None, width, None)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-SigLIP", "EVA02-B-16", "RN50", "vit_medium_patch16_gap_256"])
def test_parameters_are_counted_as_they_are_built(name: str) -> None:
    config = open_clip.get_model_config(name)
    visual = build_visual({"embed_dim": config["embed_dim"], "vision_cfg": config["vision_cfg"], "quick_gelu": False})
    assert survey(name).num_parameters == sum(parameter.numel() for parameter in visual.parameters())


def test_tags_say_what_they_were_trained_with() -> None:
    tags = {tag.name: tag.quick_gelu for tag in survey("ViT-B-16").pretrained}
    assert (tags["openai"], tags["metaclip_400m"], tags["laion2b_s34b_b88k"]) == (True, True, False)
    assert {tag.quick_gelu for tag in survey("ViT-B-32-quickgelu").pretrained} == {True}
    assert survey("roberta-ViT-B-32").pretrained[0].quick_gelu  # the architecture's, which its tag does not mention
    assert survey("coca_base").pretrained == ()


def test_every_kind_of_address(tmp_path: Path) -> None:
    address = make_base(tmp_path / "tiny")
    support = support_of(address)
    assert (support.architecture, support.masked) == ("tiny", True)
    assert (support.image_size, support.patch_size, support.width, support.num_layers) == (16, 4, 32, 2)
    assert support.num_parameters == sum(p.numel() for p in load_base(address).visual.parameters())
    assert support_of("ViT-B-16/openai") == survey("ViT-B-16")
    file = tmp_path / "weights.safetensors"
    file.touch()
    assert support_of(f"RN50/{file}") == survey("RN50")


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ViT-B-16",
        "ViT-B-16/",
        "ViT-B-16/no-such-tag",
        "No-Such/openai",
        "hf-hub:a/b",
        "local-dir:",
        "RN50/\0",
        "RN50/" + "x" * 10_000,
        "local-dir:/no/such",
        "local-dir:" + "x" * 10_000,
    ],
)
def test_addresses_that_name_nothing(address: str) -> None:
    with pytest.raises(UnknownModel):
        support_of(address)
    assert not weights_at_hand(address)
    with pytest.raises(UnknownModel):
        load_base(address)


@pytest.mark.parametrize(
    "vision",
    [{"timm_model_name": "no_such_model"}, {"layers": "many"}, {"nonsense": 1}, {"timm_model_name": "../x"}, 3],
)
def test_folders_that_describe_nothing(tmp_path: Path, vision: Any) -> None:
    config = {**CONFIG, "model_cfg": {**CONFIG["model_cfg"], "vision_cfg": vision}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownModel):
        support_of(f"local-dir:{tmp_path}")


def test_an_architecture_that_does_not_exist() -> None:
    with pytest.raises(UnknownModel):
        survey("No-Such-Architecture")


def test_weights_in_a_folder_or_a_file(tmp_path: Path) -> None:
    address = make_base(tmp_path / "tiny")
    weights = tmp_path / "tiny" / "open_clip_model.safetensors"
    assert weights_at_hand(address)
    assert weights_at_hand(f"ViT-B-16/{weights}")
    weights.unlink()
    assert not weights_at_hand(address)
    assert not weights_at_hand(f"ViT-B-16/{weights}")


@pytest.mark.parametrize(
    ("address", "repository", "file"),
    [
        ("ViT-B-16/openai", "timm/vit_base_patch16_clip_224.openai", "open_clip_model.safetensors"),
        ("ViT-B-16/openai", "timm/vit_base_patch16_clip_224.openai", "open_clip_pytorch_model.bin"),
        ("ViT-B-16-SigLIP/webli", "timm/ViT-B-16-SigLIP", "open_clip_model.safetensors"),
    ],
)
def test_weights_in_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, repository: str, file: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / f"models--{repository.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    snapshot = cached / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "open_clip_config.json").touch()
    assert not weights_at_hand(address)
    (snapshot / file).touch()
    assert weights_at_hand(address)
    assert not weights_at_hand("ViT-L-14/openai")


def test_weights_of_other_addresses_in_open_clips_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tag = {"url": "https://example.org/some/weights.pt", "hf_hub": ""}
    monkeypatch.setattr(open_clip.pretrained, "get_pretrained_cfg", lambda _architecture, _tag: tag)
    assert not weights_at_hand("ViT-B-16/some")
    (tmp_path / ".cache" / "clip").mkdir(parents=True)
    (tmp_path / ".cache" / "clip" / "weights.pt").touch()
    assert weights_at_hand("ViT-B-16/some")


def make_untrained(name: str) -> BaseModel:
    """An architecture without its weights."""
    config = open_clip.get_model_config(name)
    return BaseModel(f"{name}/none", open_clip.create_model(name), config)


EVIDENCE = Evidence(num_images=1000, num_classes=10, flip_disagreement=0.0)


def test_choices_go_by_the_tower_that_timm_brings() -> None:
    base = make_untrained("ViT-S-32")
    assert "width" in base.visual_config["vision_cfg"]
    config, _ = choose({}, EVIDENCE, base, seed=0)
    assert (config.masking, config.mask_patch_size) == (True, 32)
    base = make_untrained("vit_relpos_medium_patch16_cls_224")
    assert "width" not in base.visual_config["vision_cfg"]
    config, choices = choose({}, EVIDENCE, base, seed=0)
    assert (config.masking, config.mask_patch_size) == (True, 32)
    assert "512 wide" in choices["learning_rate_per_256"].reason
    assert config.learning_rate_per_256 == pytest.approx(2e-3 * (128 / 512) ** 2.57, rel=0.05)
    with pytest.raises(InvalidConfig):
        check_fit({"mask_patch_size": 14}, base)


def test_choices_for_a_tower_without_patches() -> None:
    base = make_untrained("RN50")
    config, choices = choose({}, EVIDENCE, base, seed=0)
    assert not config.masking
    assert choices["masking"].reason == base.masking.reason
    assert config.learning_rate_per_256 == 2e-5
    check_fit({"mask_patch_size": 5}, base)
    with pytest.raises(InvalidConfig, match="Not a vision transformer"):
        check_fit({"masking": True}, base)
