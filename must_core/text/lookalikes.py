"""Class names that a reader cannot tell apart, or that were typed with letters of two alphabets: accepted, and told."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from must_core.text.characters import folded, without_invisible
from must_core.text.prompts import ClassSpec

CONFUSABLE = "confusable_class_names"
MIXED_SCRIPTS = "mixed_script_class_names"

MAX_GROUPS = 20
"""Groups of look-alike names that are told one by one; the rest is counted."""

# Cyrillic (first two rows) and Greek letters that most fonts draw as a Latin one. A small part of Unicode's
# confusables.txt (UTS 39): digits, punctuation, other alphabets and pairs such as "rn" for "m" are not covered.
_LATIN_TWINS = str.maketrans(
    "\u0410\u0412\u0415\u0405\u0406\u0408\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425"
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u051b\u051d"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7"
    "\u03bf\u03bd\u03c1\u03c5",
    "ABESIJKMHOPCTYXaeopcyxijshdqwABEZHIKMNOPTYXovpu",
)
# By blocks of letters: symbols that are made of them, such as the micro sign, belong to none.
_ALPHABETS = tuple(
    re.compile(f"[{letters}]")
    for letters in (
        "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
        "\u0370-\u03ff\u1f00-\u1fff",
        "\u0400-\u052f\u1c80-\u1c8f\ua640-\ua69f",
    )
)
_WORD = re.compile(r"\w+")
_SHOWN = 5


@dataclass(frozen=True)
class ClassWarning:
    """Something about class names that is allowed and may be a mistake.

    ``code`` is stable; ``message`` says it for people by the names' places in the list, counted from 1.
    """

    code: str
    message: str
    names: tuple[str, ...]


def class_warnings(classes: Sequence[ClassSpec]) -> tuple[ClassWarning, ...]:
    """Say which names look alike, and which mix Latin, Greek or Cyrillic letters within a word.

    Two names look alike when they are equal once invisible characters are dropped, blanks are made one, and Cyrillic
    and Greek letters that look Latin are taken for Latin ones. That knows fewer pairs than Unicode's own table.
    """
    names = [spec.name for spec in classes]
    return (*_confusable(names), *_mixed(names))


def _confusable(names: Sequence[str]) -> list[ClassWarning]:
    places: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        places.setdefault(_skeleton(name), []).append(i)
    groups = [group for group in places.values() if len(group) > 1]
    told = [
        ClassWarning(
            CONFUSABLE,
            f"Classes {_listed(group)} look the same and are written differently.",
            tuple(names[i] for i in group),
        )
        for group in groups[:MAX_GROUPS]
    ]
    if len(groups) > MAX_GROUPS:
        message = f"{len(groups) - MAX_GROUPS} more groups of classes look the same and are written differently."
        told.append(ClassWarning(CONFUSABLE, message, ()))
    return told


def _mixed(names: Sequence[str]) -> list[ClassWarning]:
    found = [i for i, name in enumerate(names) if _is_mixed(name) and any(map(_is_mixed, _WORD.findall(name)))]
    if not found:
        return []
    noun = "Class" if len(found) == 1 else "Classes"
    verb = "mixes" if len(found) == 1 else "mix"
    message = f"{noun} {_listed(found)} {verb} Latin, Greek or Cyrillic letters within a word."
    return [ClassWarning(MIXED_SCRIPTS, message, tuple(names[i] for i in found))]


def _skeleton(name: str) -> str:
    if name.isascii():
        return " ".join(name.casefold().split())
    # Twins first: folding the case turns a capital into a small letter that has another twin or none.
    return folded(without_invisible(unicodedata.normalize("NFKD", name).translate(_LATIN_TWINS)))


def _is_mixed(text: str) -> bool:
    return not text.isascii() and sum(letter.search(text) is not None for letter in _ALPHABETS) > 1


def _listed(places: Sequence[int]) -> str:
    numbers = [str(i + 1) for i in places[:_SHOWN]]
    if len(places) > _SHOWN:
        return f"{', '.join(numbers)} and {len(places) - _SHOWN} more"
    return " and ".join(filter(None, (", ".join(numbers[:-1]), numbers[-1])))
