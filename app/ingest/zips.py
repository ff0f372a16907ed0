"""Zip archives, read strictly: one end record, one directory, entries side by side, headers that agree.

Readers of zip differ in where they look first (the directory at the end, or the headers on the way), which is what
malicious archives live on. So both are read and compared before the first byte is unpacked.
"""

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from app.exceptions import InvalidInput
from app.ingest.unpacking import (
    CHUNK,
    Member,
    NameRules,
    Tally,
    ambiguous,
    corrupt,
    drain,
    is_left_behind,
    unsupported_entry,
)

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s2B4HL2L2H")

_MAX_16, _MAX_32 = 0xFFFF, 0xFFFFFFFF
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 1 | 1 << 6 | 1 << 13
_SIZES_FOLLOW = 1 << 3
_UTF8 = 1 << 11


@dataclass(frozen=True, slots=True)
class _Entry:
    """A record of the central directory."""

    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    unpacked: int
    offset: int
    is_folder: bool

    @property
    def name(self) -> str:
        # Without the flag the encoding is anybody's guess; most often it is UTF-8 all the same.
        try:
            return self.raw_name.decode("utf-8")
        except UnicodeDecodeError as e:
            if self.flags & _UTF8:
                raise corrupt() from e
            return self.raw_name.decode("cp437")


def has_end_record(file: BinaryIO) -> bool:
    """Whether the file ends like a zip, whatever it begins with."""
    return any(ends_file for _, ends_file in _end_records(file))


def walk_zip(file: BinaryIO, tally: Tally) -> Iterator[Member]:
    """Yield the regular files of a zip. See `app.ingest.archives.walk`."""
    tally.admit(file.seek(0, 2))
    num_entries, start, end = _locate_directory(file)
    tally.announce(num_entries)
    entries = sorted(_read_directory(file, num_entries, start, end), key=lambda entry: entry.offset)
    rules = NameRules(tally.limits)
    data_starts = []
    for index, entry in enumerate(entries):
        rules.check(entry.name, entry.raw_name)
        if not entry.is_folder:
            rules.claim(entry.name)
        next_start = entries[index + 1].offset if index + 1 < len(entries) else start
        data_starts.append(_check_place(file, entry, next_start))
    if (entries[0].offset if entries else start) != 0:
        raise ambiguous()  # something before the archive
    for entry, data_start in zip(entries, data_starts, strict=True):
        stream = _Unpacked(file, entry, data_start, tally)
        if entry.is_folder or is_left_behind(entry.name):
            tally.num_ignored += 1
        else:
            yield Member(entry.name, stream)
        drain(stream)


def _end_records(file: BinaryIO) -> list[tuple[int, bool]]:
    """Where end records could be in the file's last 64 KiB, and whether each, with its comment, ends the file."""
    size = file.seek(0, 2)
    start = max(0, size - _END.size - _MAX_16)
    file.seek(start)
    tail = file.read(size - start)
    found = []
    position = tail.find(b"PK\x05\x06")
    while 0 <= position <= len(tail) - _END.size:
        comment_length = int.from_bytes(tail[position + 20 : position + 22], "little")
        found.append((start + position, position + _END.size + comment_length == len(tail)))
        position = tail.find(b"PK\x05\x06", position + 1)
    return found


def _locate_directory(file: BinaryIO) -> tuple[int, int, int]:
    """The number of entries, and where the central directory starts and ends."""
    records = _end_records(file)
    ending = [position for position, ends_file in records if ends_file]
    if not ending:
        raise corrupt()
    if len(ending) > 1 or records[-1][0] != ending[0]:
        raise ambiguous()  # another end record, in the comment of the first
    position = ending[0]
    _, disk, start_disk, on_disk, num_entries, size, start, _ = _read(file, _END, position)
    end = position
    if position >= _END64_LOCATOR.size:
        magic, disk64, offset64, num_disks = _read(file, _END64_LOCATOR, position - _END64_LOCATOR.size)
        if magic == b"PK\x06\x07":
            end = offset64
            small = (num_entries, size, start)
            if end + _END64.size != position - _END64_LOCATOR.size or disk64 or num_disks > 1:
                raise corrupt()
            magic, _, _, _, disk, start_disk, on_disk, num_entries, size, start = _read(file, _END64, end)
            if magic != b"PK\x06\x06":
                raise corrupt()
            for narrow, wide, limit in zip(small, (num_entries, size, start), (_MAX_16, _MAX_32, _MAX_32), strict=True):
                if narrow not in (wide, limit):
                    raise ambiguous()
    if disk or start_disk or on_disk != num_entries or start + size > end or num_entries * _CENTRAL.size > size:
        raise corrupt()
    if start + size != end:
        raise ambiguous()
    return num_entries, start, end


