"""Characters that show nothing, and when two texts are one name."""

import re
import unicodedata

# Unicode's Default_Ignorable_Code_Point: drawn as nothing by every font. `unicodedata` does not carry the property.
_IGNORABLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_IGNORED = re.compile(f"[{_IGNORABLE}]+")
_AROUND = re.compile(rf"^[\s{_IGNORABLE}]+|[\s{_IGNORABLE}]+$")
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
_REFUSED = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Control characters, halves of characters, separators of lines and paragraphs."""
_WITHOUT_SHAPE = frozenset({"Cf", "Zs", "Mn", "Me"})
"""Format characters, blanks, and marks that need a letter to stand on."""
_BRAILLE_BLANK = "\u2800"


def is_readable(text: str) -> bool:
    """Whether a text shows something and hides nothing: no control, surrogate, line or direction characters.

    Other invisible characters may stand between visible ones, as they do within emoji and Persian words.
    """
    if text.isascii():
        return text.isprintable() and not text.isspace() and bool(text)
    if any(unicodedata.category(c) in _REFUSED or c in _BIDI_CONTROLS for c in text):
        return False
    shown = _IGNORED.sub("", text).replace(_BRAILLE_BLANK, "")
    return any(unicodedata.category(c) not in _WITHOUT_SHAPE for c in shown)


def folded(text: str) -> str:
    """The form in which equal names are equal: NFKC, case-folded, without blanks and invisible characters around."""
    if text.isascii():
        return text.casefold().strip()
    composed = unicodedata.normalize("NFKC", text).casefold()
    return _AROUND.sub("", unicodedata.normalize("NFKC", composed))


def without_invisible(text: str) -> str:
    """The text with every ignorable character dropped and each run of blanks made one space."""
    return " ".join(_IGNORED.sub("", text).split())
