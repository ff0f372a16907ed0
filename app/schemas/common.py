"""What all wire models share."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

T = TypeVar("T")

LAST_YEAR = 2199
"""Of times in requests: something may be added to them yet, and calendars end."""

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _instant(value: object) -> object:
    """JSON has no instants: they come as text, and nothing else is taken for one."""
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "an instant is a text")
    if not _RFC_3339.fullmatch(value):
        raise ValueError("no RFC 3339 time with an offset")
    try:
        instant = datetime.fromisoformat(value.upper()).astimezone(UTC)
    except OverflowError as e:  # the offset leads out of the calendar
        raise ValueError("no such time") from e
    if instant.year > LAST_YEAR:
        raise PydanticCustomError("less_than_equal", "too late")
    return instant


Instant = Annotated[datetime, BeforeValidator(_instant)]
"""A time in a request: RFC 3339, with its offset from UTC; kept as UTC."""


class WireModel(BaseModel):
    """A JSON object of the API. What it does not know it refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Page(WireModel, Generic[T]):
    """A piece of a list. Ask for the next with `after` = `last_id`."""

    object: Literal["list"] = Field(default="list", description="Always `list`.", examples=["list"])
    data: list[T] = Field(description="The objects.")
    has_more: bool = Field(description="Whether there are more after `last_id`.", examples=[False])
    first_id: str | None = Field(
        description="Id of the first object; null when there is none.", examples=["ds_01k0c9v2ytq4v3m5p6r7s8t9va"]
    )
    last_id: str | None = Field(
        description="Id of the last object; null when there is none.", examples=["ds_01k0c9v2ytq4v3m5p6r7s8t9wa"]
    )

    @classmethod
    def of(cls, found: Sequence[T], *, limit: int, id_of: Callable[[T], str]) -> Self:
        """The page of what was found by asking for one more than ``limit``: that one only says that there is more."""
        data = list(found[:limit])
        return cls(
            data=data,
            has_more=len(found) > limit,
            first_id=id_of(data[0]) if data else None,
            last_id=id_of(data[-1]) if data else None,
        )
