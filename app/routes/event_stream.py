"""A job's events as a server-sent stream (WHATWG HTML, section 9.2)."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

from fastapi.sse import format_sse_event
from starlette.concurrency import run_in_threadpool

from app.schemas.jobs import EventOut
from app.services.jobs import JobService

_POLL_S = 0.5
_KEEPALIVE_S = 15.0
_PAGE = 100


async def event_stream(service: JobService, job_id: str, *, after: int) -> AsyncIterator[bytes]:
    """Send events with ids above ``after`` as they come; ends when the job has ended and all is sent.

    The ledger is asked, not a broker, so a client that comes back with ``Last-Event-ID`` misses nothing and gets
    nothing twice.
    """
    position, idle_s = after, 0.0
    while True:
        ended = (await run_in_threadpool(service.get, job_id)).status.is_terminal
        events = await run_in_threadpool(partial(service.events, job_id, after=position, limit=_PAGE))
        for event in events:
            position = event.id
            yield format_sse_event(
                data_str=EventOut.of(event).model_dump_json(), event=str(event.type), id=str(event.id)
            )
        if events:
            idle_s = 0.0
            continue
        if ended:
            return
        await asyncio.sleep(_POLL_S)
        idle_s += _POLL_S
        if idle_s >= _KEEPALIVE_S:
            idle_s = 0.0
            yield format_sse_event(comment="keep-alive")
