"""Names for display."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.ingest.names import display_name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat.jpg", "cat.jpg"),
        ("monday/cat.jpg", "monday/cat.jpg"),
        ("monday\\cat.jpg", "monday/cat.jpg"),
        ("../../etc/passwd", "etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("C:\\Users\\me\\cat.jpg", "Users/me/cat.jpg"),
        ("./a//b.jpg", "a/b.jpg"),
        ("a\x1b[31m.jpg", "a[31m.jpg"),
        ("gpj.\u202etac", "gpj.tac"),
        ("zero\u200bwidth", "zerowidth"),
        ("e\u0301.jpg", "\u00e9.jpg"),
        ("line\nbreak", "linebreak"),
        ("\ud800x", "x"),
        ("", "unnamed"),
        ("..", "unnamed"),
        ("\x00\x1b", "unnamed"),
        ("a" * 4096 + ".jpg", "a" * 251 + ".jpg"),
    ],
)
def test_examples(name: str, shown: str) -> None:
    assert display_name(name) == shown


@settings(deadline=None)
@given(st.text(max_size=400))
def test_any_name_is_harmless(name: str) -> None:
    shown = display_name(name)
    assert 0 < len(shown) <= 255
    assert not shown.startswith("/")
    assert ".." not in shown.split("/")
    assert all(unicodedata.category(c)[0] != "C" for c in shown)
    shown.encode("utf-8")
