"""The one map from errors to answers: RFC 9457 problem details with a stable ``code``.

An answer never repeats the input, names a path or shows a trace.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from app import exceptions
from app.database import is_full
from app.middleware import request_id_of

_log = structlog.get_logger(__name__)

_STATUS: tuple[tuple[type[exceptions.ServiceError], int], ...] = (
    (exceptions.MalformedRequest, 400),
    (exceptions.NotFound, 404),
    (exceptions.Conflict, 409),
    (exceptions.PayloadTooLarge, 413),
    (exceptions.UnsupportedMedia, 415),
    (exceptions.InvalidInput, 422),
    (exceptions.Unavailable, 503),
)

_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large", 415: "unsupported_media_type"}

_VALIDATION_CODES = {
    "extra_forbidden": ("unknown_field", "There is no such field."),
    "missing": ("missing_field", "The field is required."),
    "finite_number": ("invalid_number", "NaN and Infinity are not accepted."),
    "string_too_short": ("out_of_range", "The text is too short."),
    "string_too_long": ("out_of_range", "The text is too long."),
    "too_short": ("out_of_range", "There are too few items."),
    "too_long": ("out_of_range", "There are too many items."),
    "enum": ("invalid_value", "The value is not one of those allowed."),
    "literal_error": ("invalid_value", "The value is not one of those allowed."),
    "string_pattern_mismatch": ("invalid_value", "The text does not have the required form."),
    "value_error": ("invalid_value", "The value is not acceptable."),
    "json_invalid": ("malformed_json", "The body is not JSON."),
}
_OUT_OF_RANGE = ("greater_than", "less_than", "multiple_of", "int_parsing_size", "date", "time")
_FIELD = re.compile(r"[a-z_][a-z0-9_]{0,39}|[0-9]{1,6}")
_PLACES = frozenset({"body", "query", "path", "header", "cookie"})


def problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    *,
    param: str | None = None,
    errors: Sequence[Mapping[str, Any]] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Build an answer of type ``application/problem+json``."""
    request_id = request_id_of(request.scope)
    return JSONResponse(
        {
            "type": "about:blank",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            "instance": f"urn:request:{request_id}",
            "code": code,
            "param": param,
            "request_id": request_id,
            "errors": list(errors),
        },
        status_code=status,
        headers={"X-Request-Id": request_id, **(headers or {})},
        media_type="application/problem+json",
    )


def install(app: FastAPI) -> None:
    """Answer every error of an application in this form."""
    app.add_exception_handler(exceptions.ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    for kind in (OperationalError, InterfaceError, PoolTimeout):
        app.add_exception_handler(kind, _database_error)
    app.add_exception_handler(Exception, _unexpected)


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, exceptions.ServiceError)  # noqa: S101 - Starlette's signature is wider than what it does
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if status >= 500:
        _log.warning("request_failed", code=error.code, exc_info=error)
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return problem(request, status, error.code, error.detail, param=error.param, headers=headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as above
    found = [_field_error(one) for one in error.errors()]
    first = found[0] if found else _FieldError("invalid_value", "The request is not acceptable.", None)
    status = 400 if first.code == "malformed_json" else 422
    return problem(
        request, status, first.code, first.detail, param=first.param, errors=[asdict(each) for each in found]
    )


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    if error.status_code < 400:
        return Response(status_code=error.status_code, headers=error.headers)
    phrase = HTTPStatus(error.status_code).phrase
    code = _HTTP_CODES.get(error.status_code, re.sub("[^a-z]+", "_", phrase.lower()))
    detail = exceptions.NotFound().detail if error.status_code == 404 else f"{phrase}."
    return problem(request, error.status_code, code, detail, headers=error.headers)


async def _disconnected(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette's signature
    _log.info("client_disconnected")
    return Response(status_code=400)  # nobody reads it


async def _database_error(request: Request, error: Exception) -> Response:
    if is_full(error):
        _log.error("database_full", exc_info=error)
        return problem(request, 503, "storage_full", "The storage is full.", headers={"Retry-After": "30"})
    _log.error("database_unavailable", exc_info=error)
    detail = "The database does not answer now."
    return problem(request, 503, "database_unavailable", detail, headers={"Retry-After": "5"})


async def _unexpected(request: Request, error: Exception) -> Response:
    _log.error("request_crashed", exc_info=error)
    return problem(request, 500, "internal_error", "Something went wrong on our side.")


@dataclass(frozen=True)
class _FieldError:
    code: str
    detail: str
    param: str | None


def _field_error(error: Mapping[str, Any]) -> _FieldError:
    kind = str(error.get("type", ""))
    if kind in _VALIDATION_CODES:
        code, detail = _VALIDATION_CODES[kind]
    elif kind.startswith(_OUT_OF_RANGE):
        code, detail = "out_of_range", "The value is outside of what is allowed."
    elif kind.endswith(("_type", "_parsing", "_from_float")):
        code, detail = "invalid_type", "The value has another type than required."
    else:
        code, detail = "invalid_value", "The value is not acceptable."
    # Keys of the input come along here: they are named only if they could be names of ours.
    parts = [str(part) for part in error.get("loc", ()) if part not in _PLACES]
    return _FieldError(code, detail, ".".join(part for part in parts if _FIELD.fullmatch(part)) or None)
