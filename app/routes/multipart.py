"""Multipart bodies, read as they arrive: files to disk, fields to memory, limits on everything.

Starlette's parser opens a file per part and takes a body that is cut off for a complete one; so this drives the
same `python_multipart` underneath directly.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from fastapi import Depends, Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.config import Settings
from app.deps import SettingsDep
from app.exceptions import InvalidInput, MalformedRequest, PayloadTooLarge, UnsupportedMedia
from app.ingest.uploads import Spool, Upload
from app.routes.idempotency import OnceDep
from app.routes.request_digest import RequestDigest

_WRITE_BYTES = 1 << 20
_MAX_PART_HEADERS = 16
_MAX_PART_HEADER_BYTES = 16 * 1024
"""Room for a file name of 4 KB in any encoding."""

FILE_FIELDS = ("archive", "images", "files", "file")
"""Names under which images are taken, with or without ``[]`` behind them: what clients commonly send."""


@dataclass(frozen=True, kw_only=True)
class FormLimits:
    """What a form may hold, and where its files wait."""

    spool_dir: Path
    max_bytes: int
    max_files: int
    max_fields: int = 32
    max_field_bytes: int = 1024**2

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The limits that an operator chose."""
        return cls(
            spool_dir=(settings.data_dir / "tmp").absolute(),
            max_bytes=settings.max_upload_bytes,
            max_files=settings.max_images,
        )


@dataclass(frozen=True)
class Form:
    """A form that was read completely. Its files are valid while `read_form`'s block lasts."""

    fields: Mapping[str, str]
    files: Sequence[tuple[str, Upload]]
    """Each with the name of its field."""

    def uploads(self, *names: str) -> list[Upload]:
        """The files in these fields.

        Raises ``missing_file`` when there are none, ``unknown_field`` for files elsewhere.
        """
        if any(name.removesuffix("[]") not in names for name, _ in self.files):
            raise InvalidInput("unknown_field", f"Files go into these fields: {', '.join(names)}.")
        if not self.files:
            raise InvalidInput("missing_file", "The form holds no file.", param=names[0])
        return [upload for _, upload in self.files]

    def only(self, *names: str) -> None:
        """Raise ``unknown_field`` when the form has fields other than these."""
        if self.fields.keys() - set(names):
            raise InvalidInput("unknown_field", f"The form may have these fields: {', '.join(names)}.")


@asynccontextmanager
async def read_form(
    request: Request, limits: FormLimits, *, digest: RequestDigest | None = None
) -> AsyncIterator[Form]:
    """Read a ``multipart/form-data`` body; whatever happens, nothing of it stays on disk after the block.

    ``digest`` learns its parts; without one, nothing is hashed.

    Raises `UnsupportedMedia`, `MalformedRequest` ``malformed_multipart``, `PayloadTooLarge` (``payload_too_large``,
    ``too_many_parts``), `InvalidInput` ``repeated_parameter``, and Starlette's `ClientDisconnect`.
    """
    boundary = _boundary(request)
    _check_length(request, limits.max_bytes)
    spool = await asyncio.to_thread(Spool, limits.spool_dir)
    try:
        parts = _Parts(spool, limits, digest)
        await _feed(request, boundary, parts, limits.max_bytes)
        yield parts.form()
    finally:
        await asyncio.to_thread(spool.close)


async def form_of_request(request: Request, settings: SettingsDep, once: OnceDep) -> AsyncIterator[Form]:
    """The form of a creating request that must be one."""
    async with read_form(request, FormLimits.from_settings(settings), digest=once.digest) as form:
        yield form


FormDep = Annotated[Form, Depends(form_of_request)]


def _malformed() -> MalformedRequest:
    return MalformedRequest("malformed_multipart", "The multipart body cannot be read.")


def _boundary(request: Request) -> bytes:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("unsupported_content_encoding", "The body must not be compressed.")
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise UnsupportedMedia("unsupported_media_type", "The body must be multipart/form-data.")
    if not options.get(b"boundary"):
        raise _malformed()
    return options[b"boundary"]


