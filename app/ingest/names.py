"""Names that people see. None of them ever becomes a path."""

import unicodedata

MAX_LENGTH = 255

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that are dropped: controls, bidi and zero-width signs, lone surrogates, line separators."""


def display_name(name: str) -> str:
    """Clean a file name for display: its folders kept, nothing that moves a cursor or reorders text, 255 at most.

    What would lead out of a folder is dropped, and of an overlong name the beginning: the end tells files apart.
    """
    visible = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) not in _UNSEEN)
    parts = [part.strip() for part in visible.replace("\\", "/").split("/")]
    kept = [part for part in parts if part not in ("", ".", "..")]
    if kept and len(kept[0]) == 2 and kept[0][1] == ":":
        kept = kept[1:]  # a drive letter
    return "/".join(kept)[-MAX_LENGTH:].lstrip("/") or "unnamed"
