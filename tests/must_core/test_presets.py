import open_clip.zero_shot_metadata as shipped
import pytest
import torch

from must_core.config import AdaptConfig
from must_core.errors import InvalidClasses, InvalidConfig
from must_core.evaluate import accuracy
from must_core.masking import PatchMasker
from must_core.presets import PRESETS, Column, Preset, preset
from must_core.text import templates
from must_core.text.prompts import ClassSpec, check_classes

CLASSES = [ClassSpec("cat"), ClassSpec("dog")]
COLUMNS = [
    (name, patch_size)
    for name, found in PRESETS.items()
    for patch_size, column in ((16, found.vit_b_16), (14, found.vit_l_14))
    if column is not None
]


def test_every_column_of_the_paper_is_there() -> None:
    assert list(PRESETS) == ["imagenet", "sun397", "food101", "gtsrb", "dtd", "ucf101", "pets", "caltech101"]
    assert len(COLUMNS) == 14
    assert {name for name in PRESETS if (name, 14) not in COLUMNS} == {"pets", "caltech101"}


@pytest.mark.parametrize(("name", "patch_size"), COLUMNS)
def test_masks_fit_the_towers_that_the_settings_are_for(name: str, patch_size: int) -> None:
    config = PRESETS[name].config(patch_size, 5)
    assert config.seed == 5
    PatchMasker(
        image_size=224, patch_size=patch_size, mask_patch_size=config.mask_patch_size, mask_ratio=config.mask_ratio
    )
    assert config.min_learning_rate < config.learning_rate


def test_a_mask_that_does_not_fit_would_be_noticed() -> None:
    with pytest.raises(InvalidConfig):
        PatchMasker(image_size=224, patch_size=16, mask_patch_size=PRESETS["dtd"].config(14).mask_patch_size + 1,
                    mask_ratio=0.1)  # fmt: skip


def test_cells_of_the_papers_table() -> None:
    imagenet = preset("imagenet", patch_size=14)
    assert (imagenet.mask_patch_size, imagenet.confidence_threshold, imagenet.epochs) == (56, 0.5, 20)
    sun = preset("sun397", patch_size=16)
    assert (sun.alignment_weight, sun.fairness_weight, sun.learning_rate_per_256) == (1, 0.2, 1e-4)
    gtsrb = preset("gtsrb", patch_size=16)
    assert (gtsrb.mask_ratio, gtsrb.confidence_threshold, gtsrb.ema_decay_init) == (0.5, 0.3, 0.99)
    assert preset("dtd", patch_size=16).ema_warmup_steps == 100
    assert preset("ucf101", patch_size=14).mask_patch_size == 28


def test_the_imagenet_preset_is_the_default_configuration() -> None:
    assert preset("imagenet", patch_size=16) == AdaptConfig()


def test_other_patches_get_the_settings_of_vit_b_16() -> None:
    assert preset("food101", patch_size=32) == preset("food101", patch_size=16)
    assert preset("food101", patch_size=14) != preset("food101", patch_size=16)


def test_what_the_paper_does_not_have_is_refused() -> None:
    for name, patch_size in (("pets", 14), ("caltech101", 14), ("cifar10", 16)):
        with pytest.raises(InvalidConfig) as caught:
            preset(name, patch_size=patch_size)
        assert caught.value.param == "preset"


@pytest.mark.parametrize("found", PRESETS.values(), ids=lambda found: found.name)
def test_templates_keep_our_rules_and_name_their_source(found: Preset) -> None:
    check_classes(CLASSES, found.templates)
    assert len(set(found.templates)) == len(found.templates)
    assert found.templates_source.startswith("https://github.com/openai/CLIP/")
    with pytest.raises(InvalidClasses):
        check_classes(CLASSES, [*found.templates, "{} {}"])


def test_numbers_of_templates() -> None:
    counts = {name: len(found.templates) for name, found in PRESETS.items()}
    assert counts == {
        "imagenet": 80, "sun397": 2, "food101": 1, "gtsrb": 3, "dtd": 8, "ucf101": 48, "pets": 1, "caltech101": 34
    }  # fmt: skip


def test_imagenet_templates_are_those_that_open_clip_ships() -> None:
    assert [fill("{}") for fill in shipped.OPENAI_IMAGENET_TEMPLATES] == list(templates.IMAGENET)


def test_lists_have_the_regularity_of_the_originals() -> None:
    verbs = ("", "using ", "doing ", "during ", "performing ", "practicing ")
    media = ("photo", "video", "example", "demonstration")
    product = [f"a {m} of {w} person {v}{{}}." for v in verbs for w in ("a", "the") for m in media]
    assert list(templates.UCF101) == product
    indefinite, definite = templates.CALTECH101[:17], templates.CALTECH101[17:]
    for a, the in zip(indefinite, definite, strict=True):
        assert a != the
        assert a.replace(" a {}", " the {}").removeprefix("a ") == the.removeprefix("the ").removeprefix("a ")


def test_metrics_are_ones_that_the_evaluation_yields() -> None:
    yielded = dict(accuracy(torch.eye(2), torch.tensor([0, 1])))
    assert {found.metric for found in PRESETS.values()} <= yielded.keys()
    assert {name for name, found in PRESETS.items() if found.metric == "mean_per_class"} == {"pets", "caltech101"}


def test_imagenets_own_names_hold_two_twins_which_our_rules_refuse() -> None:
    names = shipped.IMAGENET_CLASSNAMES
    twins = {name for name in names if names.count(name) > 1}
    assert twins == {"missile", "sunglasses"}
    with pytest.raises(InvalidClasses) as caught:
        check_classes([ClassSpec(name) for name in names], templates.IMAGENET)
    assert caught.value.code == "duplicate_class"


def test_imagenets_twins_can_be_kept_apart_by_name_and_keep_their_prompts() -> None:
    names = list(shipped.IMAGENET_CLASSNAMES)
    classes = [ClassSpec(name) for name in names]
    for twin in ("missile", "sunglasses"):
        second = len(names) - 1 - names[::-1].index(twin)
        prompts = tuple(ClassSpec(twin).texts(templates.IMAGENET))
        classes[second] = ClassSpec(f"{twin} (2)", prompts)
    check_classes(classes, templates.IMAGENET)
    assert classes[744].texts(templates.IMAGENET) == classes[657].texts(templates.IMAGENET)


def test_a_column_is_complete() -> None:
    assert set(Column._fields) < set(AdaptConfig().to_dict())
