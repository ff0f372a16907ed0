"""Opaque, prefixed, time-sortable ids: ``job_01k…``."""

import re

from ulid import ULID

_ULID = re.compile(r"[0-7][0-9a-hjkmnp-tv-z]{25}")


def new_id(prefix: str) -> str:
    """``prefix``, an underscore and a fresh ULID in lower case. Ids of one prefix sort by when they were made."""
    return f"{prefix}_{str(ULID()).lower()}"


def is_id(prefix: str, text: str) -> bool:
    """Whether ``text`` could have come from `new_id`; what could not is never shown to the database."""
    kind, _, ulid = text.partition("_")
    return kind == prefix and _ULID.fullmatch(ulid) is not None
