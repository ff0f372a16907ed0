"""What all wire models share."""

from collections.abc import Callable, Sequence
from typing import Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")


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
