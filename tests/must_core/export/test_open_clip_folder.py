import json
import shutil
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from must_core.backbone import LOCAL_DIR, load_base
from must_core.errors import InvalidConfig
from must_core.export import export_open_clip
from must_core.export.open_clip_folder import MODEL
from tests.must_core.export.adapted import KINDS, Adapted, make_adapted, picture, run_readme
from tests.support.tiny import CLASSES


def loaded(folder: Path) -> Any:
    """The exported model. Frozen as ours are, for attention takes another path otherwise, some roundings away."""
    model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True)
    return model.eval().requires_grad_(requires_grad=False)


def answers(folder: Path, images_BCHW: Tensor) -> Tensor:
    """What open_clip says with the exported class head, ``logits_BK``."""
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    class_weights_DK = load_file(folder / "class_weights.safetensors")["class_weights"]
    with torch.inference_mode():
        features_BD = model.eval().encode_image(images_BCHW, normalize=True)
        logits_BK: Tensor = model.logit_scale.exp() * features_BD @ class_weights_DK
    return logits_BK


def test_open_clip_gives_the_same_logits(adapted: Adapted, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    export_open_clip(adapted.bundle, adapted.base, folder)
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert json.loads((folder / "classes.json").read_text()) == CLASSES
    for size in ((20, 20), (301, 170), (33, 190)):
        image_CHW = preprocess(picture(size))
        assert torch.equal(image_CHW, adapted.bundle.preprocess.transform()(picture(size)))
        expected_BK = adapted.logits(picture(size))
        scale = adapted.bundle.classifier.logit_scale
        assert torch.allclose(answers(folder, image_CHW[None]), expected_BK, rtol=0, atol=1e-5 * scale)


def test_every_tensor_is_the_one_it_was(adapted: Adapted, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    export_open_clip(adapted.bundle, adapted.base, folder)
    model = loaded(folder)
    classifier = adapted.bundle.classifier
    visual, before = classifier.visual.state_dict(), adapted.base.model.state_dict()
    assert not torch.equal(next(iter(visual.values())), next(iter(adapted.base.visual.state_dict().values())))
    for name, tensor in model.state_dict().items():
        expected = visual[name.removeprefix("visual.")] if name.startswith("visual.") else before[name]
        assert torch.equal(tensor, expected), name
    assert torch.equal(load_file(folder / "class_weights.safetensors")["class_weights"], classifier.classifier)
    images_BCHW = adapted.images(3)
    with torch.inference_mode():
        expected_BD = F.normalize(classifier.visual(images_BCHW), dim=-1)
        assert torch.equal(model.encode_image(images_BCHW, normalize=True), expected_BD)


def test_texts_are_encoded_as_before(adapted: Adapted, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    export_open_clip(adapted.bundle, adapted.base, folder)
    model, unchanged = loaded(folder), loaded(Path(adapted.base.address.removeprefix("local-dir:")))
    tokenizer, before = (open_clip.get_tokenizer(a) for a in (f"local-dir:{folder}", adapted.base.address))
    tokens_TL = tokenizer(["red", "a green thing"])
    assert torch.equal(tokens_TL, before(["red", "a green thing"]))
    assert len(set(map(tuple, tokens_TL.tolist()))) == 2
    with torch.inference_mode():
        expected_TD = unchanged.encode_text(tokens_TL)
        assert torch.equal(model.encode_text(tokens_TL), expected_TD)


def test_the_other_activation_would_answer_differently(clip: Adapted, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    export_open_clip(clip.bundle, clip.base, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    assert config["model_cfg"]["quick_gelu"] is True
    expected_BK = answers(folder, clip.images(4))
    config["model_cfg"]["quick_gelu"] = False
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert (answers(folder, clip.images(4)) - expected_BK).abs().max() > 10e-5 * clip.bundle.classifier.logit_scale


def test_the_classifiers_own_scale_is_exported(clip: Adapted, tmp_path: Path) -> None:
    classifier = copy(clip.bundle.classifier)
    classifier.logit_scale = 31.4
    export_open_clip(replace(clip.bundle, classifier=classifier), clip.base, tmp_path / "exported")
    with torch.inference_mode():
        expected_BK = classifier(clip.images(4))
    assert torch.allclose(answers(tmp_path / "exported", clip.images(4)), expected_BK, rtol=0, atol=31.4e-5)
    assert not torch.allclose(clip.bundle.classifier(clip.images(4)), expected_BK, rtol=0, atol=1)


def test_the_readme_gives_the_logits(adapted: Adapted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "exported"
    export_open_clip(adapted.bundle, adapted.base, folder)
    monkeypatch.chdir(folder)
    picture((47, 30)).save("image.png")
    expected_BK = adapted.logits(picture((47, 30)))
    atol = 1e-5 * adapted.bundle.classifier.logit_scale
    said = run_readme(folder)
    assert torch.allclose(said["logits"], expected_BK, rtol=0, atol=atol)
    raw_score = float(expected_BK.max()) / adapted.bundle.classifier.logit_scale
    for limit, unknown in ((None, False), (raw_score - 1e-3, False), (raw_score + 1e-3, True)):
        (folder / "unknown.json").write_text(json.dumps({"unknown_below": limit}))
        assert run_readme(folder)["unknown"] is unknown
    picture((30, 47)).save("image.png")
    assert not torch.allclose(run_readme(folder)["logits"], expected_BK, rtol=0, atol=atol)


def test_a_base_with_another_tower_is_refused(clip: Adapted, tmp_path: Path) -> None:
    other = make_adapted(tmp_path / "other", KINDS["gelu"])
    with pytest.raises(InvalidConfig, match="another image tower"):
        export_open_clip(clip.bundle, other.base, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_another_training_of_the_same_model_is_refused(clip: Adapted, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(clip.base.address.removeprefix(LOCAL_DIR), folder)
    tensors = load_file(folder / MODEL)
    tensors["token_embedding.weight"] = tensors["token_embedding.weight"].flip(0).contiguous()
    save_file(tensors, folder / MODEL)
    with pytest.raises(InvalidConfig, match="another model"):
        export_open_clip(clip.bundle, load_base(f"{LOCAL_DIR}{folder}"), tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_a_folder_that_is_there_is_left_alone(clip: Adapted, tmp_path: Path) -> None:
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "mine.txt").write_text("kept")
    with pytest.raises(InvalidConfig, match="there already"):
        export_open_clip(clip.bundle, clip.base, tmp_path / "exported")
    assert [p.name for p in tmp_path.rglob("*")] == ["exported", "mine.txt"]


def test_a_failure_leaves_nothing_behind(clip: Adapted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("must_core.export.folder.publish_folder", fail)
    with pytest.raises(OSError, match="disk full"):
        export_open_clip(clip.bundle, clip.base, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []
