"""Class lists between the wire, the tables and must_core."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from must_core.text.prompts import DEFAULT_TEMPLATES, ClassSpec


@dataclass(frozen=True)
class ClassList:
    """Classes and the templates their names are put into."""

    classes: tuple[ClassSpec, ...]
    templates: tuple[str, ...]

    @classmethod
    def of(cls, classes: Iterable[tuple[str, Sequence[str]]], templates: Sequence[str] | None) -> "ClassList":
        """From names with their own prompts (none: the templates speak for them); no templates means the default."""
        specs = tuple(ClassSpec(name, tuple(prompts)) for name, prompts in classes)
        return cls(specs, DEFAULT_TEMPLATES if templates is None else tuple(templates))


@dataclass(frozen=True)
class ClassRows:
    """A class list as JSON columns keep it."""

    classes: list[Any]
    templates: list[str]


def class_list_to_rows(classes: ClassList) -> ClassRows:
    """Plain values of a class list."""
    return ClassRows([{"name": c.name, "prompts": list(c.prompts)} for c in classes.classes], list(classes.templates))


def class_list_from_rows(classes: Sequence[Mapping[str, Any]], templates: Sequence[str]) -> ClassList:
    """The class list that `class_list_to_rows` wrote."""
    return ClassList.of(((c["name"], c["prompts"]) for c in classes), templates)
