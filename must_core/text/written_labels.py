"""Labels as people write them into a table or a form: a class's name, or that an image is of none of the classes."""

from collections.abc import Sequence
from difflib import get_close_matches

from must_core.text.characters import folded

_NONE = "none of the classes"


class UnknownLabel(ValueError):
    """A text that is no class's name. ``nearest`` is a name that may have been meant."""

    def __init__(self, nearest: str | None) -> None:
        super().__init__()
        self.nearest = nearest


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

    def index_of(self, text: str) -> int | None:
        """The class's index; None for `none`. Case and blanks around do not matter. Raises `UnknownLabel`."""
        written = folded(text)
        if written == self.none:
            return None
        if written not in self._index_of:
            nearest = get_close_matches(written, self._names, n=1)
            raise UnknownLabel(self._names[nearest[0]] if nearest else None)
        return self._index_of[written]
