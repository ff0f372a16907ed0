"""JSON bodies, read strictly: what a lenient parser would guess is refused by name (bad-input.md)."""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from app.exceptions import InvalidInput, MalformedRequest

M = TypeVar("M", bound=BaseModel)

MAX_JSON_BYTES = 1024 * 1024
_MAX_DIGITS = 400


def read_json(raw: bytes, *, param: str | None = None) -> Any:
    """Parse one JSON text; raises `MalformedRequest`, and `InvalidInput` ``invalid_number`` for what is no number."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise MalformedRequest("invalid_encoding", "JSON is UTF-8.", param=param) from e
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_short_int,
        )
    except (ValueError, RecursionError) as e:
        raise MalformedRequest("malformed_json", "The text is not JSON, or nested too deeply.", param=param) from e


def read_model(raw: bytes, model: type[M]) -> M:
    """Parse a JSON body into a wire model; raises as `read_json`, and `RequestValidationError` for each field."""
    return to_model(read_json(raw), model)


def to_model(value: Any, model: type[M]) -> M:
    """Check plain values against a wire model, taking no value for another type's."""
    if isinstance(value, dict):  # class names and templates have stricter rules of their own
        _require_storable({k: v for k, v in value.items() if k not in {"classes", "templates"}})
    try:
        return model.model_validate(value, strict=True)
    except ValidationError as e:
        raise RequestValidationError(e.errors(include_url=False, include_input=False, include_context=False)) from e


def _require_storable(value: Any) -> None:
    """Refuse what JSON can escape and neither UTF-8 nor PostgreSQL can hold: lone surrogates and NUL."""
    if isinstance(value, str):
        if "\x00" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise InvalidInput("invalid_text", "A text holds a NUL or half a character.")
    elif isinstance(value, dict):
        for key, item in value.items():
            _require_storable(key)
            _require_storable(item)
    elif isinstance(value, list):
        for item in value:
            _require_storable(item)


def _unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise MalformedRequest("duplicate_key", "An object has the same key twice.")
    return unique


def _no_constant(_name: str) -> None:
    raise InvalidInput("invalid_number", "NaN and Infinity are not JSON numbers.")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in {float("inf"), float("-inf")}:
        raise InvalidInput("invalid_number", "A number is too large.")
    return value


def _short_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise MalformedRequest("malformed_json", "A number has too many digits.")
    return int(digits)
