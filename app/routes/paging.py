"""``?limit=20&after=<id>``: how every list is paged."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query, Request

from app.exceptions import InvalidInput


@dataclass(frozen=True)
class Paging:
    """Which piece of a list is wanted: up to ``limit`` objects after the one called ``after``."""

    limit: int
    after: str | None


def paging(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100, description="Most objects in the answer.", examples=[20])] = 20,
    after: Annotated[
        str | None, Query(max_length=80, description="The `last_id` of the page before.", examples=[None])
    ] = None,
) -> Paging:
    """Read the parameters strictly: each at most once, the number in plain digits."""
    for name in ("limit", "after"):
        if len(request.query_params.getlist(name)) > 1:
            raise InvalidInput("repeated_parameter", "The parameter is given more than once.", param=name)
    text = request.query_params.get("limit", "20")
    if not (text.isascii() and text.isdigit()):
        raise InvalidInput("invalid_type", "The limit is a number.", param="limit")
    return Paging(limit, after)


PagingDep = Annotated[Paging, Depends(paging)]