def _check_length(request: Request, max_bytes: int) -> None:
    lengths = request.headers.getlist("content-length")
    if len(lengths) > 1 or not all(length.isascii() and length.isdigit() for length in lengths):
        raise MalformedRequest("malformed_request", "The Content-Length is not a number.")
    if lengths and (len(lengths[0]) > 18 or int(lengths[0]) > max_bytes):
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge("payload_too_large", f"The body may have {max_bytes} bytes.")


async def _feed(request: Request, boundary: bytes, parts: "_Parts", max_bytes: int) -> None:
    num_bytes = 0
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.begin,
                "on_header_begin": parts.begin_header,
                "on_header_field": parts.add_header_name,
                "on_header_value": parts.add_header_value,
                "on_header_end": parts.end_header,
                "on_headers_finished": parts.end_headers,
                "on_part_data": parts.add_data,
                "on_part_end": parts.end,
                "on_end": parts.end_form,
            },
            max_header_count=_MAX_PART_HEADERS,
            max_header_size=_MAX_PART_HEADER_BYTES,
        )
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                raise _too_large(max_bytes)
            parser.write(chunk)
            if len(parts.unwritten) >= _WRITE_BYTES:
                await asyncio.to_thread(parts.write)
        await asyncio.to_thread(parts.write)
    except FormParserError as e:
        raise _malformed() from e


class _Parts:
    """Collects what the parser finds."""

    def __init__(self, spool: Spool, limits: FormLimits, digest: RequestDigest | None) -> None:
        self._spool = spool
        self._limits = limits
        self._digest = digest
        self._fields: dict[str, str] = {}
        self._files: list[tuple[str, str, int, int]] = []
        self._is_complete = False
        self.unwritten = bytearray()
        self.begin()

    def begin(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._filename: str | None = None
        self._start = self._spool.num_bytes + len(self.unwritten)
        self._value = bytearray()
        self._sha256 = hashlib.sha256()

    def begin_header(self) -> None:
        self._header_name, self._header_value = b"", b""

    def add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def end_header(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value

    def end_headers(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if kind != b"form-data" or b"name" not in options:
            raise _malformed()
        if self._headers.get(b"content-transfer-encoding", b"binary").lower() not in (b"binary", b"8bit", b"7bit"):
            raise _malformed()
        self._name = options[b"name"].decode("utf-8", "replace")
        if b"filename" in options:
            self._filename = options[b"filename"].decode("utf-8", "replace")
            self._check_count(len(self._files), self._limits.max_files)
        else:
            self._check_count(len(self._fields), self._limits.max_fields)

    def add_data(self, data: bytes, start: int, end: int) -> None:
        piece = memoryview(data)[start:end]
        if self._digest is not None:
            self._sha256.update(piece)
        if self._filename is not None:
            self.unwritten += piece
            return
        self._value += piece
        if len(self._value) > self._limits.max_field_bytes:
            raise PayloadTooLarge("payload_too_large", f"A field may have {self._limits.max_field_bytes} bytes.")

    def end(self) -> None:
        if self._filename is not None:
            num_bytes = self._spool.num_bytes + len(self.unwritten) - self._start
            # A browser sends an empty part without a name for a file input that nobody used.
            if self._filename or num_bytes:
                self._files.append((self._name, self._filename, self._start, num_bytes))
                self._add_to_digest()
            return
        if self._name in self._fields:
            raise InvalidInput("repeated_parameter", "A field of the form is given more than once.")
        try:
            self._fields[self._name] = self._value.decode("utf-8")
        except UnicodeDecodeError as e:
            raise MalformedRequest("invalid_encoding", "A field of the form is not UTF-8.") from e
        self._add_to_digest()

    def end_form(self) -> None:
        self._is_complete = True

    def write(self) -> None:
        """Move what has gathered to disk."""
        self._spool.append(self.unwritten)
        self.unwritten = bytearray()

    def form(self) -> Form:
        if not self._is_complete:
            raise _malformed()
        return Form(
            fields=self._fields,
            files=[
                (name, Upload(filename, self._spool.part(start, num_bytes)))
                for name, filename, start, num_bytes in self._files
            ],
        )

    def _add_to_digest(self) -> None:
        if self._digest is not None:
            self._digest.add_part(self._name, self._filename, self._sha256.hexdigest())

    def _check_count(self, count: int, most: int) -> None:
        if count >= most:
            raise PayloadTooLarge("too_many_parts", f"The form may have {most} of these parts.")
