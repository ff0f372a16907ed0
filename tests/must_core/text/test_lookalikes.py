import pytest

from must_core.text.lookalikes import CONFUSABLE, MAX_GROUPS, MIXED_SCRIPTS, class_warnings
from must_core.text.prompts import ClassSpec, check_classes

CYRILLIC_COP = "\u0441\u043e\u0440"
GREEK_TAXI = "\u03a4\u0391\u03a7\u0399"


def specs(*names: str) -> list[ClassSpec]:
    return [ClassSpec(name) for name in names]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cop", CYRILLIC_COP),
        ("COP", CYRILLIC_COP),
        ("TAXI", GREEK_TAXI),
        ("\u0410\u0412\u0415", "\u0391\u0392\u0395"),
        ("caf\u00e9", "caf\u0435\u0301"),
        ("cat", "c\u200bat"),
        ("sports car", "sports  car"),
        ("sports car", "sports\u00a0\u00a0car"),
    ],
)
def test_names_that_look_alike_are_accepted_and_told(one: str, other: str) -> None:
    check_classes(specs("dog", one, other), ["{}"])
    (found,) = [w for w in class_warnings(specs("dog", one, other)) if w.code == CONFUSABLE]
    assert found.names == (one, other)
    assert found.message == "Classes 2 and 3 look the same and are written differently."


@pytest.mark.parametrize(
    "names",
    [
        ["cat", "dog"],
        ["naive", "naïve"],
        ["кошка", "собака"],
        [CYRILLIC_COP, "dog"],
        ["猫", "犬", "Tシャツ"],
        ["β-carotene", "5 µm", "10 Ω resistor"],
        ["rn", "m"],  # known not to be covered
    ],
)
def test_names_that_do_not_are_not(names: list[str]) -> None:
    assert class_warnings(specs(*names)) == ()


@pytest.mark.parametrize("name", ["c\u043ep", "red \u0441ar", "\u0391pple", "\u03b1\u0431"])
def test_alphabets_mixed_within_a_word_are_told(name: str) -> None:
    (found,) = class_warnings(specs("dog", name))
    assert (found.code, found.names) == (MIXED_SCRIPTS, (name,))
    assert found.message.startswith("Class 2 mixes")


def test_many_warnings_are_counted_rather_than_listed() -> None:
    names = [f"{word} {i}" for i in range(MAX_GROUPS + 7) for word in ("cop", CYRILLIC_COP)]
    found = class_warnings(specs(*names))
    assert len(found) == MAX_GROUPS + 1
    assert found[-1].message.startswith("7 more")
    (mixed,) = class_warnings(specs(*(f"c\u043ep {i}" for i in range(12))))
    assert len(mixed.names) == 12
    assert mixed.message.startswith("Classes 1, 2, 3, 4, 5 and 7 more mix")


def test_three_of_a_kind_are_one_warning() -> None:
    (found,) = class_warnings(specs("cop", CYRILLIC_COP, "dog", "co\u200bp"))
    assert found.message.startswith("Classes 1, 2 and 4 look")
