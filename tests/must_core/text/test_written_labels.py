"""Labels as people write them."""

import unicodedata

import pytest

from must_core.text import written_labels
from must_core.text.written_labels import MAX_COMPARED, MAX_COMPARED_CHARACTERS, UnknownLabel, WrittenLabels


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
    labels = WrittenLabels(["cat", "Hund"])
    with pytest.raises(UnknownLabel):
        labels.index_of(text)
    assert labels.nearest(text) == nearest


def test_nothing_is_looked_for_among_many_names_or_for_long_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second half of each pair is the negative control."""
    for num_names, found in ((MAX_COMPARED + 1, None), (MAX_COMPARED, "cat")):
        names = ["cat", *(f"{i}" for i in range(num_names - 1))]
        assert WrittenLabels(names).nearest("catt") == found
    for num_characters, found in ((MAX_COMPARED_CHARACTERS + 1, None), (MAX_COMPARED_CHARACTERS, "x" * 60)):
        assert WrittenLabels(["cat", "x" * 60]).nearest("x" * num_characters) == found


def test_what_is_longer_than_any_name_may_be_written_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = WrittenLabels(["cat", "\u1f82" * 30])
    assert labels.index_of(unicodedata.normalize("NFD", "\u1f82" * 30)) == 1
    read: list[str] = []
    monkeypatch.setattr(written_labels, "folded", lambda text: read.append(text) or "cat")
    assert labels.index_of("c" * 240) == 0
    with pytest.raises(UnknownLabel):
        labels.index_of("c" * 241)
    assert read == ["c" * 240]


def test_the_words_for_none_are_never_a_class() -> None:
    labels = WrittenLabels(["None of the classes", "(none of the classes)"])
    assert labels.none == "((none of the classes))"
    assert labels.index_of(labels.none) is None
    assert labels.index_of("none of the classes") == 0
