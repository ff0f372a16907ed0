import json
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from must_core.backbone import Preprocess
from must_core.errors import InvalidConfig
from must_core.export import export_onnx
from must_core.student import Student
from tests.must_core.export.adapted import Adapted, disturb, picture, run_readme
from tests.support.tiny import CLASSES


def session(folder: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])


def difference(runtime: onnxruntime.InferenceSession, classifier: Student, images_BCHW: Tensor) -> float:
    """Largest difference of any logit."""
    (logits_BK,) = runtime.run(["logits"], {"images": images_BCHW.numpy()})
    with torch.inference_mode():
        expected_BK = classifier(images_BCHW)
    assert logits_BK.shape == expected_BK.shape
    return float((torch.from_numpy(logits_BK) - expected_BK).abs().max())


@pytest.fixture(scope="module")
def exported(adapted: Adapted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "exported"
    export_onnx(adapted.bundle, folder)
    return folder


@pytest.mark.parametrize("num_images", [1, 5])
def test_onnxruntime_gives_the_same_logits(adapted: Adapted, exported: Path, num_images: int) -> None:
    classifier, runtime = adapted.bundle.classifier, session(exported)
    assert classifier.logit_scale == pytest.approx(100)
    assert difference(runtime, classifier, adapted.images(num_images)) < 1e-4
    other = disturb(deepcopy(classifier).requires_grad_(requires_grad=False))
    assert difference(runtime, other, adapted.images(num_images)) > 1e-2


def test_the_model_says_what_it_is(adapted: Adapted, exported: Path) -> None:
    runtime, side = session(exported), adapted.bundle.preprocess.image_size
    (images,), (logits,) = runtime.get_inputs(), runtime.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(float)", ["batch", 3, side, side])
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", ["batch", len(CLASSES)])
    metadata = runtime.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == json.loads((exported / "classes.json").read_text()) == CLASSES
    assert metadata["weights_sha256"] == adapted.bundle.manifest["weights_sha256"]
    assert json.loads(metadata["logit_scale"]) == adapted.bundle.classifier.logit_scale
    assert json.loads(metadata["unknown_below"]) == adapted.bundle.unknown_below is not None
    preprocess = json.loads((exported / "preprocess.json").read_text())
    assert json.loads(metadata["preprocess"]) == preprocess
    assert Preprocess.from_config(preprocess) == adapted.bundle.preprocess


def test_the_readme_gives_the_logits(adapted: Adapted, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exported)
    for size in ((47, 30), (171, 364), (9, 9)):
        picture(size).save("image.png")
        logits_BK = torch.from_numpy(run_readme(exported)["logits"])
        assert torch.allclose(logits_BK, adapted.logits(picture(size)), rtol=0, atol=1e-4)
        assert not torch.allclose(logits_BK, adapted.logits(picture((40, 80))), rtol=0, atol=1e-4)


def test_exporting_says_nothing_and_needs_no_runtime(
    clip: Adapted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError):
        import onnxruntime  # noqa: F401, PLC0415
    export_onnx(clip.bundle, tmp_path / "exported")
    assert capfd.readouterr().out == ""


HERE = str(Path(torch.__file__).parent.parent).encode()


def test_the_file_does_not_tell_where_it_was_made(exported: Path) -> None:
    assert HERE not in (exported / "model.onnx").read_bytes()


def test_the_exporters_notes_would_tell(clip: Adapted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("must_core.export.onnx_folder._forget_where_it_was_made", lambda _model: None)
    export_onnx(clip.bundle, tmp_path / "exported")
    assert HERE in (tmp_path / "exported" / "model.onnx").read_bytes()


def test_weights_too_large_for_one_file_lie_beside_it(
    clip: Adapted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("must_core.export.onnx_folder._INLINE_AT_MOST", 0)
    export_onnx(clip.bundle, tmp_path / "exported")
    assert {p.name for p in (tmp_path / "exported").glob("model*")} == {"model.onnx", "model.onnx.data"}
    (tmp_path / "exported").rename(tmp_path / "moved")
    assert difference(session(tmp_path / "moved"), clip.bundle.classifier, clip.images(2)) < 1e-4


class DependsOnPixels(nn.Module):
    """A tower whose course no graph can hold."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW.flatten(1)[:, :16] * (2 if images_BCHW.sum().item() > 0 else 3)


def test_a_tower_that_cannot_be_translated_is_refused(clip: Adapted, tmp_path: Path) -> None:
    classifier = deepcopy(clip.bundle.classifier)
    classifier.visual = DependsOnPixels()
    with pytest.raises(InvalidConfig, match="cannot translate") as refused:
        export_onnx(replace(clip.bundle, classifier=classifier), tmp_path / "exported")
    assert refused.value.code == "not_exportable"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(clip: Adapted, tmp_path: Path) -> None:
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "mine.txt").write_text("kept")
    with pytest.raises(InvalidConfig, match="there already"):
        export_onnx(clip.bundle, tmp_path / "exported")
    assert [p.name for p in tmp_path.rglob("*")] == ["exported", "mine.txt"]
