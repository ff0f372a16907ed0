"""Class lists and templates in files: JSON where the name ends in ``.json``, one a line otherwise."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from must_core.errors import InvalidClasses
from must_core.text.prompts import ClassSpec

MAX_BYTES = 256 * 1024**2
"""Two million prompts take less; a file above this is no class list."""

# Not str.splitlines: that also ends a line at characters which a name must not hold, and would hide them so.
_LINE_END = re.compile(r"\r\n|\r|\n")


def read_classes(path: Path) -> tuple[ClassSpec, ...]:
    """Read a class list: names, or in JSON also ``{"name": …, "prompts": […]}``.

    Raises `InvalidClasses` ``invalid_encoding``, ``malformed_json``, ``invalid_type``, ``unknown_field`` or
    ``too_many_classes`` (a file beyond `MAX_BYTES`), and `OSError`. The names themselves are not checked
    (`must_core.text.prompts.check_classes` does).
    """
    return tuple(map(ClassSpec.from_json, _items(path, param="classes", too_long="too_many_classes")))


def read_templates(path: Path) -> tuple[str, ...]:
    """Read templates; raises as `read_classes` does, ``too_many_prompts`` for a file beyond `MAX_BYTES`."""
    items = _items(path, param="templates", too_long="too_many_prompts")
    if not all(isinstance(item, str) for item in items):
        raise InvalidClasses("A template is a text.", code="invalid_type", param="templates")
    return tuple(items)


def _items(path: Path, *, param: str, too_long: str) -> Sequence[Any]:
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise InvalidClasses(f"The file has more than {MAX_BYTES} bytes.", code=too_long, param=param)
    try:
        text = raw.decode("utf-8-sig")  # editors on Windows begin a file with a byte order mark
    except UnicodeDecodeError as e:
        raise InvalidClasses("The file is not UTF-8.", code="invalid_encoding", param=param) from e
    if path.suffix.lower() != ".json":
        lines = (line.strip(" \t") for line in _LINE_END.split(text))
        return [line for line in lines if line]
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise InvalidClasses("The file is not JSON.", code="malformed_json", param=param) from e
    if not isinstance(items, list):
        raise InvalidClasses("The file holds no JSON list.", code="invalid_type", param=param)
    return items
