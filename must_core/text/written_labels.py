"""Labels as people write them into a table or a form: a class's name, or that an image is of none of the classes."""

from collections.abc import Sequence
from difflib import get_close_matches

from must_core.text.characters import folded

MAX_COMPARED = 1000
"""Among more names none is looked for: a comparison takes as long as both texts are long, times each other."""
MAX_COMPARED_CHARACTERS = 64

_NONE = "none of the classes"
_MOST_DECOMPOSED = 4
"""Characters as which one of a name may be written, accents apart."""


class UnknownLabel(ValueError):
    """A text that is no class's name."""


class WrittenLabels:
    """What may be written for a list of classes, none of which has another's name after case-folding."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._names = {folded(name): name for name in class_names}
        self._index_of = {folded(name): index for index, name in enumerate(class_names)}
        none = _NONE
        while none in self._names:
            none = f"({none})"
        self.none = none
        """What says that an image is of none of the classes: words that are no class's name."""
        self._max_characters = _MOST_DECOMPOSED * max(map(len, (none, *class_names, *self._names)))

    def index_of(self, text: str) -> int | None:
        """The class's index; None for `none`. Case and blanks around do not matter. Raises `UnknownLabel`."""
        text = text.strip()
        if len(text) > self._max_characters:  # folding can take the square of a text's length
            raise UnknownLabel
        written = folded(text)
        if written == self.none:
            return None
        if written not in self._index_of:
            raise UnknownLabel
        return self._index_of[written]

    def nearest(self, text: str) -> str | None:
        """The class name that may have been meant by an unknown label.

        None where none is near, and where the text is long or the names are many.
        """
        text = text.strip()
        if len(text) > MAX_COMPARED_CHARACTERS or len(self._names) > MAX_COMPARED:
            return None
        found = get_close_matches(folded(text), self._names, n=1)
        return self._names[found[0]] if found else None
