"""Text towers of other makes than OpenAI's, and what base models are told apart by before they are loaded."""

import json
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from must_core.backbone import BaseModel, Preprocess, load_base
from must_core.bundle import load_bundle, save_bundle
from must_core.errors import InvalidClasses, UnknownModel, WeightsUnavailable
from must_core.student import Student
from must_core.text.prompts import ClassSpec, build_class_weights, check_lengths
from tests.support.tiny import CLASSES, CONFIG

WORDS = ["<pad>", "</s>", "<unk>", "a", "photo", "of", "red", "green", "blue", "thing"]
SIGLIP_TEXT = {
    "context_length": 8,
    "vocab_size": len(WORDS),
    "width": 16,
    "heads": 2,
    "layers": 1,
    "hf_tokenizer_name": "anything",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
}


def make_folder(folder: Path, **changes: Any) -> str:
    """A tiny untrained CLIP whose ``model_cfg`` is that of the tests with these changes."""
    folder.mkdir(parents=True)
    config = json.loads(json.dumps({**CONFIG, "model_cfg": {**CONFIG["model_cfg"], **changes}}))
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    is_custom = config["model_cfg"].pop("custom_text", False)
    torch.manual_seed(0)
    model = (open_clip.CustomTextCLIP if is_custom else open_clip.CLIP)(**config["model_cfg"])
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def make_siglip(folder: Path) -> str:
    """A folder as open_clip writes one for SigLIP: a tokenizer of Hugging Face's beside the weights."""
    address = make_folder(folder, custom_text=True, text_cfg=SIGLIP_TEXT, init_logit_bias=-10)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[2]))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=WORDS[0], eos_token=WORDS[1])
    wrapped.save_pretrained(folder)
    return address


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base(make_siglip(tmp_path_factory.mktemp("base") / "siglip"))


def test_a_hugging_face_tokenizer_counts_what_it_would_cut(siglip: BaseModel) -> None:
    assert siglip.context_length == 8
    assert siglip.num_tokens("a red thing") == 4  # and an end
    assert siglip.num_tokens("A, red... thing!") == 4  # punctuation is cleaned away before it is cut
    check_lengths(siglip, [ClassSpec("red")], ["a photo of a {} thing"])
    with pytest.raises(InvalidClasses):
        check_lengths(siglip, [ClassSpec("red")], ["a photo of a photo of a {} thing"])


def test_text_of_another_tower_is_open_clips(siglip: BaseModel) -> None:
    model = open_clip.create_model(siglip.address, require_pretrained=True).eval()
    tokenizer = open_clip.get_tokenizer(siglip.address)
    texts = ["a red thing", "photo of blue"]
    with torch.inference_mode():
        expected = F.normalize(model.encode_text(tokenizer(texts)), dim=-1)
    assert torch.allclose(siglip.encode_text(texts), expected, atol=1e-6)
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)


def test_a_classifier_of_it_is_published_and_read_back(siglip: BaseModel, tmp_path: Path) -> None:
    classes = [ClassSpec(c) for c in CLASSES]
    student = Student.from_base(siglip, build_class_weights(siglip, classes, ["a {} thing"])).eval()
    save_bundle(
        tmp_path / "bundle", student, visual_config=siglip.visual_config, preprocess=siglip.preprocess,
        classes=classes, templates=["a {} thing"], provenance={},
    )  # fmt: skip
    images_BCHW = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(load_bundle(tmp_path / "bundle").classifier(images_BCHW), student(images_BCHW))


def test_a_missing_package_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = make_siglip(tmp_path / "siglip")
    load_base(address)
    monkeypatch.setitem(sys.modules, "transformers", None)
    for asked in (address, "ViT-B-16-SigLIP/webli"):
        with pytest.raises(WeightsUnavailable, match=r"pip install 'must-service\[siglip\]'"):
            load_base(asked)


def test_a_missing_tokenizer_is_an_error_before_weights_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_clip, "create_model", lambda *_args, **_options: pytest.fail("weights were asked for"))
    address = make_folder(tmp_path / "base", custom_text=True, text_cfg=SIGLIP_TEXT)
    for asked in (address, "ViT-B-16-SigLIP/webli"):
        with pytest.raises(WeightsUnavailable, match="tokenizer"):
            load_base(asked)


@pytest.mark.parametrize(
    "changes", [{"no_causal_mask": True}, {"proj_type": "none"}, {"proj_bias": True}, {"pool_type": "last"}]
)
def test_text_towers_of_open_clip_give_its_features(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Cutting texts short is for causal attention alone: elsewhere what follows the end is seen."""
    base = load_base(make_folder(tmp_path / "base", text_cfg={**CONFIG["model_cfg"]["text_cfg"], **changes}))
    model = open_clip.create_model(base.address, require_pretrained=True).eval()
    texts = ["a red thing", "blue"]
    with torch.inference_mode():
        expected = model.encode_text(open_clip.get_tokenizer(base.address)(texts), normalize=True)
    assert torch.allclose(base.encode_text(texts), expected, atol=1e-5)


def test_quick_gelu_of_the_architecture_stays_where_a_tag_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip cannot turn it off, so a record without it would rebuild another tower."""
    tag = open_clip.pretrained.get_pretrained_cfg("roberta-ViT-B-32", "laion2b_s12b_b32k")
    assert not tag.get("quick_gelu", False)
    asked: dict[str, Any] = {}

    def create_model(*_args: object, **options: Any) -> None:
        asked.update(options)
        raise RuntimeError("no network")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda _name: open_clip.SimpleTokenizer())
    with pytest.raises(WeightsUnavailable):
        load_base("roberta-ViT-B-32/laion2b_s12b_b32k")
    assert asked["force_quick_gelu"] is True


def test_images_that_are_not_square_are_refused() -> None:
    config = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert Preprocess.from_config({**config, "size": (16, 16)}).image_size == 16
    with pytest.raises(UnknownModel, match="not square"):
        Preprocess.from_config({**config, "size": (16, 24)})


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_cfg": 3}', '{"model_cfg": {"embed_dim": 3}}', "\0"])
def test_a_folder_whose_configuration_cannot_be_read_is_an_unknown_model(tmp_path: Path, text: str) -> None:
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(UnknownModel):
        load_base(f"local-dir:{tmp_path}")


def test_hub_addresses_name_nothing_and_ask_nobody() -> None:
    with pytest.raises(UnknownModel):
        load_base("hf-hub:somebody/some-model")


def test_patch_dropout_of_the_training_is_not_ours(tmp_path: Path) -> None:
    vision = {**CONFIG["model_cfg"]["vision_cfg"], "patch_dropout": 0.5}
    base = load_base(make_folder(tmp_path / "base", vision_cfg=vision))
    assert base.masking.supported
    base.visual.train()
    images_BCHW = torch.randn(2, 3, 16, 16)
    assert torch.equal(base.visual(images_BCHW), base.visual(images_BCHW))
