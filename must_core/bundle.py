"""The published classifier: a folder that holds all that answers need, and proves that it still does.

``classifier.json`` says how to build the tower, how to prepare images and what the classes are; ``weights.safetensors``
holds the tower and the class weights. A fingerprint (logits of one synthetic image) is checked after loading, so that
the same weights under another activation function are refused.

Shapes: B images, K classes, D embedding width.
"""

import json
import shutil
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from must_core import __version__
from must_core.backbone import Preprocess, build_visual
from must_core.errors import CorruptArtifact
from must_core.files import load_tensors, publish_folder, save_tensors, sha256_of, write_json
from must_core.student import Student
from must_core.text.prompts import ClassSpec

MANIFEST = "classifier.json"
WEIGHTS = "weights.safetensors"
_FORMAT = 1
_FINGERPRINT_TOLERANCE = 3e-5
"""Of a cosine. Processors differ by some 1e-6; another activation moves it by 3e-4 in the smallest of towers."""


@dataclass(frozen=True)
class Bundle:
    """A classifier ready to answer."""

    classifier: Student
    preprocess: Preprocess
    class_names: tuple[str, ...]
    manifest: dict[str, Any]
    unknown_below: float | None = None
    """Images whose raw score is lower are of none of the classes, see `must_core.unknown`; None when nobody can say."""


def save_bundle(
    folder: Path,
    classifier: Student,
    *,
    visual_config: dict[str, Any],
    preprocess: Preprocess,
    classes: Sequence[ClassSpec],
    templates: Sequence[str],
    provenance: dict[str, Any],
    unknown_below: float | None = None,
) -> None:
    """Write a bundle; ``folder`` must not exist and appears whole.

    ``provenance`` is kept as it is: base model, configuration, metrics, whatever explains where this came from.
    """
    staged = folder.parent / f".{folder.name}.tmp"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    tensors = {f"visual.{name}": t.cpu().contiguous() for name, t in classifier.visual.state_dict().items()}
    tensors["classifier"] = classifier.classifier.detach().cpu().contiguous()
    save_tensors(tensors, staged / WEIGHTS)
    manifest = {
        "format": _FORMAT,
        "must_core": __version__,
        "visual": visual_config,
        "preprocess": asdict(preprocess),
        "logit_scale": classifier.logit_scale,
        "classes": [{"name": c.name, "prompts": list(c.prompts)} for c in classes],
        "templates": list(templates),
        "weights_sha256": sha256_of(staged / WEIGHTS),
        "fingerprint": _fingerprint(deepcopy(classifier).cpu().float().eval(), preprocess.image_size).tolist(),
        "unknown_below": unknown_below,
        "provenance": provenance,
    }
    write_json(staged / MANIFEST, manifest)
    publish_folder(staged, folder)


def load_bundle(folder: Path) -> Bundle:
    """Load and verify a bundle. Raises `CorruptArtifact` when anything is not as it was written."""
    if not (folder / MANIFEST).is_file():
        raise CorruptArtifact(f"There is no {MANIFEST} in the folder.")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if sha256_of(folder / WEIGHTS) != manifest["weights_sha256"]:
            raise CorruptArtifact("The weights are not those that were written.")
        tensors = load_tensors(folder / WEIGHTS)
        visual = build_visual(manifest["visual"])
        visual.load_state_dict({k.removeprefix("visual."): t for k, t in tensors.items() if k.startswith("visual.")})
        classifier = serving_classifier(visual, tensors["classifier"], logit_scale=manifest["logit_scale"])
        preprocess = Preprocess.from_config({"size": manifest["preprocess"]["image_size"], **manifest["preprocess"]})
        class_names = tuple(c["name"] for c in manifest["classes"])
        unknown_below = manifest.get("unknown_below")  # not in bundles of the first versions
        unknown_below = None if unknown_below is None else float(unknown_below)
        expected = torch.tensor(manifest["fingerprint"])
        difference = (_fingerprint(classifier, preprocess.image_size) - expected).abs().max() / classifier.logit_scale
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as e:
        raise CorruptArtifact("The bundle cannot be read.") from e
    if not difference <= _FINGERPRINT_TOLERANCE:
        raise CorruptArtifact("The bundle answers differently from the classifier that was saved.")
    return Bundle(classifier, preprocess, class_names, manifest, unknown_below)


def serving_classifier(visual: nn.Module, class_weights_DK: Tensor, *, logit_scale: float) -> Student:
    """A classifier for inference alone: no gradient, evaluation mode."""
    return Student(visual, class_weights_DK, logit_scale=logit_scale).requires_grad_(requires_grad=False).eval()


@torch.inference_mode()
def _fingerprint(classifier: Student, image_size: int) -> Tensor:
    """Logits of one fixed image of smooth waves, on the CPU."""
    steps = torch.linspace(0, 12, image_size)
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    image_CHW = torch.stack([(rows * (c + 1)).sin() + (columns * (2 - c / 2)).cos() for c in range(3)])
    logits_BK: Tensor = classifier(image_CHW[None])
    return logits_BK[0]
