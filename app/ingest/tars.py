"""Tar archives, plain or gzipped, read as a stream.

The standard library parses the headers. The walk is our own: `tarfile` keeps every member in memory, reads extended
headers of any size at once, and takes the end of the file for the end of the archive.
"""

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from app.exceptions import InvalidInput, UnsupportedMedia
from app.ingest.unpacking import (
    CHUNK,
    Member,
    NameRules,
    Stream,
    Tally,
    ambiguous,
    corrupt,
    drain,
    is_left_behind,
    unsupported_entry,
)

_BLOCK = 512
_MAX_EXTENDED_BYTES = 1 << 20
_MAX_EXTENDED_IN_A_ROW = 8
_OCTAL_LIMIT = 8 * 1024**3
"""Sizes from here on do not fit into a header's own field."""

_REGULAR = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})
_PAX = frozenset({tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE})


@dataclass(slots=True)
class _Extended:
    """What the headers before a header say about it."""

    long_name: bytes | None = None
    path: bytes | None = None
    size: int | None = None

    def name_of(self, header: tarfile.TarInfo) -> bytes:
        if self.long_name is not None and self.path is not None and self.long_name != self.path:
            raise ambiguous()
        if self.path is not None or self.long_name is not None:
            return self.path if self.path is not None else self.long_name or b""
        return header.name.encode("utf-8", "surrogateescape")

    def size_of(self, header: tarfile.TarInfo) -> int:
        if self.size is None or self.size == header.size:
            return header.size
        if self.size < _OCTAL_LIMIT:
            raise ambiguous()  # readers that know the extension would go on at another place than those that do not
        return self.size


def walk_tar(file: BinaryIO, tally: Tally, *, compressed: bool) -> Iterator[Member]:
    """Yield the regular files of a tar. See `app.ingest.archives.walk`."""
    tally.admit(file.seek(0, 2))
    file.seek(0)
    source = _Source(_Gunzipped(file) if compressed else file, tally)
    rules = NameRules(tally.limits)
    while (found := _next_header(source)) is not None:
        header, extended = found
        tally.announce(1)
        raw_name = extended.name_of(header)
        name = raw_name.decode("utf-8", "replace")
        rules.check(name, raw_name)
        size = extended.size_of(header)
        if header.type == tarfile.DIRTYPE:
            if size:
                raise ambiguous()  # some readers skip as many bytes, others do not
            tally.num_ignored += 1
            continue
        if header.type not in _REGULAR:
            raise unsupported_entry()
        rules.claim(name)
        stream = _Bounded(source, size)
        if is_left_behind(name):
            tally.num_ignored += 1
        else:
            yield Member(name, stream)
        drain(stream)
        source.exactly(-size % _BLOCK)
    _check_end(source)


def _next_header(source: "_Source") -> tuple[tarfile.TarInfo, _Extended] | None:
    """The next member's header with what extends it; None at the end of the archive."""
    extended = _Extended()
    for _ in range(_MAX_EXTENDED_IN_A_ROW):
        at_start = source.num_bytes == 0
        block = source.exactly(_BLOCK)
        if block.count(0) == _BLOCK:
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as e:
            if at_start and block[257:262] != b"ustar":
                raise UnsupportedMedia("archive_unsupported_format", "The gzip file does not hold a tar.") from e
            raise corrupt() from e
        if header.size < 0:
            raise corrupt()
        if header.type == tarfile.GNUTYPE_LONGNAME:
            extended.long_name = _extension(source, header.size).split(b"\x00")[0]
        elif header.type == tarfile.GNUTYPE_LONGLINK:
            _extension(source, header.size)  # of a link, which is refused when it comes
        elif header.type in _PAX:
            _apply(_pax_records(_extension(source, header.size)), extended)
        elif header.type == tarfile.XGLTYPE:
            if _pax_records(_extension(source, header.size)).keys() & {b"path", b"size"}:
                raise ambiguous()
        else:
            return header, extended
    raise corrupt()


def _extension(source: "_Source", size: int) -> bytes:
    if size > _MAX_EXTENDED_BYTES:
        raise InvalidInput("archive_unsafe_path", "A name in the archive is too long.")
    content = source.exactly(size)
    source.exactly(-size % _BLOCK)
    return content


def _pax_records(content: bytes) -> dict[bytes, bytes]:
    """Parse ``LENGTH KEY=VALUE`` lines, in which the length counts the whole line."""
    records = {}
    position = 0
    while position < len(content) and content[position] != 0:
        space = content.find(b" ", position, position + 20)
        digits = content[position:space]
        if space < 0 or not digits.isdigit():
            raise corrupt()
        end = position + int(digits)
        key, equals, value = content[space + 1 : end].partition(b"=")
        if end > len(content) or not equals or not value.endswith(b"\n"):
            raise corrupt()
        records[key] = value[:-1]
        position = end
    return records


def _apply(records: dict[bytes, bytes], extended: _Extended) -> None:
    if any(key.startswith(b"GNU.sparse") for key in records):
        raise unsupported_entry()
    extended.path = records.get(b"path", extended.path)
    if b"size" in records:
        digits = records[b"size"]
        if not digits.isdigit() or len(digits) > 20:
            raise corrupt()
        extended.size = int(digits)


def _check_end(source: "_Source") -> None:
    while chunk := source.read(CHUNK):
        if chunk.count(0) != len(chunk):
            raise ambiguous()  # another archive, or none, behind the end of this one


class _Source:
    """The tar's bytes, counted as they come out."""

    def __init__(self, stream: Stream, tally: Tally) -> None:
        self._stream = stream
        self._tally = tally
        self.num_bytes = 0

    def read(self, size: int, /) -> bytes:
        content = self._stream.read(size)
        self.num_bytes += len(content)
        self._tally.unpack(len(content))
        return content

    def exactly(self, size: int) -> bytes:
        """That many bytes, or the archive is cut short."""
        parts = []
        while size:
            part = self.read(min(size, CHUNK))
            if not part:
                raise corrupt()
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class _Bounded:
    """The bytes of one member."""

    def __init__(self, source: _Source, size: int) -> None:
        self._source = source
        self._left = size

    def read(self, size: int, /) -> bytes:
        if not self._left:
            return b""
        content = self._source.read(min(CHUNK if size < 0 else size, CHUNK, self._left))
        if not content:
            raise corrupt()
        self._left -= len(content)
        return content


class _Gunzipped:
    """A gzip file unpacked bit by bit: one or several members (RFC 1952), zeros behind them, nothing else."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pending = b""
        self._inflater: zlib._Decompress | None = None
        self._at_start = True

    def read(self, size: int, /) -> bytes:
        while True:
            if not self._pending:
                self._pending = self._file.read(CHUNK)
            if self._inflater is None and not self._next_member():
                return b""
            assert self._inflater is not None  # noqa: S101 - for the type checker
            if not self._pending:
                raise corrupt()
            try:
                content = self._inflater.decompress(self._pending, size)
            except zlib.error as e:
                raise corrupt() from e
            if self._inflater.eof:
                self._pending = self._inflater.unused_data
                self._inflater = None
            else:
                self._pending = self._inflater.unconsumed_tail
            if content:
                return content

    def _next_member(self) -> bool:
        if not self._at_start:
            while self._pending and not self._pending.strip(b"\x00"):
                self._pending = self._file.read(CHUNK)
            if not self._pending:
                return False
        self._at_start = False
        self._inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
        return True
