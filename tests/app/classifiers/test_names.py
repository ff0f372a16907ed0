"""What can be an alias's name."""

import pytest

from app.classifiers.names import is_alias


@pytest.mark.parametrize("name", ["a", "7", "shelf-cameras", "z.9", "a--b", "a" * 63])
def test_names(name: str) -> None:
    assert is_alias(name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0",
        "a\0",
        "a\n",
        "\ud800",
        "ä",
        "٣",
        "A",
        "a_b",
        "-a",
        "a.",
        "a/b",
        "a" * 64,
        "clf_01k0c9v2ytq4v3m5p6r7s8t9wa",
    ],
)
def test_what_is_no_name(text: str) -> None:
    assert not is_alias(text)
