"""What several commands are given: classes, prompts, labels, classifiers."""

from dataclasses import dataclass
from pathlib import Path

from must_core.backbone import Preprocess, load_base
from must_core.bundle import load_bundle, serving_classifier
from must_core.data.image_list import ImageList
from must_core.data.labels import Labels
from must_core.errors import InvalidConfig
from must_core.parallel import local_device
from must_core.presets import PRESETS, Preset
from must_core.student import Student
from must_core.text.class_files import read_classes, read_templates
from must_core.text.prompts import DEFAULT_TEMPLATES, build_class_weights

FOLDERS = "folders"


@dataclass(frozen=True)
class Subject:
    """A classifier to ask."""

    classifier: Student
    preprocess: Preprocess
    class_names: tuple[str, ...]
    metric: str
    """The one that the paper reports for data of this kind."""


def find_preset(name: str | None) -> Preset | None:
    """The preset of a name; raises `InvalidConfig` for one that the paper does not have."""
    if name is None:
        return None
    if name not in PRESETS:
        raise InvalidConfig(f"There are {', '.join(PRESETS)}.", code="unknown_preset", param="preset")
    return PRESETS[name]


def choose_templates(file: Path | None, preset: Preset | None) -> tuple[str, ...]:
    """Templates of a file, else of the preset, else the general ones."""
    if file is not None:
        return read_templates(file)
    return DEFAULT_TEMPLATES if preset is None else preset.templates


def read_labels(labels: str, images: ImageList, class_names: tuple[str, ...], *, root: Path) -> Labels:
    """Labels as ``--labels`` names them."""
    if labels == FOLDERS:
        found = Labels.from_folders(images, class_names, root=root)
    else:
        found = Labels.from_csv(Path(labels), images, class_names, root=root, ignore_other_files=True)
    if not found.num_labelled:
        raise InvalidConfig("Labels: none of them belongs to an image.", code="invalid_value", param="labels")
    return found


def open_classifier(
    classifier: Path | None,
    model: str | None,
    classes: Path | None,
    templates: Path | None = None,
    preset_name: str | None = None,
    *,
    device: str | None = None,
) -> Subject:
    """A bundle, or a base model with classes; raises `InvalidConfig` when it is neither or both."""
    preset = find_preset(preset_name)
    metric = preset.metric if preset else "top1"
    if classifier is not None and model is None:
        bundle = load_bundle(classifier)
        return Subject(bundle.classifier.to(local_device(device)), bundle.preprocess, bundle.class_names, metric)
    if classifier is not None or model is None or classes is None:
        raise InvalidConfig("Name a classifier, or a model and classes.", param="classifier")
    base, specs = load_base(model), read_classes(classes)
    weights_DK = build_class_weights(base, specs, choose_templates(templates, preset))
    zero_shot = serving_classifier(base.visual, weights_DK, logit_scale=base.logit_scale)
    return Subject(zero_shot.to(local_device(device)), base.preprocess, tuple(c.name for c in specs), metric)
