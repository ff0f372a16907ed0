from pathlib import Path

import open_clip
import pytest
import torch
from torch.nn import functional as F

from must_core.backbone import BaseModel, load_base
from must_core.errors import UnknownModel, WeightsUnavailable
from must_core.masking import PatchMask
from must_core.objective import patchify
from must_core.student import Student
from must_core.text.prompts import ClassSpec, build_class_weights
from tests.support.tiny import CLASSES, CONFIG, make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base(make_base(tmp_path_factory.mktemp("base")))


@pytest.fixture
def student(base: BaseModel) -> Student:
    weights = build_class_weights(base, [ClassSpec(c) for c in CLASSES], ["a {} thing", "{}"])
    return Student.from_base(base, weights).eval()


def test_zero_shot_logits_are_open_clips(base: BaseModel, student: Student, tmp_path: Path) -> None:
    model = open_clip.create_model(make_base(tmp_path / "same"), require_pretrained=True).eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    images_BCHW = torch.randn(4, 3, 16, 16)
    with torch.inference_mode():
        columns = []
        for name in CLASSES:
            texts = model.encode_text(tokenizer([f"a {name} thing", name]), normalize=True)
            columns.append(F.normalize(texts.mean(dim=0), dim=0))
        expected = model.logit_scale.exp() * model.encode_image(images_BCHW, normalize=True) @ torch.stack(columns, 1)
        assert torch.allclose(student(images_BCHW), expected, atol=1e-4)


def test_unmasked_patches_go_the_same_way(student: Student) -> None:
    images_BCHW = torch.randn(3, 3, 16, 16)
    nothing_BN = torch.zeros(3, 16, dtype=torch.bool)
    output = student(images_BCHW, PatchMask.of(nothing_BN))
    assert torch.allclose(output.logits_BK, student(images_BCHW), atol=1e-5)
    assert output.predicted_BJP.shape == (3, 0, 48)


def test_hidden_pixels_do_not_reach_the_student(student: Student) -> None:
    images_BCHW = torch.randn(2, 3, 16, 16)
    mask_BN = torch.zeros(2, 16, dtype=torch.bool)
    mask_BN[:, 5] = True
    changed = images_BCHW.clone()
    changed[:, :, 4:8, 4:8] += 3.0  # patch 5 is in row 1, column 1
    mask = PatchMask.of(mask_BN)
    before, after = student(images_BCHW, mask), student(changed, mask)
    assert torch.equal(before.logits_BK, after.logits_BK)
    assert torch.equal(before.predicted_BJP, after.predicted_BJP)
    assert not torch.allclose(student(images_BCHW), student(changed))


def test_patchify_is_row_major_with_channels_first() -> None:
    image = torch.arange(3 * 8 * 8).view(1, 3, 8, 8)
    patches = patchify(image, 4)
    assert patches.shape == (1, 4, 48)
    assert torch.equal(patches[0, 1], image[0, :, 0:4, 4:8].flatten())


def test_a_missing_model_is_an_error_and_never_random_weights(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel):
        load_base(f"local-dir:{tmp_path}")
    address = make_base(tmp_path / "no-weights")
    (tmp_path / "no-weights" / "open_clip_model.safetensors").unlink()
    with pytest.raises(WeightsUnavailable):
        load_base(address)
    with pytest.raises(UnknownModel):
        load_base("ViT-B-16/no-such-tag")
    with pytest.raises(UnknownModel):
        load_base("No-Such-Architecture/openai")


def test_weights_that_cannot_be_downloaded_name_the_remedy() -> None:
    with pytest.raises(WeightsUnavailable, match="Hugging Face hub"):
        load_base("ViT-B-16/openai")


def test_quick_gelu_comes_from_the_pretrained_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def create_model(*_args: object, **options: object) -> None:
        asked.update(options)
        raise RuntimeError("no network")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    for tag, expected in (("openai", True), ("laion2b_s34b_b88k", False)):
        with pytest.raises(WeightsUnavailable):
            load_base(f"ViT-B-16/{tag}")
        assert asked["force_quick_gelu"] is expected
        assert asked["require_pretrained"] is True


def test_config_of_the_tests_is_quick_gelu(base: BaseModel) -> None:
    assert base.visual_config["quick_gelu"] is CONFIG["model_cfg"]["quick_gelu"] is True
