"""The header ``Idempotency-Key`` of creating requests."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.deps import IdempotencyServiceDep, TenantDep
from app.exceptions import MalformedRequest
from app.idempotency.messages import Answer, KeyedRequest
from app.idempotency.recorder import Recorder, unrecorded
from app.routes.request_digest import RequestDigest
from app.services.idempotency import IdempotencyService

T = TypeVar("T")

_KEY = re.compile(r"[!-~]{1,255}")

KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="Makes the request happen once, however often it is sent: 1 to 255 visible ASCII characters, new "
        "for each request, the same for its repetitions. For 24 hours a repetition gets the first one's answer, with "
        "`Idempotency-Replayed: true`; 409 `idempotency_in_flight` while that is at work; 422 `idempotency_key_reused` "
        "for a request that is another one.",
        examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
        json_schema_extra={"pattern": f"^{_KEY.pattern}$"},
    ),
]


@dataclass(frozen=True)
class Once:
    """A creating request: with a key it happens once, without one as often as it is sent."""

    service: IdempotencyService
    tenant: str
    key: str | None
    digest: RequestDigest | None
    """Whoever reads the body adds it to this; None without a key."""

    async def answer(self, create: Callable[[Recorder[T]], T], shown: Callable[[T], Answer]) -> Response:
        """Have ``create`` run in a thread, with the recorder that it is to call in its transaction. ``shown`` makes the
        answer. The body has been read by now."""
        if self.key is None or self.digest is None:
            return _response(shown(await run_in_threadpool(create, unrecorded)))
        request = KeyedRequest(tenant=self.tenant, key=self.key, digest=self.digest.hexdigest())
        return _response(await run_in_threadpool(self.service.once, request, create, shown))


async def _once(
    request: Request, service: IdempotencyServiceDep, tenant: TenantDep, idempotency_key: KeyHeader = None
) -> Once:
    if idempotency_key is None:
        return Once(service, tenant, None, None)
    if len(request.headers.getlist("Idempotency-Key")) > 1 or not _KEY.fullmatch(idempotency_key):
        raise MalformedRequest(
            "invalid_idempotency_key",
            "One Idempotency-Key of 1 to 255 visible ASCII characters is accepted.",
            param="idempotency_key",
        )
    return Once(service, tenant, idempotency_key, RequestDigest(request.method, request.url.path))


OnceDep = Annotated[Once, Depends(_once)]


def answer_of(status_code: int, body: BaseModel, headers: Mapping[str, str] | None = None) -> Answer:
    """The answer that shows a wire model."""
    return Answer(status_code=status_code, headers=headers or {}, body=body.model_dump_json())


def _response(answer: Answer) -> Response:
    headers = dict(answer.headers)
    if answer.is_replay:
        headers["Idempotency-Replayed"] = "true"
    return Response(answer.body, status_code=answer.status_code, headers=headers, media_type="application/json")
