"""What can be an alias's name."""

import re

ALIAS_PATTERN = r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$"
"""An id has an underscore, a name has none: the two are never taken for each other."""

_ALIAS = re.compile(ALIAS_PATTERN)


def is_alias(text: str) -> bool:
    """Whether ``text`` could be an alias's name; what could not is never shown to the database."""
    return _ALIAS.fullmatch(text) is not None
