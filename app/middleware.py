"""What wraps every request."""

import re
import uuid
from typing import Any

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADER = b"x-request-id"
_ACCEPTABLE = re.compile(rb"[A-Za-z0-9._-]{1,64}")


def request_id_of(scope: Scope) -> str:
    """The id that a request goes by in logs and answers."""
    state: dict[str, Any] = scope.setdefault("state", {})
    if "request_id" not in state:
        given = next((value for name, value in scope.get("headers", ()) if name == _HEADER), b"")
        state["request_id"] = given.decode() if _ACCEPTABLE.fullmatch(given) else uuid.uuid4().hex
    return str(state["request_id"])


class RequestIdMiddleware:
    """Takes ``X-Request-Id`` from the caller when it is harmless, else draws one. Logs and the answer carry it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._app(scope, receive, send_with_id)
