"""Request bodies: JSON read strictly, and forms turned into the same models."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import Request
from pydantic import BaseModel

from app.exceptions import InvalidInput, MalformedRequest, PayloadTooLarge, UnsupportedMedia
from app.inference.classes import ClassList
from app.routes.request_digest import RequestDigest
from app.schemas.jobs import ClassIn
from app.schemas.parsing import MAX_JSON_BYTES, read_json, read_model, to_model

M = TypeVar("M", bound=BaseModel)

# Not str.splitlines: that also ends a line at characters which a name must not hold, and would hide them so.
_LINE_END = re.compile(r"\r\n|\r|\n")


def is_form(request: Request) -> bool:
    """Whether the body is a multipart form."""
    return _media_type(request) == "multipart/form-data"


async def read_json_body(
    request: Request, model: type[M], *, max_bytes: int = MAX_JSON_BYTES, digest: RequestDigest | None = None
) -> M:
    """Read a JSON body; raises `UnsupportedMedia`, `PayloadTooLarge` and as `read_model` does. ``digest`` learns it."""
    if _media_type(request) != "application/json" or _is_encoded(request):
        raise UnsupportedMedia("unsupported_media_type", "The body is application/json or multipart/form-data.")
    raw = await _read(request, max_bytes)
    if digest is not None:
        digest.add_body(raw)
    return read_model(raw, model)


def is_page_form(request: Request) -> bool:
    """Whether the body is a form without files, as pages send them."""
    return _media_type(request) == "application/x-www-form-urlencoded"


async def read_page_form(request: Request, *, max_fields: int) -> Mapping[str, str]:
    """Read such a form.

    Raises `UnsupportedMedia`, `PayloadTooLarge`, `MalformedRequest` ``malformed_form`` and `InvalidInput`.
    """
    if _is_encoded(request):
        raise UnsupportedMedia("unsupported_media_type", "The form is not compressed.")
    raw = await _read(request, MAX_JSON_BYTES)
    try:
        fields = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=max_fields
        )
    except ValueError as e:
        raise MalformedRequest("malformed_form", "The form cannot be read.") from e
    if len(dict(fields)) < len(fields):
        raise InvalidInput("repeated_parameter", "A field of the form is given more than once.")
    return dict(fields)


def form_model(fields: Mapping[str, str], model: type[M], *, plain: frozenset[str]) -> M:
    """Make a wire model of form fields: those of ``plain`` as they are, all others as JSON.

    ``classes`` and ``templates`` may also be written one a line.
    """
    values: dict[str, Any] = {}
    for name, text in fields.items():
        if name in plain:
            values[name] = text
        elif name in {"classes", "templates"} and not text.lstrip().startswith("["):
            values[name] = [line for line in (line.strip(" \t") for line in _LINE_END.split(text)) if line]
        else:
            values[name] = read_json(text.encode(), param=_known(name, model))
    return to_model(values, model)


def class_list(classes: Sequence[str | ClassIn], templates: Sequence[str] | None) -> ClassList:
    """The class list of a request, default templates included."""
    return ClassList.of([(c, ()) if isinstance(c, str) else (c.name, c.prompts) for c in classes], templates)


def form_fields(*, plain: Iterable[str], as_json: Iterable[str], archive: bool = False) -> dict[str, Any]:
    """Describe the fields of a form that carries images and classes beside ``plain`` and ``as_json`` ones."""
    file = {"type": "string", "format": "binary"}
    return {
        **({"archive": {**file, "description": "One zip or tar with the images."}} if archive else {}),
        "images": {"type": "array", "items": file, "description": "Image files."},
        "classes": {"type": "string", "description": "A JSON list as in the JSON form, or one name a line."},
        **{name: {"type": "string", "description": "As in the JSON form."} for name in sorted(plain)},
        **{name: {"type": "string", "description": "As in the JSON form, written as JSON."} for name in as_json},
    }


def body_schema(
    model: type[BaseModel], *, form: Mapping[str, Any] | None = None, page_form: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """``openapi_extra`` for a route that reads its body by itself; the model is listed in `app.openapi`."""
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    content: dict[str, Any] = {"application/json": {"schema": reference}}
    if form is not None:
        content["multipart/form-data"] = {"schema": {"type": "object", "properties": dict(form)}}
    if page_form is not None:
        content["application/x-www-form-urlencoded"] = {"schema": dict(page_form)}
    return {"requestBody": {"required": True, "content": content}}


async def _read(request: Request, max_bytes: int) -> bytes:
    raw = bytearray()
    async for part in request.stream():
        raw += part
        if len(raw) > max_bytes:
            raise PayloadTooLarge("payload_too_large", f"The body has at most {max_bytes} bytes.")
    return bytes(raw)


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _is_encoded(request: Request) -> bool:
    return "content-encoding" in request.headers


def _known(name: str, model: type[BaseModel]) -> str | None:
    return name if name in model.model_fields else None
