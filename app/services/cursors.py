"""What a list may go on from."""

from app.exceptions import MalformedRequest
from app.ids import is_id


def invalid_cursor() -> MalformedRequest:
    """The cursor was not made by this list."""
    return MalformedRequest("invalid_cursor", "The cursor is not one of this list.", param="after")


def require_cursor(prefix: str, after: str | None) -> None:
    """Raise `invalid_cursor` for anything but an id of this kind, or nothing."""
    if after is not None and not is_id(prefix, after):
        raise invalid_cursor()
