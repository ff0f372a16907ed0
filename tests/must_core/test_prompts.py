from pathlib import Path

import pytest
import torch

from must_core.backbone import BaseModel, load_base
from must_core.errors import InvalidClasses
from must_core.prompts import ClassSpec, build_class_weights, check_classes
from tests.support.tiny import make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base(make_base(tmp_path_factory.mktemp("base")))


def specs(*names: str) -> list[ClassSpec]:
    return [ClassSpec(name) for name in names]


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["cat"], "too_few_classes"),
        (["x"] * 10_001, "too_many_classes"),
        (["Cat", "cat "], "duplicate_class"),
        (["ﬁsh", "fish"], "duplicate_class"),
        (["", "dog"], "invalid_class_name"),
        (["  ", "dog"], "invalid_class_name"),
        (["\u200b", "dog"], "invalid_class_name"),
        (["a\x00b", "dog"], "invalid_class_name"),
        (["\ud800", "dog"], "invalid_class_name"),
        (["a\nb", "dog"], "invalid_class_name"),
        (["\x1b[31mred", "dog"], "invalid_class_name"),
        (["abc\u202edef", "dog"], "invalid_class_name"),
    ],
)
def test_class_names_that_are_refused(names: list[str], code: str) -> None:
    with pytest.raises(InvalidClasses) as caught:
        check_classes(specs(*names), ["{}"])
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("templates", "code"),
    [
        ([], "template_missing_placeholder"),
        (["a photo"], "template_missing_placeholder"),
        (["{} and {}"], "template_invalid_placeholder"),
        (["{0}"], "template_invalid_placeholder"),
        (["{x}"], "template_invalid_placeholder"),
        (["{!r}"], "template_invalid_placeholder"),
        (["{:>999999999}"], "template_invalid_placeholder"),
        (["{} {"], "template_invalid_placeholder"),
        (["}{"], "template_invalid_placeholder"),
        (["{}"] * 201, "too_many_prompts"),
        (["a\x07{}"], "invalid_template"),
    ],
)
def test_templates_that_are_refused(templates: list[str], code: str) -> None:
    with pytest.raises(InvalidClasses) as caught:
        check_classes(specs("cat", "dog"), templates)
    assert caught.value.code == code


@pytest.mark.parametrize("name", ["{0.__class__}", "%s", "<script>", "=HYPERLINK(1)", "naïve", "猫", "{}"])
def test_odd_names_are_taken_literally(name: str, base: BaseModel) -> None:
    check_classes(specs(name, "dog"), ["a photo of a {}."])
    assert ClassSpec(name).texts(["a {}."]) == [f"a {name}."]
    build_class_weights(base, specs(name, "dog"), ["a photo of a {}."])


def test_too_long_names_and_prompts_are_refused_rather_than_cut(base: BaseModel) -> None:
    with pytest.raises(InvalidClasses) as caught:
        build_class_weights(base, specs("word " * 100, "dog"), ["{}"])
    assert caught.value.code == "class_name_too_long"
    with pytest.raises(InvalidClasses) as caught:
        build_class_weights(base, specs("cat", "dog"), ["word " * 100 + "{}"])
    assert caught.value.code == "prompt_too_long"


def test_cutting_the_padding_changes_nothing(base: BaseModel) -> None:
    texts = ["cat", "a photo of a very large dog on a small green chair"]
    whole = base._model.encode_text(base._tokenizer(texts), normalize=True)  # type: ignore[operator]
    assert torch.allclose(base.encode_text(texts), whole, atol=1e-6)


def test_own_prompts_replace_the_templates(base: BaseModel) -> None:
    own = build_class_weights(base, [ClassSpec("cat", ("a tabby",)), ClassSpec("dog")], ["a {}"])
    written_out = build_class_weights(base, [ClassSpec("tabby"), ClassSpec("dog")], ["a {}"])
    assert torch.equal(own, written_out)
    assert torch.allclose(own.norm(dim=0), torch.ones(2))


def test_the_folder_is_not_needed_afterwards(tmp_path: Path) -> None:
    base = load_base(make_base(tmp_path))
    (tmp_path / "open_clip_model.safetensors").unlink()
    assert base.encode_text(["cat"]).shape == (1, 16)
