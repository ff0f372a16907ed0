"""Labels as people write them."""

import pytest

from must_core.text.written_labels import UnknownLabel, WrittenLabels


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("cat", 0),
        (" Cat ", 0),
        ("STRASSE", 1),
        ("straße", 1),
        ("none of the classes", None),
        ("None of the Classes", None),
    ],
)
def test_case_and_blanks_do_not_matter(text: str, index: int | None) -> None:
    assert WrittenLabels(["cat", "Straße"]).index_of(text) == index


@pytest.mark.parametrize(("text", "nearest"), [("cta", "cat"), ("xyz", None), ("", None), ("0", None)])
def test_what_is_no_class_is_told_with_what_was_perhaps_meant(text: str, nearest: str | None) -> None:
    with pytest.raises(UnknownLabel) as told:
        WrittenLabels(["cat", "Hund"]).index_of(text)
    assert told.value.nearest == nearest


def test_the_words_for_none_are_never_a_class() -> None:
    labels = WrittenLabels(["None of the classes", "(none of the classes)"])
    assert labels.none == "((none of the classes))"
    assert labels.index_of(labels.none) is None
    assert labels.index_of("none of the classes") == 0
