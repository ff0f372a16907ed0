"""Places in the API at which it kills or stops itself, once, when a file says so; and protections taken away."""

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import main
from app.idempotency.messages import Answer, KeyedRequest
from app.idempotency.recorder import Recorder, unrecorded
from app.idempotency.store import IdempotencyStore
from app.ingest.uploads import Upload
from app.jobs.messages import NewJob
from app.jobs.store import JobStore
from app.queue import CeleryTaskQueue, LedgerOnlyQueue
from app.services.idempotency import IdempotencyService
from app.services.jobs import JobService
from app.tables import IdempotencyKey

POINTS = ("before_commit", "after_commit", "after_publish", "before_reply", "after_reply")
"""Of a request that makes a job, in order. ``before_transaction`` is one too; nothing has happened there."""


def install(file: Path) -> None:
    """Have this process send itself a signal when it reaches a point, as ``file`` has them; the file is gone then."""

    def reach(point: str) -> None:
        with suppress(FileNotFoundError):
            wanted, number = file.read_text().split()
            if wanted == point:
                file.unlink()
                os.kill(os.getpid(), signal.Signals(int(number)))

    new_job = JobService._new_job

    def reach_and_make(*arguments: Any) -> NewJob:
        reach("before_transaction")
        return new_job(*arguments)

    JobService._new_job = reach_and_make  # type: ignore[method-assign]

    add = JobStore.add

    def add_and_mark(store: JobStore, *arguments: Any) -> None:
        add(store, *arguments)
        store._session.info["makes_a_job"] = True

    JobStore.add = add_and_mark  # type: ignore[method-assign]
    for point in ("before_commit", "after_commit"):
        event.listen(Session, point, partial(_of_a_job, reach, point))
    for queue in (LedgerOnlyQueue, CeleryTaskQueue):
        queue.send = _then(queue.send, reach)  # type: ignore[method-assign]
    main.RequestIdMiddleware = partial(_Replies, main.RequestIdMiddleware, reach)  # type: ignore[misc,assignment]


def shorten_locks() -> None:
    """Have the key of a dead process be free soon."""
    short = partial(IdempotencyService, lock=timedelta(seconds=2), renew_every=timedelta(seconds=0.3))
    main.IdempotencyService = short  # type: ignore[misc,assignment]


def record_afterwards() -> None:
    """Take a protection away: answers are recorded by a transaction of their own, after the effect's."""
    once = IdempotencyService.once

    def late(
        service: IdempotencyService,
        request: KeyedRequest,
        create: Callable[[Recorder[Any]], object],
        shown: Callable[[Any], Answer],
    ) -> Answer:
        def create_then_record(record: Recorder[Any]) -> None:
            created = create(unrecorded)
            with service._sessions.begin() as session:
                record(session, created)

        return once(service, request, create_then_record, shown)

    IdempotencyService.once = late  # type: ignore[method-assign,assignment]


def commit_datasets_first() -> None:
    """Take a protection away: a job's images are committed before the job."""

    def submit_with_images(service: JobService, uploads: Sequence[Upload], request: Any, **options: Any) -> Any:
        made = service._datasets.create(uploads, name=request.name)
        return service.submit(made.dataset.id, request, **options)

    JobService.submit_with_images = submit_with_images  # type: ignore[method-assign]


def remove_fence() -> None:
    """Take a protection away: whoever once held a key may answer it."""
    IdempotencyStore._fence = staticmethod(lambda hold: (IdempotencyKey.key == hold.key,))  # type: ignore[method-assign]


TAKEN_AWAY = {
    "one_transaction": record_afterwards,
    "datasets_with_jobs": commit_datasets_first,
    "fence": remove_fence,
}


def _of_a_job(reach: Callable[[str], None], point: str, session: Session) -> None:
    if session.info.get("makes_a_job"):
        reach(point)


def _then(send: Callable[..., bool], reach: Callable[[str], None]) -> Callable[..., bool]:
    def send_and_reach(queue: Any, job_id: str) -> bool:
        sent = send(queue, job_id)
        reach("after_publish")
        return sent

    return send_and_reach


class _Replies:
    def __init__(self, inner: Callable[[ASGIApp], ASGIApp], reach: Callable[[str], None], app: ASGIApp) -> None:
        self._app = inner(app)
        self._reach = reach

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_between(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._reach("before_reply")
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                self._reach("after_reply")

        if scope.get("method") != "POST":
            await self._app(scope, receive, send)
            return
        await self._app(scope, receive, send_between)
