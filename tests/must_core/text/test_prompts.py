from itertools import pairwise
from pathlib import Path

import pytest
import torch

from must_core.backbone import BaseModel, load_base
from must_core.errors import InvalidClasses
from must_core.text.prompts import (
    MAX_PROMPTS,
    ClassSpec,
    PromptEnsemble,
    build_class_weights,
    check_classes,
    check_lengths,
    length_checks,
    num_prompts,
)
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
        (["ＣＡＴ", "cat"], "duplicate_class"),
        (["Straße", "STRASSE"], "duplicate_class"),
        (["cat\u200b", "cat"], "duplicate_class"),
        (["\u3000cat\u00a0", "cat"], "duplicate_class"),
        (["\u2764\ufe0f", "\u2764"], "duplicate_class"),
        (["", "dog"], "invalid_class_name"),
        (["  ", "dog"], "invalid_class_name"),
        (["\u3000\u00a0", "dog"], "invalid_class_name"),
        (["a\x00b", "dog"], "invalid_class_name"),
        (["\ud800", "dog"], "invalid_class_name"),
        (["a\nb", "dog"], "invalid_class_name"),
        (["\x1b[31mred", "dog"], "invalid_class_name"),
        (["\x7f", "dog"], "invalid_class_name"),
        (["a\x9bb", "dog"], "invalid_class_name"),
        (["a\u2028b", "dog"], "invalid_class_name"),
        (["abc\u202edef", "dog"], "invalid_class_name"),
        (["abc\u2066def", "dog"], "invalid_class_name"),
        (["cat<end_of_text>1", "dog"], "invalid_class_name"),
        (["cat&amp;lt;END_of_text>", "dog"], "invalid_class_name"),
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
        (["{}}"], "template_invalid_placeholder"),
        (["{{}}"], "template_invalid_placeholder"),
        (["a {}", "a photo"], "template_missing_placeholder"),
        (["a\x07{}"], "invalid_template"),
        (["a\n{}"], "invalid_template"),
        (["\u202e{}"], "invalid_template"),
        ([""], "invalid_template"),
        (["\ud800{}"], "invalid_template"),
        (["a {}<end_of_text>"], "invalid_template"),
    ],
)
def test_templates_that_are_refused(templates: list[str], code: str) -> None:
    with pytest.raises(InvalidClasses) as caught:
        check_classes(specs("cat", "dog"), templates)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "character",
    [
        "\u00ad", "\u034f", "\u115f", "\u1160", "\u17b4", "\u180b", "\u180e", "\u180f", "\u200b", "\u200d", "\u2060",
        "\u2065", "\u3164", "\ufe00", "\ufe0f", "\ufeff", "\uffa0", "\ufff0", "\U0001bca0", "\U0001d173", "\U000e0001",
        "\U000e01ef", "\u2800", "\u0301",
    ],
)  # fmt: skip
def test_names_of_nothing_visible_are_refused(character: str) -> None:
    for name in (character, character * 3, f" {character} "):
        with pytest.raises(InvalidClasses) as caught:
            check_classes(specs(name, "dog"), ["{}"])
        assert caught.value.code == "invalid_class_name"
    check_classes(specs(f"a{character}b", "dog"), ["{}"])  # within a name it is accepted


@pytest.mark.parametrize(
    "name",
    [
        "{0.__class__}", "%s", "<script>", "=HYPERLINK(1)", "naïve", "猫", "{}", "&amp;", "<end_of_text", "π",
        "\u2764\ufe0f", "\U0001f469\u200d\U0001f680", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001fae8",
    ],
)  # fmt: skip
def test_odd_names_are_taken_literally(name: str, base: BaseModel) -> None:
    check_classes(specs(name, "dog"), ["a photo of a {}."])
    assert ClassSpec(name).texts(["a {}."]) == [f"a {name}."]
    build_class_weights(base, specs(name, "dog"), ["a photo of a {}."])


def test_a_mark_of_the_tokenizer_would_hide_what_follows(base: BaseModel) -> None:
    assert torch.equal(base.encode_text(["cat<end_of_text>1"]), base.encode_text(["cat<end_of_text>2"]))
    assert not torch.equal(base.encode_text(["cat 1"]), base.encode_text(["cat 2"]))


def test_prompts_of_a_class_keep_the_same_rules_as_its_name() -> None:
    check_classes([ClassSpec("cat", ("a tabby",)), ClassSpec("dog")], ["{}"])
    for prompt in ("", "a\x07", "\u3164", "a\nb"):
        with pytest.raises(InvalidClasses) as caught:
            check_classes([ClassSpec("cat", ("a tabby", prompt)), ClassSpec("dog")], ["{}"])
        assert caught.value.code == "invalid_class_name"
        assert caught.value.message.startswith("Class 1")


