import json
from pathlib import Path

import pytest
import torch

from must_core.backbone import BaseModel, load_base
from must_core.bundle import MANIFEST, WEIGHTS, load_bundle, save_bundle
from must_core.errors import CorruptArtifact
from must_core.student import Student
from must_core.text.prompts import ClassSpec, build_class_weights
from tests.support.tiny import CLASSES, make_base


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Student]:
    base: BaseModel = load_base(make_base(tmp_path / "base"))
    classes = [ClassSpec(c) for c in CLASSES]
    student = Student.from_base(base, build_class_weights(base, classes, ["{}"]))
    save_bundle(
        tmp_path / "bundle",
        student,
        visual_config=base.visual_config,
        preprocess=base.preprocess,
        classes=classes,
        templates=["{}"],
        provenance={"base_model": base.address},
    )
    return tmp_path / "bundle", student.eval()


def test_answers_are_the_same_after_loading(saved: tuple[Path, Student]) -> None:
    folder, student = saved
    bundle = load_bundle(folder)
    images_BCHW = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(bundle.classifier(images_BCHW), student(images_BCHW))
    assert bundle.class_names == tuple(CLASSES)
    assert bundle.preprocess.image_size == 16


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
@pytest.mark.parametrize("at", [0.01, 0.5, 0.99])
def test_a_flipped_bit_is_noticed(saved: tuple[Path, Student], name: str, at: float) -> None:
    folder, _ = saved
    load_bundle(folder)
    path = folder / name
    content = bytearray(path.read_bytes())
    if name == MANIFEST:
        # Text has bytes that decide nothing (blanks); break what is meant.
        manifest = json.loads(content)
        manifest["weights_sha256"] = "0" * 64 if at < 0.5 else manifest["weights_sha256"]
        if at >= 0.5:
            manifest["logit_scale"] = manifest["logit_scale"] * 1.5
        path.write_text(json.dumps(manifest))
    else:
        content[int(len(content) * at)] ^= 4
        path.write_bytes(content)
    with pytest.raises(CorruptArtifact):
        load_bundle(folder)


def test_the_same_weights_under_another_activation_are_refused(saved: tuple[Path, Student]) -> None:
    folder, _ = saved
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["visual"]["quick_gelu"] is True
    manifest["visual"]["quick_gelu"] = False
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CorruptArtifact, match="answers differently"):
        load_bundle(folder)


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_a_missing_file_is_noticed(saved: tuple[Path, Student], name: str) -> None:
    folder, _ = saved
    (folder / name).unlink()
    with pytest.raises(CorruptArtifact):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("written", "read"), [({}, None), ({"unknown_below": None}, None), ({"unknown_below": 0.2}, 0.2)]
)
def test_the_limit_of_the_unknown_is_read_and_may_be_missing(
    saved: tuple[Path, Student], written: dict[str, float | None], read: float | None
) -> None:
    """Bundles of the first versions have none."""
    folder, _ = saved
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    assert manifest.pop("unknown_below") is None
    path.write_text(json.dumps(manifest | written))
    assert load_bundle(folder).unknown_below == read


@pytest.mark.parametrize("written", ["much", [0.2], {}])
def test_a_limit_that_is_no_number_is_refused(saved: tuple[Path, Student], written: object) -> None:
    folder, _ = saved
    path = folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "unknown_below": written}))
    with pytest.raises(CorruptArtifact):
        load_bundle(folder)