def _read_directory(file: BinaryIO, num_entries: int, start: int, end: int) -> Iterator[_Entry]:
    position = start
    for _ in range(num_entries):
        fields = _read(file, _CENTRAL, position)
        magic, _, _, _, _, flags, method, _, _, crc, packed, unpacked = fields[:12]
        name_length, extra_length, comment_length, disk, _, attributes, offset = fields[12:]
        raw_name = file.read(name_length)
        extra = file.read(extra_length)
        position += _CENTRAL.size + name_length + extra_length + comment_length
        if magic != b"PK\x01\x02" or disk or position > end or len(extra) != extra_length:
            raise corrupt()
        unpacked, packed, offset = _wide(extra, (unpacked, packed, offset))
        kind = stat.S_IFMT(attributes >> 16)
        if flags & _ENCRYPTED:
            raise InvalidInput("archive_encrypted", "The archive is encrypted.")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise unsupported_entry()
        if method not in (_STORED, _DEFLATED) or flags & 1 << 5:
            raise InvalidInput(
                "archive_unsupported_compression", "Files in a zip may be stored or deflated, nothing else."
            )
        is_folder = kind == stat.S_IFDIR or raw_name.endswith((b"/", b"\\"))
        if (is_folder and unpacked) or (method == _STORED and packed != unpacked):
            raise corrupt()
        yield _Entry(raw_name, flags, method, crc, packed, unpacked, offset, is_folder)
    if position != end:
        raise corrupt()


def _wide(extra: bytes, values: tuple[int, int, int]) -> tuple[int, int, int]:
    """Replace what did not fit into 32 bits by its value in the zip64 extra field."""
    if _MAX_32 not in values:
        return values
    position = 0
    while position + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, position)
        position += 4
        if tag == 1:
            numbers = [n for (n,) in struct.iter_unpack("<Q", extra[position : position + length // 8 * 8])]
            if len(numbers) < values.count(_MAX_32):
                raise corrupt()
            first, second, third = (numbers.pop(0) if value == _MAX_32 else value for value in values)
            return first, second, third
        position += length
    raise corrupt()


def _check_place(file: BinaryIO, entry: _Entry, next_start: int) -> int:
    """Compare an entry with its local header and with what follows; returns where its bytes start."""
    fields = _read(file, _LOCAL, entry.offset)
    magic, _, _, flags, method, _, _, crc, packed, unpacked, name_length, extra_length = fields
    raw_name = file.read(name_length)
    extra = file.read(extra_length)
    data_start = entry.offset + _LOCAL.size + name_length + extra_length
    data_end = data_start + entry.packed
    if magic != b"PK\x03\x04" or data_end > next_start:
        raise corrupt()  # nothing there, or one entry over another
    compared = _ENCRYPTED | _SIZES_FOLLOW
    if raw_name != entry.raw_name or method != entry.method or flags & compared != entry.flags & compared:
        raise ambiguous()
    unpacked, packed, _ = _wide(extra, (unpacked, packed, 0))
    here, listed = (crc, packed, unpacked), (entry.crc, entry.packed, entry.unpacked)
    gap = next_start - data_end
    if here != listed and not (flags & _SIZES_FOLLOW and here[0] in (0, entry.crc) and _is_blank(here, listed)):
        raise ambiguous()
    if gap and not (flags & _SIZES_FOLLOW and _descriptor(file, data_end, gap) == listed):
        raise ambiguous()  # bytes that the directory does not know of
    return int(data_start)


def _is_blank(here: tuple[int, ...], listed: tuple[int, ...]) -> bool:
    return all(a in (0, b) for a, b in zip(here, listed, strict=True))


def _descriptor(file: BinaryIO, position: int, length: int) -> tuple[int, ...]:
    """CRC and sizes that a writer who could not go back put behind the bytes."""
    file.seek(position)
    record = file.read(min(length, 25))
    if length in (16, 24) and record.startswith(b"PK\x07\x08"):
        record = record[4:]
    layout = {12: "<3L", 20: "<LQQ"}.get(len(record))
    return struct.unpack(layout, record) if layout else ()


class _Unpacked:
    """The bytes of one entry, counted and checked as they come out."""

    def __init__(self, file: BinaryIO, entry: _Entry, start: int, tally: Tally) -> None:
        self._file = file
        self._entry = entry
        self._position = start
        self._end = start + entry.packed
        self._tally = tally
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if entry.method == _DEFLATED else None
        self._pending = b""
        self._crc = 0
        self._num_bytes = 0
        self._done = False

    def read(self, size: int, /) -> bytes:
        if self._done:
            return b""
        size = CHUNK if size < 0 else min(size, CHUNK)
        content = self._packed(size) if self._inflater is None else self._inflate(self._inflater, size)
        if not content:
            self._finish()
            return b""
        self._num_bytes += len(content)
        if self._num_bytes > self._entry.unpacked:
            raise corrupt()
        self._crc = zlib.crc32(content, self._crc)
        self._tally.unpack(len(content))
        return content

    def _packed(self, size: int) -> bytes:
        self._file.seek(self._position)
        content = self._file.read(min(size, self._end - self._position))
        self._position += len(content)
        return content

    def _inflate(self, inflater: "zlib._Decompress", size: int) -> bytes:
        while not inflater.eof:
            if not self._pending:
                self._pending = self._packed(CHUNK)
                if not self._pending:
                    raise corrupt()
            try:
                content = inflater.decompress(self._pending, size)
            except zlib.error as e:
                raise corrupt() from e
            self._pending = inflater.unconsumed_tail
            if content:
                return content
        return b""

    def _finish(self) -> None:
        self._done = True
        leftover = self._position != self._end or (self._inflater is not None and self._inflater.unused_data)
        if leftover or self._num_bytes != self._entry.unpacked or self._crc != self._entry.crc:
            raise corrupt()


def _read(file: BinaryIO, layout: struct.Struct, position: int) -> Any:
    file.seek(position)
    content = file.read(layout.size)
    if len(content) < layout.size:
        raise corrupt()
    return layout.unpack(content)