def test_the_limit_on_prompts_counts_a_classs_own() -> None:
    many = [ClassSpec("cat", ("x",) * (MAX_PROMPTS - 1)), ClassSpec("dog")]
    assert num_prompts(many, ["{}"]) == MAX_PROMPTS
    with pytest.raises(InvalidClasses) as caught:
        check_classes(many, ["{}", "a {}"])
    assert caught.value.code == "too_many_prompts"
    check_classes(specs(*(f"class {i}" for i in range(10_000))), [f"{i} {{}}" for i in range(200)])  # exactly the limit


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (1, "invalid_type"),
        (None, "invalid_type"),
        (True, "invalid_type"),
        (["cat"], "invalid_type"),
        ({}, "invalid_type"),
        ({"name": 3}, "invalid_type"),
        ({"name": None, "prompts": []}, "invalid_type"),
        ({"name": "cat", "prompts": "a tabby"}, "invalid_type"),
        ({"name": "cat", "prompts": None}, "invalid_type"),
        ({"name": "cat", "prompts": {"a": "b"}}, "invalid_type"),
        ({"name": "cat", "prompts": ["a tabby", 3]}, "invalid_type"),
        ({"name": "cat", "prompts": [None]}, "invalid_type"),
        ({"name": "cat", "prompts": [["a tabby"]]}, "invalid_type"),
        ({"name": "cat", "prompt": ["a tabby"]}, "unknown_field"),
    ],
)
def test_no_value_is_taken_for_another_types(value: object, code: str) -> None:
    with pytest.raises(InvalidClasses) as caught:
        ClassSpec.from_json(value)
    assert (caught.value.code, caught.value.param) == (code, "classes")


def test_what_json_may_say_of_a_class() -> None:
    assert ClassSpec.from_json("cat") == ClassSpec("cat")
    assert (
        ClassSpec.from_json({"name": "cat"}) == ClassSpec.from_json({"name": "cat", "prompts": []}) == ClassSpec("cat")
    )
    assert ClassSpec.from_json({"name": "cat", "prompts": ["a tabby"]}) == ClassSpec("cat", ("a tabby",))


LONG = "word " * 100


@pytest.mark.parametrize(
    ("classes", "template", "code", "param"),
    [
        ([ClassSpec(LONG), ClassSpec("dog")], "{}", "class_name_too_long", "classes"),
        ([ClassSpec(LONG, ("a tabby",)), ClassSpec("dog")], "{}", "class_name_too_long", "classes"),
        ([ClassSpec("word " * 74), ClassSpec("dog")], "a b {}", "prompt_too_long", "templates"),
        ([ClassSpec("cat"), ClassSpec("dog")], LONG + "{}", "prompt_too_long", "templates"),
        ([ClassSpec("cat"), ClassSpec("dog", ("a dog", LONG))], "{}", "prompt_too_long", "classes"),
        ([ClassSpec("cat"), ClassSpec("猫" * 40)], "{}", "class_name_too_long", "classes"),
    ],
)
def test_too_long_names_and_prompts_are_refused_rather_than_cut(
    base: BaseModel, classes: list[ClassSpec], template: str, code: str, param: str
) -> None:
    for attempt in (check_lengths, build_class_weights):
        with pytest.raises(InvalidClasses) as caught:
            attempt(base, classes, [template])
        assert (caught.value.code, caught.value.param) == (code, param)


def test_the_longest_text_that_fits_is_accepted(base: BaseModel) -> None:
    longest = "word " * 75  # and a start and an end
    assert base.num_tokens(longest) == base.context_length
    check_lengths(base, specs(longest, "dog"), ["{}"])
    with pytest.raises(InvalidClasses):
        check_lengths(base, specs(longest + "x", "dog"), ["{}"])


def test_texts_of_a_token_a_character_are_counted_too(base: BaseModel) -> None:
    check_lengths(base, specs("1" * 75, "dog"), ["{}"])
    with pytest.raises(InvalidClasses):
        check_lengths(base, specs("1" * 76, "dog"), ["{}"])


@pytest.mark.parametrize(
    "text",
    [
        "a" * 70,
        "!?" * 35,
        "1234567890" * 7,
        "x y" * 23,
        "'s't're" * 10,
        "<p>" * 23,
        "`~^|" * 17,
        "Zz9-" * 17,
        "\\" * 70,
    ],
)
def test_characters_are_never_fewer_than_tokens(base: BaseModel, text: str) -> None:
    assert text.isascii()
    assert base.num_tokens(text) <= len(text) + 2


def test_lengths_are_checked_before_anything_is_encoded(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    monkeypatch.setattr(base, "encode_text", encoded.extend)
    ensemble = PromptEnsemble(base, specs(*(f"class {i}" for i in range(600)), LONG), ["{}"])
    with pytest.raises(InvalidClasses):
        for _ in ensemble:
            pass
    assert encoded == []


def test_checking_many_texts_gives_signs_of_life(base: BaseModel) -> None:
    classes, templates = specs(*(f"class {i}" for i in range(1000))), [f"{i} {{}}" for i in range(20)]
    signs = list(length_checks(base, classes, templates))
    assert len(signs) >= 4
    assert signs == sorted(signs)
    assert signs[-1] <= num_prompts(classes, templates)


def test_ten_thousand_classes_are_encoded_with_signs_of_life(base: BaseModel) -> None:
    classes = specs(*(f"class {i}" for i in range(10_000)))
    ensemble = PromptEnsemble(base, classes, ["a {}"])
    with pytest.raises(RuntimeError):
        _ = ensemble.weights_DK
    signs = list(ensemble)
    assert signs[0] == 0
    assert signs[-1] == 10_000
    assert max(b - a for a, b in pairwise(signs)) <= 256
    weights_DK = ensemble.weights_DK
    assert weights_DK.shape == (16, 10_000)
    assert torch.allclose(weights_DK.norm(dim=0), torch.ones(10_000), atol=1e-5)
    some = [3, 257, 9_999]  # of three different batches
    alone = build_class_weights(base, [classes[i] for i in some], ["a {}"])
    assert torch.allclose(weights_DK[:, some], alone, atol=1e-5)


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
